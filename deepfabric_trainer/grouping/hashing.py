"""Hashes of the values of an Arrow array, a whole array at a time; equal values have equal hashes in every process.

Python's own `hash` is salted, so two processes would order the same rows differently.
"""

import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_TRUE = np.uint64(0xD6E8FEB86659FD93)
_UNKNOWN = np.uint64(0xA0761D6478BD642F)


def hash_values(array: pa.Array) -> Hashes:
    """Hash each value of an array, however nested it is.

    A null is 0 and adds nothing to what holds it, so the nulls that Arrow pads structs with make no difference. Values
    of types that rows of conversations do not have (unions, intervals) all hash alike.

    Args:
        array (`pa.Array`): N values.

    Returns:
        `np.ndarray`: [N] uint64.
    """
    array = plain_storage(array)
    if array.null_count == len(array):
        return np.zeros(len(array), np.uint64)
    if array.null_count:
        # Padded structs are mostly null: what is null is not looked at again on any level below.
        valid = pc.is_valid(array).to_numpy(zero_copy_only=False)
        hashes = np.zeros(len(array), np.uint64)
        hashes[valid] = hash_values(array.filter(pa.array(valid)))
        return hashes
    kind = array.type
    if is_text(kind):
        return _hash_texts(array)
    if pa.types.is_struct(kind):
        return _hash_structs(array)
    if is_list(kind):
        values, offsets = flatten(array)
        return combine(hash_values(values), offsets)
    return _hash_scalars(array)


def plain_storage(array: pa.Array) -> pa.Array:
    """Return an array without what `datasets` and Parquet wrap around its storage: extensions and dictionaries."""
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pa.types.is_map(array.type):
            entries = pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
            nulls = pc.is_null(array) if array.null_count else None
            array = pa.ListArray.from_arrays(array.offsets, entries, mask=nulls)
        elif pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
            array = array.cast(pa.large_string() if pa.types.is_string_view(array.type) else pa.large_binary())
        else:
            return array


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type is text or bytes."""
    return any(
        test(kind)
        for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def is_list(kind: pa.DataType) -> bool:
    """Tell whether a type is a list of any kind."""
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def flatten(array: pa.Array) -> tuple[pa.Array, Offsets]:
    """Return the items of N lists, and where each list begins and ends in them; a null list is an empty one.

    Returns:
        `tuple[pa.Array, np.ndarray]`: The items, and [N + 1] int64.
    """
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return array.flatten(), np.concatenate([[0], np.cumsum(lengths)])


def combine(hashes: Hashes, offsets: Offsets) -> Hashes:
    """Hash lists of hashes; order and length count.

    Args:
        hashes (`np.ndarray`): The items of N lists, uint64.
        offsets (`np.ndarray`): Where each begins and ends, [N + 1].

    Returns:
        `np.ndarray`: [N] uint64.
    """
    lengths = np.diff(offsets)
    if not len(hashes):
        return mix(lengths.astype(np.uint64) + np.uint64(1))
    place = np.arange(len(hashes)) - np.repeat(offsets[:-1], lengths)
    salts = mix(np.arange(1, int(lengths.max()) + 1, dtype=np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mix(hashes ^ salts[place]), dtype=np.uint64)])
    return mix(sums[offsets[1:]] - sums[offsets[:-1]] + lengths.astype(np.uint64) + np.uint64(1))


def mix(values: Hashes) -> Hashes:
    """Spread every bit of 64-bit values over all others (the finalizer of SplitMix64)."""
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def distinct_texts(array: pa.Array) -> tuple[Iterator[memoryview], npt.NDArray[np.int64]]:
    """Return the distinct texts of an array without nulls, as their bytes, and which of them each value is.

    Returns:
        `tuple[Iterator[memoryview], np.ndarray]`: The texts, read where they lie, and [N] int64.
    """
    encoded = array.dictionary_encode()
    texts = encoded.dictionary.cast(pa.large_binary())
    _, ends, data = texts.buffers()
    bounds = np.frombuffer(ends, np.int64, len(texts) + 1, texts.offset * 8)
    view = memoryview(data) if data is not None else memoryview(b"")
    pieces = (view[begin:end] for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    return pieces, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _hash_texts(array: pa.Array) -> Hashes:
    texts, numbers = distinct_texts(array)
    hashes = np.fromiter(((zlib.crc32(text) << 32 | zlib.adler32(text)) for text in texts), np.uint64)
    return mix(hashes)[numbers]


def _hash_structs(array: pa.StructArray) -> Hashes:
    hashes = np.full(len(array), _GOLDEN, np.uint64)
    for number, field in enumerate(array.type):
        values = hash_values(array.field(number))
        there = values != 0
        salt = np.uint64(zlib.crc32(field.name.encode()) << 32 | zlib.adler32(field.name.encode()))
        if there.all():
            hashes += mix(values ^ salt)
        elif there.any():
            hashes[there] += mix(values[there] ^ salt)
    return mix(hashes)


def _hash_scalars(array: pa.Array) -> Hashes:
    kind = array.type
    if pa.types.is_boolean(kind):
        return np.where(array.to_numpy(zero_copy_only=False), _TRUE, _TRUE + np.uint64(1))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers = array.to_numpy(zero_copy_only=False)
        # One width for all, so that a column's type does not matter.
        wide = numbers.astype(np.float64 if pa.types.is_floating(kind) else np.int64)
        return mix(wide.view(np.uint64))
    if pa.types.is_decimal(kind) or (pa.types.is_temporal(kind) and not pa.types.is_interval(kind)):
        return _hash_texts(array.cast(pa.string()))
    return np.full(len(array), _UNKNOWN)
