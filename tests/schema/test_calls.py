import json
from typing import Any

import numpy as np
import pytest

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema import Repair, normalize_row
from tests.schema.rows import TOOL, USER, arguments_of, call, message_of

CALL = {"name": "f", "arguments": {"a": 1}}
NORMALIZED = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
SHAPE, JSON = Repair.CALL_SHAPE, Repair.ARGUMENTS_JSON


@pytest.mark.parametrize(
    ("fields", "repairs"),
    [
        ({"tool_calls": [NORMALIZED]}, set()),
        ({"tool_calls": [{"function": CALL}]}, set()),
        ({"tool_calls": [{"function": CALL, "type": None, "id": None, "index": 0}]}, set()),
        ({"tool_calls": NORMALIZED}, set()),
        ({"tool_calls": [NORMALIZED], "function_call": None}, set()),
        ({"tool_calls": (NORMALIZED,)}, {Repair.PLAIN_VALUES}),
        ({"tool_calls": np.array([NORMALIZED], dtype=object)}, {Repair.PLAIN_VALUES}),
        ({"tool_calls": [CALL]}, {SHAPE}),
        ({"tool_calls": [{**CALL, "function": None}]}, {SHAPE}),
        ({"tool_calls": [{"type": "function_call", "name": "f", "arguments": '{"a": 1}'}]}, {SHAPE, JSON}),
        ({"tool_calls": [{"type": "tool_use", "name": "f", "input": {"a": 1}}]}, {SHAPE}),
        ({"tool_calls": [{"name": "f", "parameters": {"a": 1}, "arguments": None}]}, {SHAPE}),
        ({"tool_calls": [{"name": "f", "args": {"a": 1}}]}, {SHAPE}),
        ({"tool_calls": [{"function": {"name": "f", "parameters": {"a": 1}}}]}, {SHAPE}),
        ({"tool_calls": [{"function": "f", "arguments": {"a": 1}}]}, {SHAPE}),
        ({"tool_calls": [{"function": json.dumps(CALL)}]}, set()),
        ({"tool_calls": json.dumps([CALL])}, {SHAPE}),
        ({"tool_calls": json.dumps(NORMALIZED)}, set()),
        ({"tool_calls": [json.dumps(CALL)]}, {SHAPE}),
        ({"function_call": {"name": "f", "arguments": '{"a": 1}'}}, {SHAPE, JSON}),
        ({"function_call": json.dumps(CALL)}, {SHAPE}),
        ({"function_call": CALL, "tool_calls": []}, {SHAPE}),
        ({"tool_calls": [NORMALIZED], "function_call": {"name": None, "arguments": None}}, set()),
    ],
)
def test_calls_come_out_in_one_form(fields: dict[str, Any], repairs: set[Repair]) -> None:
    conversation = normalize_row({"messages": [USER, {"role": "assistant", "content": "", **fields}]})
    assert conversation.messages[1] == {"role": "assistant", "content": "", "tool_calls": [NORMALIZED]}
    assert conversation.repairs == repairs


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tool_calls": None},
        {"tool_calls": []},
        {"tool_calls": ()},
        {"tool_calls": ""},
        {"tool_calls": " "},
        {"tool_calls": "[]"},
        {"tool_calls": "null"},
        {"tool_calls": {}},
        {"function_call": None},
        {"function_call": ""},
        {"function_call": {"name": None, "arguments": None}},
        {"tool_calls": None, "function_call": None},
    ],
)
def test_no_calls_leave_no_key(fields: dict[str, Any]) -> None:
    assert message_of({"role": "assistant", "content": "a", **fields}) == {"role": "assistant", "content": "a"}
    assert message_of({"role": "user", "content": "a", **fields}) == {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("ids", "expected", "repairs"),
    [
        ({"id": "call_1"}, "call_1", set()),
        ({"id": 7}, "7", {Repair.CALL_IDS}),
        ({"id": np.int64(7)}, "7", {Repair.CALL_IDS, Repair.PLAIN_VALUES}),
        ({"id": "fc_1", "call_id": "call_1"}, "call_1", set()),
        ({"id": "call_1", "call_id": None}, "call_1", set()),
    ],
)
def test_ids_are_text(ids: dict[str, Any], expected: str, repairs: set[Repair]) -> None:
    conversation = normalize_row(
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": CALL, **ids}]}]}
    )
    assert conversation.messages[1]["tool_calls"] == [{**NORMALIZED, "id": expected}]
    assert conversation.repairs == repairs


