from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import get_constant_schedule

from deepfabric_trainer import DeepFabricTrainer
from tests.fixtures.tiny import tiny_model, tiny_tokenizer
from tests.parity.features import EVALUATES, NLL, Feature, rows
from tests.parity.runs import (
    TRAINERS,
    assert_same_history,
    assert_same_weights,
    make_trainer,
    train,
)
from tests.parity.samples import CHATS, TEXTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # TRL warns of many of its own features, in both runs
]


def test_optimizers_of_the_users_own(tmp_path: Path) -> None:
    def make(trainer_class: Any) -> Any:
        model = tiny_model(tiny_tokenizer())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        feature = Feature(
            "optimizers",
            rows(CHATS),
            {},
            lambda: {"optimizers": (optimizer, get_constant_schedule(optimizer))},
            lambda tokenizer, folder: model,
        )
        return make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__)

    expected, found = (train(make(trainer_class)) for trainer_class in TRAINERS)
    assert [entry["learning_rate"] for entry in found.history[:2]] == [0.1, 0.1]
    assert_same_history(found.history, expected.history)
    assert_same_weights(found.weights, expected.weights)


@pytest.mark.parametrize("columns", [TEXTS, CHATS], ids=["text", "messages"])
def test_a_trainer_trains_twice(columns: Any, tmp_path: Path) -> None:
    feature = Feature("twice", rows(columns), EVALUATES, lambda: {"eval_dataset": Dataset.from_list(columns[:3])})
    runs = []
    for trainer_class in TRAINERS:
        trainer = make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__)
        trainer.train()
        trainer.args.max_steps = 3
        runs.append(train(trainer))
    assert_same_history(runs[1].history, runs[0].history)
    assert_same_weights(runs[1].weights, runs[0].weights)


def test_log_entries_have_the_keys_of_sft_trainer_in_its_order(tmp_path: Path) -> None:
    options = {**EVALUATES, **NLL}  # the default before it has an order of its own
    feature = Feature("log", rows(CHATS), options, lambda: {"eval_dataset": Dataset.from_list(CHATS[:3])})
    expected, found = (
        train(make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__)).history
        for trainer_class in TRAINERS
    )
    for entry, expected_entry in zip(found, expected, strict=True):
        assert [name for name in entry if name in expected_entry] == list(expected_entry)
        more = [name.removeprefix("eval_") for name in entry if name not in expected_entry]
        assert all(name.startswith(("loss_", "token_accuracy_", "num_computed_tokens")) for name in more), more


def test_a_prompt_without_an_answer_is_not_trained(tmp_path: Path) -> None:
    asking = [{**row, "chat_template_kwargs": {"add_generation_prompt": True}} for row in CHATS]
    trainers = [
        make_trainer(DeepFabricTrainer, Feature("prompt", rows(columns)), tmp_path) for columns in (asking, CHATS)
    ]
    found, expected = (list(trainer.train_dataset["input_ids"]) for trainer in trainers)
    assert found == expected


@pytest.mark.skipif(torch.accelerator.is_available(), reason="it fails without an accelerator only")
def test_activation_offloading_fails_as_trls_does(tmp_path: Path) -> None:
    feature = Feature("offloading", rows(CHATS), {"activation_offloading": True})
    errors: list[Any] = []
    for trainer_class in TRAINERS:
        with pytest.raises(AttributeError) as error:
            make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__)
        errors.append(str(error.value))
    assert errors[1] == errors[0]
