import copy
import json
from typing import Any

import pytest
from datasets import Dataset

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema import Repair, normalize_row

USER = {"role": "user", "content": "Weather in Paris?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}},
    },
}
OTHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_stock",
        "parameters": {"type": "object", "properties": {"ticker": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def arguments_of(row: dict[str, Any]) -> Any:
    return normalize_row(row).messages[-1]["tool_calls"][0]["function"]["arguments"]


def test_the_row_itself_is_not_changed() -> None:
    row = {"messages": [USER, call("get_weather", '{"city": "Paris"}')], "tools": [TOOL]}
    before = copy.deepcopy(row)
    normalized = normalize_row(row)
    normalized.messages[1]["content"] = "changed"
    assert normalized.tools is not None
    normalized.tools[0]["function"]["parameters"]["properties"].clear()
    assert row == before


@pytest.mark.parametrize(
    "arguments",
    [{"city": "Köln"}, '{"city": "Köln"}', '{"city":"K\\u00f6ln"}'],
    ids=["object", "json", "escaped json"],
)
def test_arguments_come_out_as_an_object_in_whatever_form_they_came(arguments: Any) -> None:
    assert arguments_of({"messages": [USER, call("get_weather", arguments)], "tools": [TOOL]}) == {"city": "Köln"}


@pytest.mark.parametrize(
    "value", [{"a": 1, "b": 1.0, "c": [None, {"d": None}], "e": 10**20, "f": True, "g": "日本 \n\t"}]
)
def test_json_arguments_are_kept_to_the_last_null(value: dict[str, Any]) -> None:
    decoded = arguments_of({"messages": [USER, call("unknown", json.dumps(value))], "tools": [TOOL]})
    assert json.dumps(decoded) == json.dumps(value)


def test_null_arguments_are_kept_where_the_tool_declares_them_and_dropped_where_it_does_not() -> None:
    arguments = {"city": None, "ticker": None}
    row = {"messages": [USER, call("get_weather", arguments)], "tools": [TOOL]}
    assert arguments_of(row) == {"city": None}
    assert Repair.ARGUMENT_NULLS in normalize_row(row).repairs


def test_null_arguments_in_json_text_are_all_kept() -> None:
    row = {"messages": [USER, call("get_weather", '{"city": null, "ticker": null}')], "tools": [TOOL]}
    assert arguments_of(row) == {"city": None, "ticker": None}


def test_null_arguments_without_a_schema_are_kept() -> None:
    assert arguments_of({"messages": [USER, call("get_weather", {"x": None})]}) == {"x": None}


def test_nulls_are_told_apart_inside_nested_arguments() -> None:
    tool = copy.deepcopy(TOOL)
    tool["function"]["parameters"]["properties"] = {
        "filters": {"type": "array", "items": {"type": "object", "properties": {"field": {}, "value": {}}}},
        "extra": {"type": "object"},
    }
    arguments = {
        "filters": [{"field": "a", "value": None, "padding": None}],
        "extra": {"anything": None},
    }
    row = {"messages": [USER, call("get_weather", arguments)], "tools": [tool]}
    assert arguments_of(row) == {"filters": [{"field": "a", "value": None}], "extra": {"anything": None}}


def test_rows_that_went_through_arrow_come_back_as_they_were() -> None:
    rows = [
        {"messages": [USER, call("get_weather", {"city": "Paris"})], "tools": [TOOL]},
        {"messages": [USER, call("get_stock", {"ticker": "ACME", "days": 3})], "tools": [OTHER_TOOL]},
    ]
    padded = Dataset.from_list(rows)[0]
    assert "ticker" in padded["tools"][0]["function"]["parameters"]["properties"], "Arrow pads structs"
    repaired = normalize_row(padded)
    assert repaired.tools == normalize_row(rows[0]).tools == [TOOL]
    assert repaired.messages == normalize_row(rows[0]).messages
    assert repaired.repairs == {Repair.SCHEMA_NULLS, Repair.ARGUMENT_NULLS}


def test_a_null_default_is_kept_unless_arrow_put_it_there() -> None:
    tool = copy.deepcopy(TOOL)
    tool["function"]["parameters"]["properties"] = {
        "nullable": {"type": ["string", "null"], "default": None},
        "chosen": {"enum": ["a", None]},
        "plain": {"type": "string", "default": None},
    }
    clean = normalize_row({"messages": [USER], "tools": [tool]})
    assert clean.tools == [tool]
    tool["function"]["parameters"]["properties"]["padding"] = None
    properties = normalize_row({"messages": [USER], "tools": [tool]}).tools[0]["function"]["parameters"]["properties"]  # type: ignore[index]
    assert properties == {
        "nullable": {"type": ["string", "null"], "default": None},
        "chosen": {"enum": ["a", None]},
        "plain": {"type": "string"},
    }


def test_a_property_named_like_a_keyword_is_cleaned_like_any_other() -> None:
    tool = copy.deepcopy(TOOL)
    tool["function"]["parameters"]["properties"] = {"default": None, "enum": {"type": "string", "title": None}}
    properties = normalize_row({"messages": [USER], "tools": [tool]}).tools[0]["function"]["parameters"]["properties"]  # type: ignore[index]
    assert properties == {"enum": {"type": "string"}}


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        TOOL,
        json.dumps(TOOL),
        [TOOL["function"]],
        [{"type": "function", **TOOL["function"]}],  # type: ignore[dict-item]
    ],
    ids=["list", "json", "list of json", "object", "json object", "bare function", "flat"],
)
def test_tools_come_out_in_one_form(tools: Any) -> None:
    assert normalize_row({"messages": [USER], "tools": tools}).tools == [TOOL]


