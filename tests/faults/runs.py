"""Small runs for faults to happen in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows


def make_trainer(folder: Path, config: type = DeepFabricSFTConfig, **options: Any) -> DeepFabricTrainer:
    """Return a trainer of two steps.

    Args:
        folder (`Path`): Where it writes.
        config (`type`, *optional*): Of its settings.
        options: Settings, and of the trainer's own arguments those that are named below.
    """
    tokenizer = options.pop("processing_class", None) or tiny_tokenizer()
    own = {
        name: options.pop(name) for name in ("callbacks", "eval_dataset", "data_collator", "model") if name in options
    }
    train_dataset = options.pop("train_dataset", None)
    settings = {**QUIET, "per_device_train_batch_size": 4, "max_steps": 2, **options}
    return DeepFabricTrainer(
        model=own.pop("model", None) or tiny_model(tiny_tokenizer()),
        args=config(str(folder), **settings),
        processing_class=tokenizer,
        train_dataset=to_dataset(tool_rows()) if train_dataset is None else train_dataset,
        **own,
    )


class At(TrainerCallback):
    """Does something when a step begins.

    Args:
        step (`int`): How many steps have been done.
        what (`Callable[[], Any]`): What is done.
    """

    def __init__(self, step: int, what: Callable[[], Any]) -> None:
        self.step = step
        self.what = what

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.what()
