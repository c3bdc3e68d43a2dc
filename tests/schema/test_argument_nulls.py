"""Nulls in the arguments of calls: meant by somebody, or put there by Arrow."""

import copy
import json
from typing import Any

import pytest
from datasets import Dataset

from deepfabric_trainer.schema import Repair, normalize_row
from tests.schema.rows import OTHER_TOOL, TOOL, USER, arguments_of, call, tool_with


def kept(arguments: dict[str, Any], parameters: Any) -> Any:
    """Normalize a call as JSON has it: the keys of its messages differ."""
    return arguments_of({"messages": [USER, call("get_weather", arguments)], "tools": [tool_with(parameters)]})


def kept_of_structs(arguments: dict[str, Any], parameters: Any) -> Any:
    """Normalize a call as Arrow has it: all messages have the same keys."""
    messages = [{**USER, "tool_calls": None}, call("get_weather", arguments)]
    return arguments_of({"messages": messages, "tools": [tool_with(parameters)]})


def test_null_arguments_are_kept_where_the_tool_declares_them_and_dropped_where_it_does_not() -> None:
    row = {"messages": [USER, call("get_weather", {"city": None, "ticker": None})], "tools": [TOOL]}
    assert arguments_of(row) == {"city": None}
    assert normalize_row(row).repairs == {Repair.ARGUMENT_NULLS}


@pytest.mark.parametrize("messages_as_text", [True, False])
def test_null_arguments_in_json_text_are_all_kept(messages_as_text: bool) -> None:
    arguments = {"city": None, "ticker": None, "deep": [{"x": None}]}
    messages: Any = [{**USER, "tool_calls": None}, call("get_weather", arguments)]
    if messages_as_text:
        messages = json.dumps(messages)
    else:
        messages[1]["tool_calls"][0]["function"]["arguments"] = json.dumps(arguments)
    assert arguments_of({"messages": messages, "tools": [TOOL]}) == arguments


@pytest.mark.parametrize(
    "calls",
    [
        '[{"name": "get_weather", "arguments": {"ticker": null}}]',
        ['{"name": "get_weather", "arguments": {"ticker": null}}'],
        [{"function": '{"name": "get_weather", "arguments": {"ticker": null}}'}],
    ],
)
def test_null_arguments_in_calls_that_are_json_text_are_kept(calls: Any) -> None:
    row = {"messages": [USER, {"role": "assistant", "tool_calls": calls}], "tools": [TOOL]}
    assert arguments_of(row) == {"ticker": None}


def test_null_arguments_of_a_sharegpt_call_are_kept() -> None:
    message = {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"ticker": null}}'}
    assert arguments_of({"conversations": [message], "tools": [TOOL]}) == {"ticker": None}


@pytest.mark.parametrize("tools", [None, [OTHER_TOOL]])
def test_null_arguments_of_unlisted_tools_are_kept_unless_they_are_likely_to_be_padding(tools: Any) -> None:
    messages = [USER, call("get_weather", {"x": None, "y": {"z": None}, "city": "Paris"})]
    assert arguments_of({"messages": messages, "tools": tools}) == {"x": None, "y": {"z": None}, "city": "Paris"}
    messages = [{**USER, "tool_calls": None}, messages[1]]
    assert arguments_of({"messages": messages, "tools": tools}) == {"y": {}, "city": "Paris"}


CITY = {"type": "object", "properties": {"city": {}}}


