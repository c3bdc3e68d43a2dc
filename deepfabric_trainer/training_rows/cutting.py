"""Cutting examples to `max_length` where TRL does, for scripts with a plain `SFTConfig`.

What is left of a tool call that the cut goes through stays in the example, as context: it is not trained.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from deepfabric_trainer.encode.examples import IGNORED
from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.prepare.writing import EXAMPLE_FEATURES
from deepfabric_trainer.training_rows.cut_calls import call_at

logger = logging.getLogger(__name__)

_BATCH = 1000


class CutExamples(NamedTuple):
    """Examples none of which is too long.

    Args:
        dataset (`Dataset`): The examples in which something is trained.
        kept (`np.ndarray`): Which of the examples that came in they are, [N] int64.
        remarks (`list[str]`): What a user must know of it, a sentence a cause.
    """

    dataset: Dataset
    kept: npt.NDArray[np.int64]
    remarks: list[str]


def cut_examples(dataset: Dataset, max_length: int, truncation_mode: str, name: str) -> CutExamples:
    """Cut examples that are too long, and leave out those in which nothing is trained then, as TRL does.

    Args:
        dataset (`Dataset`): Of `input_ids`, `labels`, `regions` and maybe `weights`.
        max_length (`int`): In tokens.
        truncation_mode (`str`): `"keep_start"` or `"keep_end"`.
        name (`str`): What the dataset is called.

    Raises:
        ConfigError: If there is no such mode.
        DataFormatError: If nothing is trained in any of them.
    """
    cut = _Cut(max_length, truncation_mode)
    lengths = [pc.list_value_length(batch["input_ids"]) for batch in dataset.with_format("arrow").iter(_BATCH)]
    too_long = int((np.concatenate(lengths) > max_length).sum())
    if not too_long:
        return CutExamples(dataset, np.arange(len(dataset)), [])
    examples = len(dataset)
    calls = sum(cut.call(regions) is not None for batch in dataset.iter(_BATCH) for regions in batch["regions"])
    dataset = dataset.map(
        cut,
        batched=True,
        features=dataset.features,
        desc=f"Cutting {name} dataset",
    )
    trained = np.concatenate([[is_trained(labels) for labels in batch["labels"]] for batch in dataset.iter(_BATCH)])
    kept = np.flatnonzero(trained)
    if not len(kept):
        raise DataFormatError(
            f"{name} dataset: every example is longer than `max_length`, {max_length}, and no trained token is left",
            fix="raise `max_length`",
        )
    end = "end" if truncation_mode == "keep_start" else "beginning"
    remarks = [
        f"{too_long} of {examples} examples are longer than `max_length`, {max_length}, and were cut at their {end}, "
        "as TRL does; `DeepFabricSFTConfig` drops the oldest exchanges instead, whole"
    ]
    if calls:
        verb = "call that the cut goes through is" if calls == 1 else "calls that the cut goes through are"
        remarks.append(f"{calls} {verb} not trained")
    if len(kept) < examples:
        remarks.append(f"{examples - len(kept)} of {examples} examples have no trained token left and were left out")
        dataset = dataset.select(kept)
    return CutExamples(dataset, kept, [f"{name} dataset: {remark}" for remark in remarks])


def cut_stream(dataset: IterableDataset, max_length: int, truncation_mode: str, name: str) -> IterableDataset:
    """Cut the examples of a stream as they come, and say so at the first; see `cut_examples`."""
    cut = _StreamCut(_Cut(max_length, truncation_mode), name)
    return dataset.map(cut, batched=True, features=dataset.features).filter(is_trained, input_columns=["labels"])


def is_trained(labels: list[int]) -> bool:
    """Tell whether any token is trained."""
    return any(label != IGNORED for label in labels)


class _Cut:
    """Cuts batches of examples.

    Args:
        max_length (`int`): In tokens.
        truncation_mode (`str`): `"keep_start"` or `"keep_end"`.
    """

    def __init__(self, max_length: int, truncation_mode: str) -> None:
        if truncation_mode not in ("keep_start", "keep_end"):
            raise ConfigError(f"Unsupported truncation mode: {truncation_mode}", expected="'keep_start' or 'keep_end'")
        self.max_length = max_length
        self._keeps_start = truncation_mode == "keep_start"

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the columns of the examples, cut."""
        columns: dict[str, list[Any]] = {name: [] for name in EXAMPLE_FEATURES if name in batch}
        part = slice(None, self.max_length) if self._keeps_start else slice(-self.max_length, None)
        for number, regions in enumerate(batch["regions"]):
            example = {name: batch[name][number] for name in columns}
            call = self.call(regions)
            if call is not None:
                for name, nothing in (("labels", IGNORED), ("regions", Region.CONTEXT)):
                    example[name] = [*example[name][: call.start], *[nothing] * len(call), *example[name][call.stop :]]
            for name, values in example.items():
                columns[name].append(values[part])
        return columns

    def call(self, regions: Sequence[int]) -> range | None:
        """Return the tokens of the call that the cut through an example goes through, if it does."""
        if len(regions) <= self.max_length:
            return None
        return call_at(regions, self.max_length if self._keeps_start else len(regions) - self.max_length)


class _StreamCut:
    """Cuts the examples of a stream.

    Args:
        cut (`_Cut`): Cuts a batch.
        name (`str`): What the log calls the dataset.
    """

    def __init__(self, cut: _Cut, name: str) -> None:
        self._cut = cut
        self._name = name
        self._is_said = False

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        if not self._is_said and any(len(ids) > self._cut.max_length for ids in batch["input_ids"]):
            self._is_said = True
            logger.warning(
                "%s dataset: examples longer than `max_length`, %d, are cut, as TRL does; calls that the cut goes "
                "through are not trained",
                self._name,
                self._cut.max_length,
            )
        return self._cut(batch)
