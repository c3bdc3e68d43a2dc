import datetime
import json
import pickle
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema import NullText, Repair, normalize_row
from tests.schema.rows import USER, message_of


class Role(StrEnum):
    USER = "user"


def repairs_of(message: dict[str, Any]) -> frozenset[Repair]:
    return normalize_row({"messages": [USER, message]}).repairs


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "ipython", "Critic"])
def test_roles_of_today_and_unknown_ones_are_kept(role: str) -> None:
    assert message_of({"role": role, "content": "a"}) == {"role": role, "content": "a"}
    assert not repairs_of({"role": role, "content": "a"})


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("human", "user"),
        ("Human", "user"),
        ("User", "user"),
        (" user ", "user"),
        ("SYSTEM", "system"),
        ("gpt", "assistant"),
        ("ASSISTANT", "assistant"),
        ("model", "assistant"),
        ("function", "tool"),
        ("observation", "tool"),
        ("function_response", "tool"),
        ("tool_response", "tool"),
        ("tool_result", "tool"),
        ("Tool", "tool"),
    ],
)
@pytest.mark.parametrize(
    "message",
    [
        {"role": "", "content": "a"},
        {"from": "", "value": "a"},
        {"from": "", "value": "a", "role": None, "content": None},
        {"role": "", "content": "a", "from": None, "value": None},
    ],
)
def test_role_names_of_other_formats_are_translated(name: str, role: str, message: dict[str, Any]) -> None:
    message = {key: name if value == "" else value for key, value in message.items()}
    assert message_of(message) == {"role": role, "content": "a"}
    assert repairs_of(message) == {Repair.ROLE_NAMES}


@pytest.mark.parametrize(
    ("content", "text", "repairs"),
    [
        ("a", "a", set()),
        ("日本 \n\t🙂", "日本 \n\t🙂", set()),
        ([], "", set()),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab", {Repair.CONTENT_PARTS}),
        ([{"type": "text", "text": "a", "image_url": None}], "a", {Repair.CONTENT_PARTS}),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], "ab", {Repair.CONTENT_PARTS}),
        ([{"text": "a"}, {"type": None, "text": "b"}, "c"], "abc", {Repair.CONTENT_PARTS}),
        (({"type": "text", "text": "a"},), "a", {Repair.CONTENT_PARTS, Repair.PLAIN_VALUES}),
        (np.str_("a"), "a", {Repair.PLAIN_VALUES}),
    ],
)
def test_content_is_text(content: Any, text: str, repairs: set[Repair]) -> None:
    message = {"role": "user", "content": content}
    assert message_of(message)["content"] == text
    assert type(message_of(message)["content"]) is str
    assert repairs_of(message) == repairs


@pytest.mark.parametrize("message", [{"content": None}, {}, {"value": None}])
def test_null_content_is_empty_and_known_to_have_been_null(message: dict[str, Any]) -> None:
    content = message_of({"role": "assistant", **message})["content"]
    assert content == ""
    assert isinstance(content, NullText)
    assert isinstance(pickle.loads(pickle.dumps(content)), NullText)
    assert not isinstance(message_of({"role": "assistant", "content": ""})["content"], NullText)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"grüße": [1, None]}, '{"grüße": [1, null]}'),
        ([1, 2], "[1, 2]"),
        ([], "[]"),
        ({}, "{}"),
        (["a", "b"], '["a", "b"]'),
        ([{"text": "a"}], '[{"text": "a"}]'),
        ([{"type": "text", "text": "a", "size": 1}], '[{"type": "text", "text": "a", "size": 1}]'),
        ([{"type": "city", "text": "a"}], '[{"type": "city", "text": "a"}]'),
        (3, "3"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (2**64, "18446744073709551616"),
        (True, "true"),
        (np.bool_(False), "false"),
        (np.array([1, 2]), "[1, 2]"),
        (torch.tensor(3), "3"),
        ((1, ("a",)), '[1, ["a"]]'),
    ],
)
def test_tool_results_may_be_json(content: Any, text: str) -> None:
    message = {"role": "tool", "content": content}
    assert message_of(message)["content"] == text
    assert repairs_of(message) - {Repair.PLAIN_VALUES} == {Repair.CONTENT_JSON}