@pytest.mark.parametrize(
    ("parameters", "arguments", "expected"),
    [
        pytest.param({}, {"a": None}, {}, id="no schema"),
        pytest.param({"type": "object"}, {"a": None}, {}, id="no properties"),
        pytest.param({"type": "object", "properties": {}}, {"a": None}, {}, id="empty properties"),
        pytest.param(CITY, {"city": None, "a": None}, {"city": None}, id="declared"),
        pytest.param({"city": {"type": "str"}}, {"city": None, "a": None}, {"city": None}, id="properties only"),
        pytest.param([{"name": "city"}, {}, 3], {"city": None, "a": None}, {"city": None}, id="list"),
        pytest.param({**CITY, "additionalProperties": False}, {"a": None}, {}, id="closed"),
        pytest.param({**CITY, "additionalProperties": True}, {"a": None}, {"a": None}, id="open"),
        pytest.param({**CITY, "additionalProperties": {"type": "string"}}, {"a": None}, {"a": None}, id="map"),
        pytest.param({"patternProperties": {"^x_": {}}}, {"x_a": None, "a": None}, {"x_a": None}, id="pattern"),
        pytest.param(
            {"properties": {"o": {"patternProperties": {"x": {}}}}}, {"o": {"a": None}}, {"o": {}}, id="nested"
        ),
        pytest.param({"patternProperties": {"(": {}}}, {"a": None}, {}, id="pattern that is none"),
        pytest.param(
            {"anyOf": [CITY, {"properties": {"b": {}}}]}, {"city": None, "b": None, "a": None}, None, id="any"
        ),
        pytest.param(
            {"allOf": [CITY, {"properties": {"b": {}}}]}, {"city": None, "b": None, "a": None}, None, id="all"
        ),
        pytest.param(
            {"if": {}, "then": CITY, "else": {"properties": {"b": {}}}}, {"city": None, "b": None}, None, id="if"
        ),
        pytest.param({"$ref": "#/$defs/C", "$defs": {"C": CITY}}, {"city": None, "a": None}, {"city": None}, id="ref"),
        pytest.param(
            {"properties": {"at": {"$ref": "#/definitions/C~1D"}}, "definitions": {"C/D": CITY}},
            {"at": {"city": None, "a": None}},
            {"at": {"city": None}},
            id="nested ref",
        ),
        pytest.param(
            {"properties": {"next": {"$ref": "#"}, "value": {}}},
            {"next": {"next": {"value": None, "a": None}, "b": None}},
            {"next": {"next": {"value": None}}},
            id="recursive ref",
        ),
        pytest.param(
            {"properties": {"at": {"$ref": "x.json"}}}, {"at": {"a": None}}, {"at": {"a": None}}, id="far ref"
        ),
        pytest.param({"$ref": "#"}, {"a": None, "b": 1}, {"b": 1}, id="ref to itself"),
        pytest.param({"anyOf": [{"$ref": "#"}] * 9}, {"a": None, "b": 1}, {"b": 1}, id="many refs to itself"),
        pytest.param(
            {"properties": {"all": {"type": "array", "items": CITY}}},
            {"all": [{"city": None, "a": None}, None, {"city": "b"}]},
            {"all": [{"city": None}, None, {"city": "b"}]},
            id="array",
        ),
        pytest.param(
            {"properties": {"all": {"prefixItems": [CITY], "items": {"properties": {"b": {}}}}}},
            {"all": [{"city": None, "b": None}, {"city": None, "b": None}]},
            {"all": [{"city": None}, {"b": None}]},
            id="prefix items",
        ),
        pytest.param(
            {"properties": {"all": {"items": {"items": CITY}}}},
            {"all": [[{"city": None, "a": None}]]},
            {"all": [[{"city": None}]]},
            id="arrays in arrays",
        ),
        pytest.param({"properties": {"any": {}}}, {"any": {"a": None}}, {"any": {"a": None}}, id="free object"),
        pytest.param({"properties": {"any": True}}, {"any": [{"a": None}]}, {"any": [{"a": None}]}, id="true"),
        pytest.param(
            {"properties": {"map": {"additionalProperties": CITY}}},
            {"map": {"x": {"city": None, "a": None}}},
            {"map": {"x": {"city": None}}},
            id="map of objects",
        ),
    ],
)
def test_a_null_is_kept_where_the_schema_declares_it(parameters: Any, arguments: Any, expected: Any) -> None:
    before = copy.deepcopy(arguments)
    expected = {key: None for key in arguments if key != "a"} if expected is None else expected
    assert json.dumps(kept(arguments, parameters)) == json.dumps(expected)
    assert arguments == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer"},
        {"type": ["integer", "string"]},
        {"enum": ["a", "b"]},
        {"const": 1},
        {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        {"$ref": "#/$defs/Number"},
        {"type": "integer", "default": None},
    ],
)
def test_a_null_that_its_optional_property_forbids_is_padding_in_rows_of_structs(schema: dict[str, Any]) -> None:
    parameters = {"properties": {"city": {"type": "string"}, "days": schema}, "$defs": {"Number": {"type": "number"}}}
    arguments = {"city": "Paris", "days": None}
    assert kept(arguments, parameters) == arguments
    assert kept_of_structs(arguments, {**parameters, "required": ["days"]}) == arguments
    assert kept_of_structs(arguments, {**parameters, "required": ["city"]}) == {"city": "Paris"}
    assert kept_of_structs(arguments, parameters) == {"city": "Paris"}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        {"description": "How many."},
        {"type": ["integer", "null"]},
        {"type": "INTEGER", "nullable": True},
        {"enum": ["a", None]},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        {"$ref": "#/$defs/Unknown"},
    ],
)
def test_a_null_that_its_property_admits_is_kept_in_rows_of_structs_too(schema: Any) -> None:
    assert kept_of_structs({"days": None}, {"properties": {"days": schema}, "required": []}) == {"days": None}


