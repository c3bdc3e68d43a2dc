"""Codes of encoded rows: which begin with the same tokens, and which nearly so."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from deepfabric_trainer.grouping.hashing import Hashes, Offsets, flatten, mix, plain_storage
from deepfabric_trainer.grouping.sequences import Numbers, rank_sequences

_IGNORED = -100
_BLOCK = 64
"""Tokens: what is shared is measured in blocks of so many."""
_ROWS_AT_ONCE = 1024
_WEIGHTS = mix(np.arange(1, _BLOCK + 1, dtype=np.uint64)) | np.uint64(1)


def encoded_codes(dataset: Dataset, rows: npt.ArrayLike | None = None) -> Numbers:
    """Return a code for each encoded row: equal codes for equal beginnings, near ones for beginnings that are alike.

    A row's beginning is what stands before its first trained token, as far as any other row has it too, in blocks of
    64 tokens: a tool catalogue, mostly. Codes are ranks in the lexicographic order of the beginnings, so that
    neighbours share long ones; rows that share nothing with any other have one code.

    Args:
        dataset (`Dataset`): N examples with `input_ids` and `labels`.
        rows (`array`, *optional*): The number of the row that each example comes from, [N]. The examples of a row get
            the code of its first; what only they have in common does not count.

    Returns:
        `np.ndarray`: [N] int64; from 0 on, without gaps.
    """
    blocks, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    batches = dataset.select_columns(["input_ids", "labels"]).with_format("arrow")
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        batch = batches[start : start + _ROWS_AT_ONCE]
        ids, offsets = _tokens(batch.column("input_ids"))
        labels, _ = _tokens(batch.column("labels"))
        hashes, counts = _blocks(ids, labels, offsets)
        blocks.append(hashes)
        lengths.append(counts)
    values = np.concatenate(blocks)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    number_of_rows = np.arange(len(dataset)) if rows is None else np.asarray(rows)
    _, first, which = np.unique(number_of_rows, return_index=True, return_inverse=True)
    values, offsets = _take(values, offsets[first], np.diff(offsets)[first])
    ranks = rank_sequences(values, offsets)
    values, offsets = _take(values, offsets[:-1], _shared_lengths(values, offsets, np.argsort(ranks, kind="stable")))
    ranks = rank_sequences(values, offsets)
    return np.unique(ranks[which], return_inverse=True)[1].astype(np.int64)


def _tokens(column: pa.ChunkedArray) -> tuple[npt.NDArray[Any], Offsets]:
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    values, offsets = flatten(plain_storage(array))
    return values.to_numpy(zero_copy_only=False), offsets


def _blocks(ids: npt.NDArray[Any], labels: npt.NDArray[Any], offsets: Offsets) -> tuple[Hashes, Numbers]:
    """Return the hashes of the whole blocks before each row's first trained token, and how many each row has."""
    starts, ends = offsets[:-1], offsets[1:]
    trained = np.append(np.flatnonzero(labels != _IGNORED), len(labels))
    first_trained = np.minimum(trained[np.searchsorted(trained, starts)], ends)
    counts = (first_trained - starts) // _BLOCK
    begins = _positions(starts, counts, _BLOCK)
    tokens = ids[begins[:, None] + np.arange(_BLOCK)].astype(np.uint64)
    return mix((tokens * _WEIGHTS).sum(axis=1, dtype=np.uint64)), counts


def _shared_lengths(values: Hashes, offsets: Offsets, order: Numbers) -> Numbers:
    """Return how many first values each sequence has in common with any other; `order` sorts the sequences."""
    lengths = np.diff(offsets)
    common = np.zeros(max(len(order) - 1, 0), np.int64)
    pairs, place = np.arange(len(common)), 0
    while len(pairs):
        left, right = order[pairs], order[pairs + 1]
        pairs, left, right = (part[np.minimum(lengths[left], lengths[right]) > place] for part in (pairs, left, right))
        pairs = pairs[values[offsets[left] + place] == values[offsets[right] + place]]
        common[pairs] += 1
        place += 1
    shared = np.zeros(len(order), np.int64)
    shared[order] = np.maximum(np.append(common, 0), np.insert(common, 0, 0)) if len(order) else 0
    return shared


def _take(values: Hashes, starts: Offsets, lengths: Numbers) -> tuple[Hashes, Offsets]:
    """Return the sequences that begin at `starts`, one behind the other."""
    return values[_positions(starts, lengths, 1)], np.concatenate([[0], np.cumsum(lengths)])


def _positions(starts: Numbers, counts: Numbers, step: int) -> Numbers:
    """Return `start + step * i` for each `i` below the count, of one start after the other."""
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + step * within