@pytest.mark.parametrize(
    ("arguments", "repairs"),
    [
        ({"city": "Köln"}, set()),
        ('{"city": "Köln"}', {JSON}),
        ('{"city":"K\\u00f6ln"}', {JSON}),
        (json.dumps('{"city": "Köln"}'), {JSON, Repair.ARGUMENTS_JSON_TWICE}),
        (json.dumps(json.dumps('{"city": "Köln"}')), {JSON, Repair.ARGUMENTS_JSON_TWICE}),
    ],
    ids=["object", "json", "escaped json", "json twice", "json three times"],
)
def test_arguments_come_out_as_an_object_in_whatever_form_they_came(arguments: Any, repairs: set[Repair]) -> None:
    row = {"messages": [USER, call("get_weather", arguments)], "tools": [TOOL]}
    assert arguments_of(row) == {"city": "Köln"}
    assert normalize_row(row).repairs == repairs


@pytest.mark.parametrize("arguments", [None, "", " ", "null", '""', [], "[]"])
def test_empty_arguments_are_an_empty_object(arguments: Any) -> None:
    row = {"messages": [USER, call("get_weather", arguments)]}
    assert arguments_of(row) == {}
    assert Repair.ARGUMENTS_EMPTY in normalize_row(row).repairs


@pytest.mark.parametrize("arguments", [{}, "{}"])
def test_an_empty_object_is_no_repair(arguments: Any) -> None:
    row = {"messages": [USER, call("get_weather", arguments)]}
    assert arguments_of(row) == {}
    assert Repair.ARGUMENTS_EMPTY not in normalize_row(row).repairs


@pytest.mark.parametrize(
    "value", ['{"a": -0.0, "b": 1.0, "c": 9007199254740993, "d": 1e-7, "e": [null, {"f": null}]}']
)
def test_numbers_and_nulls_of_json_text_come_out_as_they_went_in(value: str) -> None:
    assert json.dumps(arguments_of({"messages": [USER, call("f", value)]})) == value.replace("1e-7", "1e-07")


@pytest.mark.parametrize("role", ["function_call", "tool_call", "Function_Call"])
@pytest.mark.parametrize("value", [CALL, json.dumps(CALL), [CALL], json.dumps([CALL])])
@pytest.mark.parametrize("keys", [("from", "value"), ("role", "content")])
def test_messages_that_are_calls_become_assistant_messages(role: str, value: Any, keys: tuple[str, str]) -> None:
    message = {keys[0]: role, keys[1]: value, "weight": 0}
    assert message_of(message) == {"role": "assistant", "content": "", "weight": 0, "tool_calls": [NORMALIZED]}


def test_calls_that_came_one_by_one_are_one_turn() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Both?"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
            {"from": "function_call", "value": '[{"name": "g", "arguments": {}}]'},
            {"from": "observation", "value": "1"},
            {"from": "observation", "value": "2"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        ]
    }
    conversation = normalize_row(row)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [each["function"]["name"] for each in conversation.messages[1]["tool_calls"]] == ["f", "g"]
    assert Repair.CALLS_MERGED in conversation.repairs


def test_legacy_calls_that_came_one_by_one_are_one_turn_with_its_text() -> None:
    first = {"role": "assistant", "content": "Both.", "reasoning_content": "Hm.", "function_call": CALL}
    second = {"role": "assistant", "content": "", "function_call": CALL}
    messages = normalize_row({"messages": [USER, first, second, {"role": "function", "name": "f", "content": "1"}]})
    assert messages.messages[1] == {
        "role": "assistant",
        "content": "Both.",
        "reasoning_content": "Hm.",
        "tool_calls": [NORMALIZED, NORMALIZED],
    }
    assert messages.messages[2] == {"role": "tool", "name": "f", "content": "1"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"content": "Let me see."}, {"function_call": CALL}),
        ({"tool_calls": [CALL]}, {"tool_calls": [CALL]}),
        ({"tool_calls": [CALL]}, {"function_call": CALL}),
        ({"function_call": CALL}, {"tool_calls": [CALL]}),
        ({"function_call": CALL}, {"function_call": CALL, "content": "And this."}),
        ({"function_call": CALL}, {"function_call": CALL, "reasoning_content": "Hm."}),
        ({"function_call": CALL, "train": False}, {"function_call": CALL, "train": True}),
        ({"function_call": CALL}, {"function_call": CALL, "weight": 0}),
        ({"function_call": CALL}, {"function_call": {"name": None, "arguments": None}}),
        ({"function_call": {"name": None, "arguments": None}}, {"function_call": CALL}),
    ],
)
def test_turns_of_their_own_are_not_merged(first: dict[str, Any], second: dict[str, Any]) -> None:
    messages = [USER, {"role": "assistant", **first}, {"role": "assistant", **second}]
    conversation = normalize_row({"messages": messages})
    assert len(conversation.messages) == 3
    assert Repair.CALLS_MERGED not in conversation.repairs


