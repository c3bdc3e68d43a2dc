"""The sampler in a real trainer: it is left in place, is told the epoch, and resumes where it was."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from torch.utils.data import RandomSampler
from trl import SFTConfig, SFTTrainer

from deepfabric_trainer.grouping import PrefixGroupSampler
from tests.fixtures.tiny import CHECKPOINTING, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

COUNT = 22
GROUPED = [number % 3 for number in range(COUNT)]
ALONE = list(range(COUNT))


class _Recording:
    """Notes which rows come in which batch: the first token of a row is its number."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.batches: list[list[int]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        self.batches.append([example["input_ids"][0] for example in examples])
        return self.collator(examples)


class _Grouping(SFTTrainer):
    """Draws with our sampler."""

    codes = GROUPED

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return PrefixGroupSampler(self.codes, self.args.train_batch_size, seed)


class _Alone(_Grouping):
    codes = ALONE


def train(
    kind: type[SFTTrainer], folder: Path, *, stop_at: int | None = None, resume: bool = False, **options: Any
) -> tuple[list[list[int]], SFTTrainer]:
    """Train two epochs and return the batches."""
    rows = [{"input_ids": [number, 1, 2, 3], "labels": [-100, 1, 2, 3]} for number in range(COUNT)]
    tokenizer = tiny_tokenizer()
    trainer = kind(
        model=tiny_model(tokenizer),
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            num_train_epochs=2,
            save_strategy="steps" if stop_at else "no",
            save_steps=stop_at or 500,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            max_length=None,
            **{CHECKPOINTING: False},
            **options,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.data_collator = recording = _Recording(trainer.data_collator)
    trainer.train(resume_from_checkpoint=resume or None)
    return recording.batches, trainer


def sampler_of(trainer: SFTTrainer) -> Any:
    return trainer.get_train_dataloader().get_sampler()


@pytest.mark.parametrize("options", [{"seed": 7}, {"seed": 7, "data_seed": 11}, {"seed": 7, "max_steps": 9}])
def test_without_groups_the_order_is_that_of_trl(tmp_path: Path, options: dict[str, int]) -> None:
    ours, trainer = train(_Alone, tmp_path, **options)
    theirs, other = train(SFTTrainer, tmp_path, **options)
    assert ours == theirs
    assert isinstance(sampler_of(trainer), PrefixGroupSampler)
    assert isinstance(sampler_of(other), RandomSampler)


@pytest.mark.parametrize("kind", [_Alone, _Grouping, SFTTrainer])
def test_a_run_that_resumes_in_the_second_epoch_sees_the_same_batches(tmp_path: Path, kind: type[SFTTrainer]) -> None:
    whole, _ = train(kind, tmp_path / "whole", seed=7)
    assert len(whole) == 12
    train(kind, tmp_path / "cut", seed=7, stop_at=8, max_steps=8)
    resumed, _ = train(kind, tmp_path / "cut", seed=7, resume=True)
    assert resumed == whole[8:]
    if kind is _Alone:
        assert whole == train(SFTTrainer, tmp_path / "trl", seed=7)[0]


def test_batches_are_those_of_the_sampler(tmp_path: Path) -> None:
    batches, _ = train(_Grouping, tmp_path, seed=7, gradient_accumulation_steps=2)
    sampler = PrefixGroupSampler(GROUPED, 4, seed=7)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert [index for batch in batches[6 * epoch : 6 * epoch + 6] for index in batch] == order
    assert batches[:6] != batches[6:]
