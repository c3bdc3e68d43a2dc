import copy
import json
from typing import Any

import numpy as np
import pytest

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema import Repair, normalize_row
from tests.schema.rows import OTHER_TOOL, TOOL, USER, tools_of

FUNCTION: dict[str, Any] = TOOL["function"]  # type: ignore[assignment]
PARAMETERS = FUNCTION["parameters"]
NAMELESS = {key: value for key, value in FUNCTION.items() if key != "name"}


def repairs_of(tools: Any) -> frozenset[Repair]:
    return normalize_row({"messages": [USER], "tools": tools}).repairs


@pytest.mark.parametrize(
    ("tools", "repairs"),
    [
        ([TOOL], set()),
        ((TOOL,), {Repair.PLAIN_VALUES}),
        (np.array([TOOL], dtype=object), {Repair.PLAIN_VALUES}),
        (TOOL, set()),
        (json.dumps([TOOL]), {Repair.TOOLS_JSON}),
        (json.dumps(json.dumps([TOOL])), {Repair.TOOLS_JSON}),
        ([json.dumps(TOOL)], {Repair.TOOLS_JSON}),
        (json.dumps([json.dumps(TOOL)]), {Repair.TOOLS_JSON}),
        (json.dumps(TOOL), {Repair.TOOLS_JSON}),
        ([{"type": "function", "function": json.dumps(FUNCTION)}], {Repair.TOOLS_JSON}),
        ([{"type": "function", "function": {**FUNCTION, "parameters": json.dumps(PARAMETERS)}}], {Repair.TOOLS_JSON}),
        ([FUNCTION], {Repair.TOOL_SHAPE}),
        ([{"type": "function", **FUNCTION}], {Repair.TOOL_SHAPE}),
        ([{"function": FUNCTION}], {Repair.TOOL_SHAPE}),
        ({"function": FUNCTION}, {Repair.TOOL_SHAPE}),
        ([{"function": FUNCTION, "type": None}], {Repair.TOOL_SHAPE, Repair.SCHEMA_NULLS}),
        ([{"type": "function", "function": None, **FUNCTION}], {Repair.TOOL_SHAPE, Repair.SCHEMA_NULLS}),
        (json.dumps({"type": "function", "function": None, **FUNCTION}), {Repair.TOOL_SHAPE, Repair.TOOLS_JSON}),
        ({"get_weather": TOOL}, {Repair.TOOL_SHAPE}),
        ({"get_weather": NAMELESS, "padding": None}, {Repair.TOOL_SHAPE}),
        (json.dumps({"get_weather": {**NAMELESS, "name": None}}), {Repair.TOOL_SHAPE, Repair.TOOLS_JSON}),
    ],
    ids=[
        "list",
        "tuple",
        "array",
        "object",
        "json",
        "json twice",
        "list of json",
        "json list of json",
        "json object",
        "function as json",
        "parameters as json",
        "bare function",
        "flat",
        "without type",
        "object without type",
        "null type",
        "flat with null function",
        "flat in json with null function",
        "by name",
        "by name without names",
        "by name in json",
    ],
)
def test_tools_come_out_in_one_form(tools: Any, repairs: set[Repair]) -> None:
    before = copy.deepcopy(tools)
    assert json.dumps(tools_of(tools)) == json.dumps([TOOL])
    assert repairs_of(tools) == repairs
    assert str(tools) == str(before)


@pytest.mark.parametrize("key", ["input_schema", "inputSchema"])
@pytest.mark.parametrize("more", [{}, {"parameters": None}, {"type": "custom"}])
def test_the_parameters_of_anthropic_and_mcp_tools_get_their_name(key: str, more: dict[str, Any]) -> None:
    tool = {**{key if name == "parameters" else name: value for name, value in FUNCTION.items()}, **more}
    assert json.dumps(tools_of([tool])) == json.dumps([TOOL])
    assert json.dumps(tools_of(json.dumps([tool]))) == json.dumps([TOOL])
    assert Repair.TOOL_SHAPE in repairs_of([tool])


@pytest.mark.parametrize(
    "function",
    [
        {
            "name": "f",
            "strict": True,
            "description": "d",
            "parameters": {"type": "object", "additionalProperties": False},
        },
        {"name": "f", "parameters": {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}}},
        {"name": "f", "parameters": {"a": {"type": "str, optional", "description": "d"}}},
        {"name": "f", "parameters": [{"name": "a", "type": "str", "required": True}], "returns": "str"},
        {"name": "f", "parameters": {"properties": {"a": {}}}, "input_schema": {"properties": {"b": {}}}},
        {"name": "f", "parameters": {}},
        {"name": "f"},
        {"name": "größe", "description": "日本", "parameters": {"properties": {"naïve": {"default": 10**20}}}},
    ],
    ids=[
        "strict",
        "upper case",
        "properties only",
        "list of parameters",
        "both names",
        "no properties",
        "no parameters",
        "unicode",
    ],
)
def test_what_a_function_says_is_left_alone(function: dict[str, Any]) -> None:
    wrapped = [{"type": "function", "function": function}]
    assert json.dumps(tools_of(wrapped)) == json.dumps(wrapped)
    assert json.dumps(tools_of([{"type": "function", **function}])) == json.dumps(wrapped)


