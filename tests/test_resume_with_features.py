"""A run that is stopped and goes on ends as one that was not, to the bit, whatever else is turned on."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from tests.fixtures.stopped_run import Kind, assert_same, run

pytestmark = pytest.mark.slow

EVERYWHERE = (3, 4, 6)
"""With a checkpoint after each step those before them are in the first epoch, at its end, and in the second."""
LATE = (6,)
EPOCH = {name: "epoch" for name in ("save_strategy", "eval_strategy", "logging_strategy")}
BEST = {"save_strategy": "best", "metric_for_best_model": "eval_loss", "eval_steps": 1, "eval_strategy": "steps"}
PACKS = {"packing": True, "max_length": 720, "per_device_train_batch_size": 1}
WORKERS = {"dataloader_num_workers": 2}


def lora(**options: Any) -> dict[str, Any]:
    return {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2, **options)}


KINDS: dict[str, tuple[Kind, tuple[int, ...]]] = {
    "auto": (Kind(), EVERYWHERE),
    "packed": (Kind({"batching": "packed", "max_tokens_per_batch": 400}), LATE),
    "shared prefixes": (Kind({"batching": "shared_prefix", "max_tokens_per_batch": 400}), LATE),
    "padded": (Kind({"batching": "padded", "max_tokens_per_batch": 400}), LATE),
    "ungrouped": (Kind({"group_by_prefix": False}), EVERYWHERE),
    "accumulated by three": (
        Kind({"gradient_accumulation_steps": 3, "per_device_train_batch_size": 1, "num_train_epochs": 1.5}),
        EVERYWHERE,
    ),
    "trl's packing": (Kind(PACKS), LATE),
    "trl's bfd": (Kind(PACKS, plain=True), LATE),
    "trl's bfd_split": (Kind({**PACKS, "packing_strategy": "bfd_split"}, plain=True), LATE),
    "trl's wrapped": (Kind({**PACKS, "packing_strategy": "wrapped"}, plain=True), LATE),
    "lazy": (Kind({"preparation": "lazy"}), LATE),
    "lazy with workers": (Kind({"preparation": "lazy", **WORKERS}), LATE),
    "workers that persist": (
        Kind(
            {**WORKERS, "dataloader_persistent_workers": True, "eval_strategy": "steps", "eval_steps": 2},
            evaluates=True,
        ),
        (2, 4),
    ),
    "stream": (Kind({"max_steps": 6}, stream=True), EVERYWHERE),
    "stream by epochs": (Kind({**EPOCH, "max_steps": 7}, stream=True, evaluates=True), (4, 5, 7)),
    "neftune": (Kind({"neftune_noise_alpha": 5}), LATE),
    "lora": (Kind({"batching": "shared_prefix"}, trainer=lora), LATE),
    "modules to save": (Kind(trainer=partial(lora, modules_to_save=["lm_head"], use_dora=True)), LATE),
    "epochs": (Kind(EPOCH, evaluates=True), (4, 6)),
    "best": (Kind({**BEST, "logging_strategy": "epoch"}, evaluates=True), EVERYWHERE),
    "best in the end": (
        Kind(
            {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
            | {"save_total_limit": 1, "metric_for_best_model": "loss", "greater_is_better": True},
            evaluates=True,
        ),
        (3, 6),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_stopped_run_goes_on_to_the_same_end(tmp_path: Path, name: str) -> None:
    kind, stops = KINDS[name]
    assert_same(run(tmp_path / "stopped", kind, stops), run(tmp_path / "whole", kind))
