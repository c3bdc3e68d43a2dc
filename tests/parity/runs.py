"""The same run with `SFTTrainer` and with `DeepFabricTrainer`."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import set_seed
from trl import SFTTrainer

from deepfabric_trainer import DeepFabricTrainer
from tests.fixtures.tiny import QUIET, tiny_tokenizer
from tests.parity.features import Feature

TRAINERS = (SFTTrainer, DeepFabricTrainer)
TIMES = ("time", "per_second")
"""What ends the names of numbers that no two runs share."""


class Run(NamedTuple):
    """What a run leaves behind."""

    trainer: Any
    history: list[dict[str, float]]
    weights: dict[str, torch.Tensor]


def make_trainer(trainer_class: Any, feature: Feature, folder: Path, **options: Any) -> Any:
    """Return a trainer of two steps that uses a feature, with a model and a tokenizer of its own.

    Args:
        trainer_class (`type`): `SFTTrainer` or `DeepFabricTrainer`.
        feature (`Feature`): What it uses.
        folder (`Path`): Where it writes.
        options: Settings that go before those of the feature.
    """
    set_seed(0)  # before trl 1.15 adapters are made before the trainer sets the seed
    tokenizer = tiny_tokenizer()
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 1e-2,
        **QUIET,
    }
    arguments = {"processing_class": tokenizer, "train_dataset": feature.rows(), **feature.trainer()}
    return trainer_class(
        model=feature.model(tokenizer, folder),
        args=feature.config(**(settings | dict(feature.options) | options)),
        **arguments,
    )


def train(trainer: Any, **options: Any) -> Run:
    """Train, and return what the run leaves behind."""
    trainer.train(**options)
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return Run(trainer, [dict(entry) for entry in trainer.state.log_history], weights)


def assert_same_history(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Require all that was logged, in the same order; more may have been."""
    assert len(found) == len(expected)
    for entry, expected_entry in zip(found, expected, strict=True):
        assert_same_metrics(entry, expected_entry)


def assert_same_metrics(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Require the same numbers to five digits; there may be more of them."""
    names = [name for name in expected if not name.endswith(TIMES)]
    for name in names:
        assert found.get(name) == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Require the same weights, but for the order in which floating point adds."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