def test_a_description_that_is_no_text_is_left_out() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": None}}
    assert normalize_row({"messages": [USER], "tools": json.dumps([tool])}).tools == [
        {"type": "function", "function": {"name": "f"}}
    ]


@pytest.mark.parametrize("tools", [None, [], "", "[]", "null"])
def test_no_tools_are_none(tools: Any) -> None:
    assert normalize_row({"messages": [USER], "tools": tools}).tools is None


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
        {"role": "assistant", "content": "", "tool_calls": '[{"name": "f", "arguments": {"a": 1}}]'},
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
    ],
    ids=["flat", "json", "legacy", "sharegpt"],
)
def test_calls_come_out_in_one_form(message: dict[str, Any]) -> None:
    normalized = normalize_row({"messages": [USER, message]}).messages[1]
    assert normalized == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, ""), ("a", "a"), ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"), ([], "")],
)
def test_content_is_text(content: Any, text: str) -> None:
    assert normalize_row({"messages": [{"role": "user", "content": content}]}).messages[0]["content"] == text


def test_tool_results_may_be_json() -> None:
    row = {"messages": [USER, {"role": "tool", "content": {"grüße": [1, None]}}]}
    assert normalize_row(row).messages[1]["content"] == '{"grüße": [1, null]}'


def test_sharegpt_roles_are_translated() -> None:
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    normalized = normalize_row(row)
    assert [(message["role"], message["content"]) for message in normalized.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
    ]
    assert normalized.repairs == {Repair.ROLE_NAMES}


@pytest.mark.parametrize(
    ("reasoning", "text"),
    [
        ("think", "think"),
        ({"style": "freetext", "content": "think"}, "think"),
        ({"style": "agent", "content": [{"step_number": 1, "thought": "a"}, {"thought": "b", "action": "x"}]}, "a\nb"),
        ({"style": "steps", "content": ["a", "b"]}, "a\nb"),
    ],
)
def test_the_reasoning_column_becomes_text(reasoning: Any, text: str) -> None:
    normalized = normalize_row({"messages": [USER], "reasoning": reasoning})
    assert normalized.reasoning is not None
    assert normalized.reasoning.text == text


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_messages_own_reasoning_has_one_name(key: str) -> None:
    message = {"role": "assistant", "content": "a", key: "because"}
    assert normalize_row({"messages": [USER, message]}).messages[1]["reasoning_content"] == "because"


@pytest.mark.parametrize(
    ("row", "path", "words"),
    [
        ({"text": "a"}, "messages", "only `text`"),
        ({"messages": None}, "messages", "null"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": ["hello"]}, "messages[0]", "type str"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "None"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages[0].content", "type dict"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content",
            "parts of type image",
        ),
        ({"messages": [{**USER, "tool_calls": [{"name": "f"}]}]}, "messages[0].tool_calls", "role 'user'"),
        ({"messages": [USER, call("f", "{oops")]}, "messages[1].tool_calls[0].function.arguments", "not JSON"),
        ({"messages": [USER, call("f", '{"a": NaN}')]}, "messages[1].tool_calls[0].function.arguments", "NaN"),
        ({"messages": [USER, call("f", '{"a": 1e400}')]}, "messages[1].tool_calls[0].function.arguments", "1e400"),
        (
            {"messages": [USER, call("f", {"a": [float("inf")]})]},
            "messages[1].tool_calls[0].function.arguments.a[0]",
            "inf",
        ),
        ({"messages": [{"role": "user", "content": "cut \ud83d"}]}, "messages[0].content", "half of a character"),
        ({"messages": [USER, call("f", "[1]")]}, "messages[1].tool_calls[0].function.arguments", "type list"),
        ({"messages": [USER, call("", {})]}, "messages[1].tool_calls[0].function.name", "''"),
        ({"messages": [USER], "tools": "{oops"}, "tools", "not JSON"),
        ({"messages": [USER], "tools": 3}, "tools", "type int"),
        ({"messages": [USER], "tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "None"),
    ],
)
def test_what_cannot_be_read_is_named(row: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(DataFormatError) as caught:
        normalize_row(row)
    assert caught.value.path == path
    assert words in caught.value.found
