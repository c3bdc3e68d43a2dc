"""Beginnings as sequences of hashes, numbered and put into an order in which neighbours begin alike."""

import zlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deepfabric_trainer.grouping.hashing import (
    Hashes,
    Offsets,
    combine,
    distinct_texts,
    flatten,
    hash_values,
    is_list,
    is_text,
    plain_storage,
)

Numbers = npt.NDArray[np.int64]

_BLOCK = 512
"""Bytes: texts that differ only in the same block count as beginning alike up to it."""
_NO_VALUES = (b"", b"null", b"[]", b"{}")


class SequenceTable:
    """Numbers distinct sequences of hashes, and ranks them in the end.

    What a sequence is made of: a list gives the hashes of its items; a text, such as the JSON text of a list, a
    running checksum every 512 bytes; anything else its own hash.
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {b"": 0}

    def add(self, array: pa.Array) -> Numbers:
        """Return the number of each value's sequence; what is null or empty is number 0.

        Args:
            array (`pa.Array`): N values.

        Returns:
            `np.ndarray`: [N] int64.
        """
        array = plain_storage(array)
        numbers = np.zeros(len(array), np.int64)
        if array.null_count == len(array):
            return numbers
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        present = array.filter(pa.array(valid)) if array.null_count else array
        numbers[valid] = self._add_texts(present) if is_text(present.type) else self._add_hashes(present)
        return numbers

    def ranks(self) -> Numbers:
        """Return the place of each sequence in lexicographic order, [number of sequences] int64."""
        lengths = [len(sequence) // 8 for sequence in self._numbers]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return rank_sequences(np.frombuffer(b"".join(self._numbers), np.uint64), offsets)

    def _number(self, sequence: bytes) -> int:
        return self._numbers.setdefault(sequence, len(self._numbers))

    def _add_texts(self, array: pa.Array) -> Numbers:
        texts, which = distinct_texts(array)
        numbers = np.fromiter((self._number(_checksums(text)) for text in texts), np.int64)
        return numbers[which]

    def _add_hashes(self, array: pa.Array) -> Numbers:
        items, offsets = flatten(array) if is_list(array.type) else (array, np.arange(len(array) + 1))
        hashes = hash_values(items)
        _, first, which = np.unique(combine(hashes, offsets), return_index=True, return_inverse=True)
        numbers = [self._number(hashes[offsets[row] : offsets[row + 1]].tobytes()) for row in first.tolist()]
        return np.asarray(numbers, np.int64)[which]


def rank_sequences(values: Hashes, offsets: Offsets) -> Numbers:
    """Rank sequences in lexicographic order; what ends comes before what goes on.

    Place by place, groups that are equal so far are split by their next value. So the work is that of reading what
    sequences have in common, and of sorting where they part.

    Args:
        values (`np.ndarray`): The items of K sequences, uint64.
        offsets (`np.ndarray`): Where each begins and ends, [K + 1] int64.

    Returns:
        `np.ndarray`: [K] int64: how many sequences come before; equal ones have the same rank.
    """
    starts, lengths = offsets[:-1], np.diff(offsets)
    ranks = np.zeros(len(starts), np.int64)
    active = np.arange(len(starts))
    place = 0
    while len(active):
        # `active` is sorted by rank, and holds whole groups of at least two.
        more = lengths[active] > place
        value = np.zeros(len(active), np.uint64)
        value[more] = values[starts[active[more]] + place]
        group = ranks[active]
        parts = (group[1:] == group[:-1]) & ((value[1:] != value[:-1]) | (more[1:] != more[:-1]))
        if parts.any():
            mixed = np.isin(group, group[1:][parts])
            order = np.arange(len(active))
            order[mixed] = order[mixed][np.lexsort((value[mixed], more[mixed], group[mixed]))]
            active, more, value, group = active[order], more[order], value[order], group[order]
        is_first = np.ones(len(active), bool)
        is_first[1:] = group[1:] != group[:-1]
        begins = is_first.copy()
        begins[1:] |= (value[1:] != value[:-1]) | (more[1:] != more[:-1])
        position = np.arange(len(active))
        old_begin = np.maximum.accumulate(np.where(is_first, position, 0))
        new_begin = np.maximum.accumulate(np.where(begins, position, 0))
        ranks[active] = group + new_begin - old_begin
        is_alone = begins & np.append(begins[1:], True)
        active = active[more & ~is_alone]
        place += 1
    return ranks


def _checksums(text: memoryview) -> bytes:
    """Return a text as a sequence: the checksum of what stands up to the end of each block."""
    if len(text) <= 4 and bytes(text) in _NO_VALUES:
        return b""
    sums, checksum = [], 0
    for begin in range(0, len(text), _BLOCK):
        checksum = zlib.crc32(text[begin : begin + _BLOCK], checksum)
        sums.append(checksum)
    sequence = np.asarray(sums, np.uint64) << np.uint64(32)
    sequence[-1] |= np.uint64(len(text) & 0xFFFFFFFF)
    return sequence.tobytes()