def test_optional_nulls_are_told_apart_inside_objects_and_arrays() -> None:
    item = {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a"]}
    parameters = {
        "properties": {"all": {"items": item}, "one": item, "map": {"additionalProperties": {"type": "string"}}}
    }
    arguments = {
        "all": [{"a": None, "b": None}, {"a": "x", "b": "y"}],
        "one": {"a": None, "b": None},
        "map": {"x": "1", "y": None},
    }
    assert kept(arguments, parameters) == arguments
    assert kept_of_structs(arguments, parameters) == {
        "all": [{"a": None}, {"a": "x", "b": "y"}],
        "one": {"a": None},
        "map": {"x": "1"},
    }


def test_nulls_of_free_objects_are_padding_in_rows_of_structs() -> None:
    assert kept_of_structs({"any": {"a": None, "b": 1}}, {"properties": {"any": {"type": "object"}}}) == {
        "any": {"b": 1}
    }
    assert kept_of_structs({"a": None, "b": 1}, {"properties": {}, "additionalProperties": True}) == {"b": 1}


def test_calls_with_different_arguments_were_not_stored_as_structs() -> None:
    parameters = {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    messages = [{**USER, "tool_calls": None}, call("get_weather", {"city": "Paris"})]
    messages.append(call("get_weather", {"city": "Paris", "days": None}))
    row = {"messages": messages, "tools": [tool_with(parameters)]}
    assert arguments_of(row) == {"city": "Paris", "days": None}
    messages[1] = call("get_weather", {"city": "Paris", "days": 3})
    assert arguments_of(row) == {"city": "Paris"}


def test_optional_arguments_that_another_call_had_do_not_come_back_as_nulls() -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"type": ["string", "null"]}},
        "required": ["city"],
    }
    tools = [tool_with(parameters), OTHER_TOOL]
    rows = [
        {"messages": [USER, call("get_weather", arguments)], "tools": tools}
        for arguments in ({"city": "Paris", "unit": None}, {"city": "Rome", "days": 3, "unit": "F"})
    ]
    rows.append({"messages": [USER, call("get_stock", {"ticker": "ACME"})], "tools": tools})
    stored = Dataset.from_list(rows)
    assert stored[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]["days"] is None
    for row, padded in zip(rows, stored, strict=True):
        assert normalize_row(padded).messages == normalize_row(row).messages
    assert normalize_row(stored[0]).repairs >= {Repair.OPTIONAL_NULLS, Repair.ARGUMENT_NULLS}
