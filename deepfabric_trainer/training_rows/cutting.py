"""Cutting examples to `max_length` where TRL does, for scripts with a plain `SFTConfig`."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.prepare.writing import EXAMPLE_FEATURES

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
    part = _part(max_length, truncation_mode)
    lengths = [pc.list_value_length(batch["input_ids"]) for batch in dataset.with_format("arrow").iter(_BATCH)]
    too_long = int((np.concatenate(lengths) > max_length).sum())
    if not too_long:
        return CutExamples(dataset, np.arange(len(dataset)), [])
    examples = len(dataset)
    dataset = dataset.map(
        _cut_batch,
        batched=True,
        fn_kwargs={"part": part},
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
    if len(kept) < examples:
        remarks.append(f"{examples - len(kept)} of {examples} examples have no trained token left and were left out")
        dataset = dataset.select(kept)
    return CutExamples(dataset, kept, [f"{name} dataset: {remark}" for remark in remarks])


def cut_stream(dataset: IterableDataset, max_length: int, truncation_mode: str, name: str) -> IterableDataset:
    """Cut the examples of a stream as they come, and say so at the first; see `cut_examples`."""
    cut = _StreamCut(_part(max_length, truncation_mode), max_length, name)
    return dataset.map(cut, batched=True, features=dataset.features).filter(is_trained, input_columns=["labels"])


def is_trained(labels: list[int]) -> bool:
    """Tell whether any token is trained."""
    return any(label != -100 for label in labels)


def _part(max_length: int, truncation_mode: str) -> slice:
    parts = {"keep_start": slice(None, max_length), "keep_end": slice(-max_length, None)}
    if truncation_mode not in parts:
        raise ConfigError(f"Unsupported truncation mode: {truncation_mode}", expected="'keep_start' or 'keep_end'")
    return parts[truncation_mode]


def _cut_batch(batch: Mapping[str, list[Any]], part: slice) -> dict[str, list[Any]]:
    return {name: [values[part] for values in batch[name]] for name in EXAMPLE_FEATURES if name in batch}


class _StreamCut:
    """Cuts the examples of a stream.

    Args:
        part (`slice`): What of an example stays.
        max_length (`int`): In tokens.
        name (`str`): What the log calls the dataset.
    """

    def __init__(self, part: slice, max_length: int, name: str) -> None:
        self._part = part
        self._max_length = max_length
        self._name = name
        self._is_said = False

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        if not self._is_said and any(len(ids) > self._max_length for ids in batch["input_ids"]):
            self._is_said = True
            logger.warning(
                "%s dataset: examples longer than `max_length`, %d, are cut, as TRL does", self._name, self._max_length
            )
        return _cut_batch(batch, self._part)
