import json
import math
from enum import Enum
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfabric_trainer.callbacks._sinks.records import json_line
from deepfabric_trainer.toolcalls.tables import ToolCount


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def read(line: bytes) -> Any:
    return json.loads(line, parse_constant=refuse)


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (numpy.float32(0.5), 0.5),
        (numpy.float64("nan"), "NaN"),
        (torch.tensor(3), 3),
        (torch.tensor([1.0, math.inf]), [1.0, "Infinity"]),
        (Path("a"), "a"),
        ({1: (2, {3})}, {"1": [2, [3]]}),
        (ToolCount("a", 1, 2, 3), {"name": "a", "support": 1, "called": 2, "right": 3}),
        (Colour.RED, "Colour.RED"),
        (None, None),
    ],
)
def test_writes_strict_json_of_anything(value: Any, written: Any) -> None:
    assert read(json_line({"a": value})) == {"a": written}


def test_writes_letters_as_they_are_and_ends_of_lines_as_escapes() -> None:
    line = json_line({"text": "Köln 東京\n\u2028\x85"})
    assert "Köln 東京".encode() in line
    assert len(line.decode().splitlines()) == 1
    assert read(line) == {"text": "Köln 東京\n\u2028\x85"}


def test_writes_half_a_surrogate_pair_as_an_escape() -> None:
    assert read(json_line({"text": "\ud83d é"})) == {"text": "\ud83d é"}


def test_writes_what_contains_itself() -> None:
    value: dict[str, Any] = {}
    value["me"] = value
    assert read(json_line(value))


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_what_json_holds_is_read_back_as_it_was(record: dict[str, Any]) -> None:
    line = json_line(record)
    assert line.endswith(b"\n")
    assert len(line.decode().splitlines()) == 1
    assert read(line) == record
