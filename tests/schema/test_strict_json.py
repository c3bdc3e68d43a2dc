import json
from collections import UserDict
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from deepfabric_trainer.schema.strict_json import NOT_PLAIN, NULL, NotJsonError, decode, plain, survey


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2,)), [1, [2]]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([{"a": np.array(["b"], dtype=object)}], dtype=object), [{"a": ["b"]}]),
        (np.array(1.5), 1.5),
        (np.int64(2**62), 2**62),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("日本"), "日本"),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (torch.tensor(True), True),
        (Level.HIGH, 3),
        (UserDict({"a": (1,)}), {"a": [1]}),
        (MappingProxyType({np.str_("a"): None}), {"a": None}),
        (range(3), [0, 1, 2]),
        ({"a": [{"b": np.int8(1), "c": "d"}], "e": 1}, {"a": [{"b": 1, "c": "d"}], "e": 1}),
    ],
)
def test_values_of_other_libraries_become_plain(value: Any, expected: Any) -> None:
    before = str(value)
    assert survey(value) & NOT_PLAIN
    assert json.dumps(plain(value)) == json.dumps(expected)
    assert survey(plain(value)) & NOT_PLAIN == 0
    assert str(value) == before


@pytest.mark.parametrize("value", [None, True, 1, -0.0, "日本", "", [], {}, [None, {"a": [1, "b"]}], 10**700])
def test_plain_values_are_returned_themselves(value: Any) -> None:
    assert json.dumps(plain(value)) == json.dumps(value)
    assert plain(value) is value


@pytest.mark.parametrize("value", [None, [None], {"a": None}, {"a": [1, {"b": [None]}]}])
def test_nulls_are_seen(value: Any) -> None:
    assert survey(value) == NULL


@pytest.mark.parametrize("value", [0, False, "", [], {}, {"null": "null"}])
def test_what_is_empty_is_not_null(value: Any) -> None:
    assert survey(value) == 0


def test_nulls_are_seen_beside_what_is_not_plain() -> None:
    assert survey([(1,), None]) == NULL + NOT_PLAIN


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        (float("nan"), "", "nan"),
        ({"a": [0, {"b": float("-inf")}]}, ".a[1].b", "-inf"),
        (np.array([1.0, np.nan]), "[1]", "nan"),
        ("\udc00", "", "half of a character"),
        ({"a\ud83d": 1}, "", "half of a character"),
        ({"a": {1: 2}}, ".a", "the key 1"),
        ({"a": {None: 2}}, ".a", "the key None"),
        ([b"a"], "[0]", "type bytes"),
        ([bytearray(b"a")], "[0]", "type bytearray"),
        ([memoryview(b"a")], "[0]", "type memoryview"),
        ([{1}], "[0]", "type set"),
        ([object()], "[0]", "type object"),
        ([1j], "[0]", "type complex"),
        ([np.datetime64("2025-01-01")], "[0]", "type date"),
        ([np.float64], "[0]", "type type"),
        ([10**5000], "[0]", "more than 4300 digits"),
        ([-(10**5000)], "[0]", "more than 4300 digits"),
    ],
)
def test_what_json_cannot_hold_is_named(value: Any, path: str, words: str) -> None:
    with pytest.raises(NotJsonError) as caught:
        plain(value)
    assert caught.value.path == path
    assert words in caught.value.reason == str(caught.value)


def test_numbers_of_as_many_digits_as_python_writes_are_taken() -> None:
    assert json.dumps(plain([10**4300 - 1])) == "[" + "9" * 4300 + "]"
    with pytest.raises(NotJsonError):
        plain([10**4300])


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e400", "-1e999", "9" * 5000, "[" * 10**5])
def test_what_json_text_must_not_hold_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"the text|digits"):
        decode(text)


@pytest.mark.parametrize("text", ["9007199254740993", "1.0", "-0.0", "1e+22", "100000000000000000000"])
def test_numbers_are_read_as_they_are_written(text: str) -> None:
    assert json.dumps(decode(text)) == text
