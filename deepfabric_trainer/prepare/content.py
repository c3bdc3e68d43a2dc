"""Telling equal values of nested Arrow arrays, without making Python objects of them."""

from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.uint64]
"""128 bits a value: [N, 2]."""

_NULL = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
_FIRST = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
_SECOND = np.array([0x94D049BB133111EB, 0xFF51AFD7ED558CCD], np.uint64)
_BITS = {1: pa.uint8(), 2: pa.uint16(), 4: pa.uint32(), 8: pa.uint64()}


def content_of(array: pa.Array) -> Hashes:
    """Return a hash of each value, nulls and all that is inside included; equal values have equal ones.

    Texts and numbers are hashed by BLAKE2, objects and lists by mixing the hashes of their parts.

    Raises:
        TypeError: For types other than texts, bytes, numbers, flags, structs and lists of these.
    """
    with np.errstate(over="ignore"):
        return _content_of(array)


def _content_of(array: pa.Array) -> Hashes:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _content_of(array.storage)
    if array.null_count == len(array):
        return np.tile(_NULL, (len(array), 1))
    if pa.types.is_struct(kind):
        hashes = np.tile(_FIRST, (len(array), 1))
        for field in array.flatten():
            hashes = _mix(hashes ^ _mix(_content_of(field)))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        hashes = _content_of_lists(array)
    else:
        hashes = _content_of_leaves(array)
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return hashes


def _content_of_lists(array: pa.Array) -> Hashes:
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype(np.int64)
    items = _content_of(array.flatten())
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(items)) - np.repeat(starts, lengths)
    # A sum over the items does not tell their order; the place that is mixed in does.
    placed = _mix(items ^ _mix(places.astype(np.uint64)[:, None] + _SECOND))
    sums = np.zeros((len(items) + 1, 2), np.uint64)
    np.cumsum(placed, axis=0, out=sums[1:])
    return _mix(sums[starts + lengths] - sums[starts] + _mix(lengths.astype(np.uint64)[:, None] + _FIRST))


def _content_of_leaves(array: pa.Array) -> Hashes:
    kind = array.type
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pa.types.is_floating(kind):
        array = array.view(_BITS[kind.bit_width // 8])  # by their bits: 0.0 and -0.0 are two texts
    elif not (pa.types.is_integer(kind) or _is_text(kind)):
        raise TypeError(f"values of type {kind} are not compared")
    encoded = array.dictionary_encode()
    different = np.array([_digest(value) for value in encoded.dictionary.to_pylist()], np.uint64).reshape(-1, 2)
    if not len(different):
        return np.tile(_NULL, (len(array), 1))
    hashes: Hashes = different[pc.fill_null(encoded.indices, 0).to_numpy()]
    return hashes


def _is_text(kind: Any) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def _digest(value: Any) -> tuple[int, int]:
    data = value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else str(value).encode()
    digest = blake2b(data, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _mix(hashes: Hashes) -> Hashes:
    """Spread every bit over all: the finalizer of SplitMix64, with other constants for either half."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * _FIRST
    hashes = (hashes ^ (hashes >> np.uint64(27))) * _SECOND
    return hashes ^ (hashes >> np.uint64(31))
