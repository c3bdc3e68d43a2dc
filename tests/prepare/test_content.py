import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.catalogue import make_rows, make_tools
from deepfabric_trainer.prepare.content import content_of
from deepfabric_trainer.rows import to_dataset

_TYPE = pa.struct(
    {
        "text": pa.string(),
        "number": pa.float64(),
        "whole": pa.int64(),
        "flag": pa.bool_(),
        "texts": pa.list_(pa.string()),
        "parts": pa.list_(pa.struct({"key": pa.string(), "more": pa.list_(pa.int32())})),
    }
)
_texts = st.none() | st.sampled_from(["", "a", "b", "ab", "é"])
_values = st.none() | st.fixed_dictionaries(
    {
        "text": _texts,
        "number": st.none() | st.sampled_from([0.0, -0.0, 1.5]),
        "whole": st.none() | st.integers(-1, 1),
        "flag": st.none() | st.booleans(),
        "texts": st.none() | st.lists(_texts, max_size=3),
        "parts": st.none()
        | st.lists(
            st.none()
            | st.fixed_dictionaries({"key": _texts, "more": st.none() | st.lists(st.integers(0, 1), max_size=2)}),
            max_size=2,
        ),
    }
)


def contents(array: pa.Array) -> list[bytes]:
    return [row.tobytes() for row in content_of(array)]


@given(st.lists(_values, max_size=12), st.integers(0, 3))
def test_values_have_one_hash_exactly_if_they_are_equal(values: list[Any], start: int) -> None:
    # Sliced arrays share their buffers with what was cut off.
    array = pa.array(values, _TYPE).slice(min(start, len(values)))
    values = array.to_pylist()
    hashes = contents(array)
    for first, hashed in zip(values, hashes, strict=True):
        for second, other in zip(values, hashes, strict=True):
            # As text: -0.0 and 0.0 are equal in Python, and are two in JSON.
            assert (json.dumps(first) == json.dumps(second)) == (hashed == other)


def test_where_a_list_ends_and_in_which_order_it_is_counts() -> None:
    kind = pa.list_(pa.list_(pa.string()))
    lists = [[["a"], ["b"]], [["b"], ["a"]], [["a", "b"]], [["a", "b"], []], [[], ["a", "b"]], [[]], [], None, [None]]
    assert len(set(contents(pa.array(lists, kind)))) == len(lists)


def test_equal_tools_have_one_hash_in_every_batch() -> None:
    rows = to_dataset(make_rows(12, catalogue=make_tools(30), tools_per_row=8))
    column = rows.data.column("tools").combine_chunks()
    known: dict[bytes, str] = {}
    for start in (0, 5):
        items = column.slice(start, 7).flatten()
        for hashed, value in zip(contents(items), items.to_pylist(), strict=True):
            assert known.setdefault(hashed, json.dumps(value)) == json.dumps(value)
    assert len(known) == len(set(known.values()))


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError, match="timestamp"):
        content_of(pa.array([{"when": 0}], pa.struct({"when": pa.timestamp("s")})))