ARGUMENTS = "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("message", "path", "words"),
    [
        (call("f", "{oops"), ARGUMENTS, "not JSON"),
        (call("f", '"Paris"'), ARGUMENTS, "not JSON"),
        (call("f", "{'a': 1}"), ARGUMENTS, "not JSON"),
        (call("f", '{"a": NaN}'), ARGUMENTS, "NaN"),
        (call("f", '{"a": 1e400}'), ARGUMENTS, "1e400"),
        (call("f", '{"a": ' + "9" * 5000 + "}"), ARGUMENTS, "digits"),
        (call("f", "[" * 100_000), ARGUMENTS, "nested too deeply"),
        (call("f", '{"a": "\\ud83d"}'), f"{ARGUMENTS}.a", "half of a character"),
        (call("f", {"a": [float("inf")]}), f"{ARGUMENTS}.a[0]", "inf"),
        (call("f", {"a": 10**5000}), f"{ARGUMENTS}.a", "digits"),
        (call("f", "[1]"), ARGUMENTS, "type list"),
        (call("f", 3), ARGUMENTS, "type int"),
        (call("", {}), "messages[1].tool_calls[0].function.name", "''"),
        (call("f", {"a": b"x"}), f"{ARGUMENTS}.a", "type bytes"),
        ({"role": "assistant", "tool_calls": 3}, "messages[1].tool_calls", "type int"),
        ({"role": "assistant", "tool_calls": '"f(a=1)"'}, "messages[1].tool_calls", "type str"),
        ({"role": "assistant", "tool_calls": "{oops"}, "messages[1].tool_calls", "not JSON"),
        ({"role": "assistant", "tool_calls": [None]}, "messages[1].tool_calls[0]", "type NoneType"),
        ({"role": "assistant", "tool_calls": [{"name": 3}]}, "messages[1].tool_calls[0].name", "3"),
        ({"role": "assistant", "tool_calls": [{**CALL, "input": 1, "arguments": None}]}, None, "type int"),
        (
            {"role": "assistant", "tool_calls": [{"function": CALL, "id": 1.5}]},
            "messages[1].tool_calls[0].id",
            "float",
        ),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": True}]}, "messages[1].tool_calls[0].id", "bool"),
        ({"role": "assistant", "function_call": "f(a=1)"}, "messages[1].function_call", "not JSON"),
        ({"role": "assistant", "function_call": {"arguments": "{}"}}, "messages[1].function_call.name", "None"),
        (
            {"role": "assistant", "tool_calls": [CALL], "function_call": CALL},
            "messages[1].function_call",
            "in `tool_calls` and in `function_call`",
        ),
        ({"role": "user", "tool_calls": [CALL]}, "messages[1].tool_calls", "role 'user'"),
        ({"role": "user", "function_call": CALL}, "messages[1].function_call", "role 'user'"),
        ({"from": "function_call", "value": ""}, "messages[1].value", "empty"),
        ({"role": "function_call"}, "messages[1].content", "empty"),
        ({"from": "function_call", "value": "f(a=1)"}, "messages[1].value", "not JSON"),
        ({"from": "function_call", "value": '[{"a": 1}]'}, "messages[1].value[0].name", "None"),
    ],
)
def test_what_cannot_be_read_is_named(message: dict[str, Any], path: str | None, words: str) -> None:
    with pytest.raises(DataFormatError) as caught:
        normalize_row({"messages": [USER, message]})
    assert caught.value.path == (path or "messages[1].tool_calls[0].input")
    assert words in caught.value.found
    assert caught.value.expected
    assert caught.value.fix


def test_errors_show_the_beginning_of_a_long_text() -> None:
    with pytest.raises(DataFormatError, match="oops") as caught:
        normalize_row({"messages": [USER, call("f", "{oops" * 1000)]})
    assert len(caught.value.found) < 200