def test_tool_results_may_be_text_parts() -> None:
    parts = [{"type": "text", "text": "a", "annotations": None}, {"type": "text", "text": "b"}]
    assert message_of({"role": "tool", "content": parts})["content"] == "ab"


def test_tool_results_that_are_text_are_left_alone() -> None:
    text = '{"a":  null, "b": "\\u00e9"}'
    assert message_of({"role": "tool", "content": text}) == {"role": "tool", "content": text}


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_call_id": "call_1", "name": "f"},
        {"tool_call_id": "", "name": ""},
        {"train": True},
        {"train": False},
        {"weight": 0},
        {"weight": 1},
        {"weight": 0.25},
        {"weight": 10**20},
        {"prefix": True, "metadata": {"a": [None]}},
    ],
)
def test_other_keys_are_kept(fields: dict[str, Any]) -> None:
    message = {"role": "assistant", "content": "a", **fields}
    assert json.dumps(message_of(message)) == json.dumps(message)
    assert not repairs_of(message)


@pytest.mark.parametrize("key", ["tool_call_id", "name", "train", "weight", "tool_calls", "function_call", "other"])
def test_null_keys_are_left_out(key: str) -> None:
    assert message_of({"role": "assistant", "content": "a", key: None}) == {"role": "assistant", "content": "a"}
    assert not repairs_of({"role": "assistant", "content": "a", key: None})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train", np.bool_(True), True),
        ("weight", np.int64(1), 1),
        ("weight", np.float32(0.5), 0.5),
        ("tool_call_id", np.str_("call_1"), "call_1"),
        ("name", np.str_("f"), "f"),
    ],
)
def test_values_of_numpy_become_plain(key: str, value: Any, expected: Any) -> None:
    message = {"role": "tool", "content": "a", key: value}
    assert type(message_of(message)[key]) is type(expected)  # type: ignore[literal-required]
    assert message_of(message)[key] == expected  # type: ignore[literal-required]
    assert repairs_of(message) == {Repair.PLAIN_VALUES}


def test_messages_may_be_any_mapping_and_roles_enums() -> None:
    message = message_of(MappingProxyType({"role": Role.USER, "content": "a"}))  # type: ignore[arg-type]
    assert message == {"role": "user", "content": "a"}
    assert type(message["role"]) is str


def test_a_key_of_somebody_elses_may_hold_anything() -> None:
    when = datetime.datetime(2025, 1, 1)
    assert message_of({"role": "user", "content": "a", "created": when})["created"] is when  # type: ignore[typeddict-item]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("because", "because"),
        (["a", {"thought": "b"}], "a\nb"),
        ({"style": "agent", "content": [{"step_number": 1, "thought": "a", "action": None}]}, "a"),
    ],
)
def test_a_messages_own_reasoning_has_one_name(key: str, value: Any, text: str) -> None:
    message = {"role": "assistant", "content": "a", key: value}
    assert message_of(message) == {"role": "assistant", "content": "a", "reasoning_content": text}
    assert repairs_of(message) == ({Repair.REASONING_KEYS} if key != "reasoning_content" else set())


def test_one_reasoning_under_two_names_is_one() -> None:
    message = {"role": "assistant", "content": "a", "reasoning": "because", "reasoning_content": "because"}
    assert message_of(message) == {"role": "assistant", "content": "a", "reasoning_content": "because"}