def test_keys_beside_the_function_are_kept() -> None:
    tool = {"function": FUNCTION, "category": "travel"}
    assert tools_of([tool]) == [{"type": "function", "function": FUNCTION, "category": "travel"}]


def test_nulls_in_json_text_are_kept() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": None}, "x": None}}}
    assert tools_of(json.dumps([tool])) == [tool]
    assert tools_of([json.dumps(tool)]) == [tool]


@pytest.mark.parametrize("tools", [None, float("nan"), [], (), {}, "", " ", "[]", "null", "{}", np.array([])])
def test_no_tools_are_none(tools: Any) -> None:
    assert tools_of(tools) is None


def test_a_null_description_is_left_out() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": None}}
    assert tools_of(json.dumps([tool])) == [{"type": "function", "function": {"name": "f"}}]
    assert Repair.SCHEMA_NULLS in repairs_of(json.dumps([tool]))


def test_blank_parameters_are_left_out() -> None:
    assert tools_of([{"name": "f", "parameters": ""}]) == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize("tools", [None, [], "null"])
def test_the_older_column_functions_is_taken_where_there_are_no_tools(tools: Any) -> None:
    conversation = normalize_row({"messages": [USER], "tools": tools, "functions": [FUNCTION]})
    assert conversation.tools == [TOOL]
    assert conversation.repairs == {Repair.TOOLS_COLUMN, Repair.TOOL_SHAPE}


@pytest.mark.parametrize("functions", [None, [], "", float("nan")])
def test_an_empty_column_functions_is_no_repair(functions: Any) -> None:
    conversation = normalize_row({"messages": [USER], "functions": functions})
    assert conversation.tools is None
    assert not conversation.repairs


def test_tools_go_before_functions() -> None:
    assert normalize_row({"messages": [USER], "tools": [TOOL], "functions": [OTHER_TOOL]}).tools == [TOOL]


def test_rows_with_the_same_text_get_lists_of_their_own() -> None:
    text = json.dumps([TOOL, OTHER_TOOL])
    first = tools_of(text)
    assert first is not None
    first.clear()
    assert tools_of(text) == [TOOL, OTHER_TOOL]


def test_unchanged_tools_are_not_copied() -> None:
    tools = tools_of([TOOL])
    assert tools is not None
    assert tools[0] is TOOL


@pytest.mark.parametrize(
    ("tools", "path", "words"),
    [
        ("{oops", "tools", "not JSON"),
        ("3", "tools", "type int"),
        (3, "tools", "type int"),
        ('"text"', "tools", "not JSON"),
        ([3], "tools[0]", "type int"),
        ([TOOL, None], "tools[1]", "type NoneType"),
        ([TOOL, "{oops"], "tools[1]", "not JSON"),
        ([TOOL, '["a"]'], "tools[1]", "type list"),
        ([TOOL, '{"name": ""}'], "tools[1].name", "''"),
        ([{"type": "function", "function": {}}], "tools[0].function.name", "None"),
        ({"type": "function", "function": {}}, "tools.function.name", "None"),
        ([{"type": "web_search"}], "tools[0].name", "None"),
        ([{"name": 3}], "tools[0].name", "3"),
        ([{"name": "f", "description": ["a"]}], "tools[0].description", "type list"),
        ([{"type": "function", "function": "{oops"}], "tools[0].function", "not JSON"),
        ([{"name": "f", "parameters": "{oops"}], "tools[0].parameters", "not JSON"),
        ({"f": {"description": "a"}, "g": {"description": 1}}, "tools.g.description", "type int"),
        ([{"name": "f", "parameters": {"default": float("inf")}}], "tools[0].parameters.default", "inf"),
        ('[{"name": "f", "parameters": {"default": 1e400}}]', "tools", "1e400"),
        (
            '[{"name": "f", "parameters": {"default": "\\ud83d"}}]',
            "tools[0].parameters.default",
            "half of a character",
        ),
        ([{"name": "f", "parameters": {1: "a"}}], "tools[0].parameters", "the key 1"),
        ([{"name": "f", "parameters": {"default": {1, 2}}}], "tools[0].parameters.default", "type set"),
    ],
)
def test_what_cannot_be_read_is_named(tools: Any, path: str, words: str) -> None:
    with pytest.raises(DataFormatError) as caught:
        tools_of(tools)
    assert caught.value.path == path
    assert words in caught.value.found
    assert caught.value.expected
    assert caught.value.fix


def test_errors_in_functions_name_that_column() -> None:
    with pytest.raises(DataFormatError) as caught:
        normalize_row({"messages": [USER], "functions": [{"description": "a"}]})
    assert caught.value.path == "functions[0].name"
