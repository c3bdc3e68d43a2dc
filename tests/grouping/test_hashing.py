"""Hashes of nested Arrow values: equal values, and no others, have equal hashes."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfabric_trainer.grouping.hashing import combine, hash_values

SCHEMA = pa.struct(
    {
        "name": pa.string(),
        "strict": pa.bool_(),
        "score": pa.float64(),
        "parameters": pa.struct({"required": pa.list_(pa.string()), "size": pa.int64()}),
    }
)
TOOLS = st.lists(
    st.none()
    | st.fixed_dictionaries(
        {
            "name": st.none() | st.sampled_from(["a", "b", ""]),
            "strict": st.none() | st.booleans(),
            "score": st.none() | st.sampled_from([0.5, 1.0]),
            "parameters": st.none()
            | st.fixed_dictionaries(
                {
                    "required": st.none() | st.lists(st.none() | st.sampled_from(["x", "y"]), max_size=3),
                    "size": st.none() | st.integers(0, 2),
                }
            ),
        }
    ),
    max_size=8,
)


def without_nulls(value: Any) -> Any:
    """Return a value as a hash sees it: a key that is null is not there, and a struct of nulls is a struct."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


@given(TOOLS)
def test_values_have_one_hash_exactly_when_they_are_equal(values: list[Any]) -> None:
    hashes = hash_values(pa.array(values, SCHEMA)).tolist()
    for left, left_hash in zip(values, hashes, strict=True):
        for right, right_hash in zip(values, hashes, strict=True):
            assert (left_hash == right_hash) == (without_nulls(left) == without_nulls(right))


@given(TOOLS, st.integers(0, 3))
def test_a_slice_hashes_like_its_values(values: list[Any], start: int) -> None:
    array = pa.array(values, SCHEMA)
    assert hash_values(array[start:]).tolist() == hash_values(array).tolist()[start:]


@pytest.mark.parametrize(
    "other",
    [
        pa.array(["a", None, "b", "a"], pa.large_string()),
        pa.array(["a", None, "b", "a"]).dictionary_encode(),
        pa.array(["a", None, "b", "a"], pa.string_view()),
        pa.array([b"a", None, b"b", b"a"], pa.large_binary()),
    ],
)
def test_the_way_a_text_is_stored_does_not_matter(other: pa.Array) -> None:
    assert hash_values(other).tolist() == hash_values(pa.array(["a", None, "b", "a"])).tolist()


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)])
def test_order_counts_in_a_list_and_its_kind_does_not(kind: pa.DataType) -> None:
    values = [[1, 2], [2, 1], None, [1, 2]]
    hashes = hash_values(pa.array(values, kind)).tolist()
    assert hashes == hash_values(pa.array(values, pa.list_(pa.int64()))).tolist()
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 3


def test_other_types_hash_by_value_and_those_nobody_uses_all_alike() -> None:
    pairs = pa.array([[("a", 1)], [("a", 2)], [("a", 1)], None], pa.map_(pa.string(), pa.int64()))
    first, second, third, nothing = hash_values(pairs).tolist()
    assert first == third != second
    assert nothing == 0
    days = pa.array([1, 2, 1], pa.date32())
    first, second, third = hash_values(days).tolist()
    assert first == third != second
    assert len(set(hash_values(pa.array([(1, 2, 3), (4, 5, 6)], pa.month_day_nano_interval())).tolist())) == 1


def test_hashes_are_those_of_every_process() -> None:
    # Computed once: another process, another day, another machine must come to the same.
    assert hash_values(pa.array(["weather", None])).tolist() == [6411080232645976615, 0]


def test_lists_of_different_lengths_do_not_hash_alike() -> None:
    hashes = combine(np.zeros(6, np.uint64), np.array([0, 0, 1, 3, 6]))
    assert len(set(hashes.tolist())) == 4