@pytest.mark.parametrize("reasoning", [None, "", [], {"style": None, "content": None}])
def test_no_reasoning_leaves_no_key(reasoning: Any) -> None:
    message = {"role": "assistant", "content": "a", "reasoning_content": reasoning, "thinking": None}
    assert message_of(message) == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("message", "path", "words"),
    [
        ("hello", "messages[1]", "type str"),
        (None, "messages[1]", "type NoneType"),
        ({"content": "a"}, "messages[1].role", "None"),
        ({"from": None, "value": "a"}, "messages[1].from", "None"),
        ({"role": "", "content": "a"}, "messages[1].role", "''"),
        ({"role": 3, "content": "a"}, "messages[1].role", "3"),
        ({"role": "user", "content": {"a": 1}}, "messages[1].content", "type dict"),
        ({"role": "user", "content": 3}, "messages[1].content", "type int"),
        ({"role": "user", "content": [3]}, "messages[1].content", "type list"),
        ({"from": "human", "value": {"a": 1}}, "messages[1].value", "type dict"),
        ({"role": "user", "content": [{"type": "image"}]}, "messages[1].content", "parts of type image"),
        ({"role": "assistant", "content": [{"type": "tool_use"}]}, "messages[1].content", "parts of type tool_use"),
        (
            {"role": "user", "content": [{"type": "image", "image": b"x"}]},
            "messages[1].content[0].image",
            "type bytes",
        ),
        ({"role": "user", "content": "cut \ud83d"}, "messages[1].content", "half of a character"),
        ({"role": "tool", "content": {"a": float("nan")}}, "messages[1].content.a", "nan"),
        ({"role": "tool", "content": datetime.date(2025, 1, 1)}, "messages[1].content", "type date"),
        ({"role": "user", "content": "a", "other": [float("nan")]}, "messages[1].other[0]", "nan"),
        ({"role": "user", "content": "a", 3: "b"}, "messages[1].3", "type int"),
        ({"role": "tool", "content": "a", "tool_call_id": 1.5}, "messages[1].tool_call_id", "type float"),
        ({"role": "tool", "content": "a", "tool_call_id": ["a"]}, "messages[1].tool_call_id", "type list"),
        ({"role": "tool", "content": "a", "name": 3}, "messages[1].name", "type int"),
        ({"role": "assistant", "content": "a", "train": 1}, "messages[1].train", "1"),
        ({"role": "assistant", "content": "a", "train": "true"}, "messages[1].train", "'true'"),
        ({"role": "assistant", "content": "a", "weight": True}, "messages[1].weight", "True"),
        ({"role": "assistant", "content": "a", "weight": "1"}, "messages[1].weight", "'1'"),
        ({"role": "assistant", "content": "a", "weight": -0.5}, "messages[1].weight", "-0.5"),
        ({"role": "assistant", "content": "a", "weight": float("nan")}, "messages[1].weight", "nan"),
        ({"role": "assistant", "content": "a", "weight": float("inf")}, "messages[1].weight", "inf"),
        ({"role": "assistant", "content": "a", "reasoning": 3}, "messages[1].reasoning", "type int"),
        ({"role": "assistant", "reasoning": "a", "thinking": "b"}, "messages[1].thinking", "differs"),
        ({"role": "assistant", "content": "a", "thinking": [{"x": 1}]}, "messages[1].thinking[0]", "without a text"),
        ({"role": "assistant", "content": "a", "reasoning": "\ud83d"}, "messages[1].reasoning", "half of a"),
    ],
)
def test_what_cannot_be_read_is_named(message: Any, path: str, words: str) -> None:
    with pytest.raises(DataFormatError) as caught:
        normalize_row({"messages": [USER, message]})
    assert caught.value.path == path
    assert words in caught.value.found
    assert caught.value.expected
    assert caught.value.fix


@pytest.mark.parametrize("kind", ["tool_use", "tool_result", "tool_call", "function_call"])
def test_parts_that_are_calls_are_told_where_they_go(kind: str) -> None:
    with pytest.raises(DataFormatError, match="as the `tool_calls` of the message"):
        message_of({"role": "assistant", "content": [{"type": kind, "name": "f", "input": {}}]})


def test_parts_are_named_only_where_there_are_any() -> None:
    with pytest.raises(DataFormatError) as caught:
        message_of({"role": "user", "content": [3]})
    assert caught.value.found == "the content is of type list"
