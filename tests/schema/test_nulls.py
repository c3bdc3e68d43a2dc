"""Padding by Arrow in tool definitions."""

import copy
import json
from typing import Any

import pytest
from datasets import Dataset

from deepfabric_trainer.rows import to_dataset
from deepfabric_trainer.schema import Repair, normalize_row
from deepfabric_trainer.schema.nulls import admits_null, have_equal_keys
from tests.schema.rows import OTHER_TOOL, TOOL, USER, call, tool_with, tools_of


def properties_of(properties: dict[str, Any], **more: Any) -> Any:
    tools = tools_of([tool_with({"type": "object", "properties": properties, **more})])
    assert tools is not None
    return tools[0]["function"]["parameters"]["properties"]


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


def test_rows_in_a_dataset_of_ours_need_no_repair() -> None:
    rows = [{"messages": [USER], "tools": [TOOL]}, {"messages": [USER], "tools": [OTHER_TOOL]}]
    for row, stored in zip(rows, to_dataset(rows), strict=True):
        assert normalize_row(stored).tools == row["tools"]
        assert not normalize_row(stored).repairs


def test_tools_of_one_row_that_went_through_arrow_come_back_as_they_were() -> None:
    nested = {"type": "object", "properties": {"a": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]}}}
    tools = [
        TOOL,
        OTHER_TOOL,
        tool_with({"type": "object", "properties": {"filters": {"type": "array", "items": nested}}}, "search"),
        tool_with({"type": "object", "properties": {}}, "now"),
        {"type": "function", "function": {"name": "ping"}},
        tool_with({"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "$defs": {"City": {}}}, "go"),
    ]
    stored = Dataset.from_list([{"messages": [USER], "tools": tools}])[0]
    assert stored["tools"] != tools
    assert tools_of(stored["tools"]) == tools


def test_nothing_of_a_padded_row_is_changed() -> None:
    stored = Dataset.from_list([{"messages": [USER], "tools": [TOOL, OTHER_TOOL]}])[0]
    before = copy.deepcopy(stored)
    tools_of(stored["tools"])
    assert stored == before


PADDED = {"padding": None}
"""A property that Arrow put there, which shows that the row was padded."""


def test_a_null_default_is_kept_unless_arrow_put_it_there() -> None:
    properties = {
        "nullable": {"type": ["string", "null"], "default": None},
        "chosen": {"enum": ["a", None]},
        "plain": {"type": "string", "default": None},
    }
    assert properties_of(properties) == properties
    assert properties_of(properties | PADDED) == properties | {"plain": {"type": "string"}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": ["string", "null"]},
        {"type": "null"},
        {"type": "any"},
        {"type": "STRING", "nullable": True},
        {"enum": ["a", None]},
        {"type": "string", "enum": ["a", None]},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {"oneOf": [{"type": "string"}, {"type": "null"}]},
    ],
)
@pytest.mark.parametrize("keyword", ["default", "const", "example"])
def test_a_null_value_is_kept_where_the_schema_admits_null(schema: dict[str, Any], keyword: str) -> None:
    schema = {**schema, keyword: None}
    assert properties_of({"a": schema} | PADDED) == {"a": schema}


@pytest.mark.parametrize("schema", [{}, {"type": "string"}, {"enum": ["a"]}, {"anyOf": [{"type": "string"}]}])
@pytest.mark.parametrize("keyword", ["default", "const", "example"])
def test_a_null_value_is_dropped_where_the_row_is_padded(schema: dict[str, Any], keyword: str) -> None:
    assert properties_of({"a": {**schema, keyword: None}} | PADDED) == {"a": schema}


def test_the_null_default_of_an_optional_property_is_kept() -> None:
    optional, required = {"type": "string", "default": None}, {"type": "integer", "default": None}
    kept = properties_of({"optional": optional, "required": required} | PADDED, required=["required"])
    assert kept == {"optional": optional, "required": {"type": "integer"}}
    example = {"type": "string", "example": None}
    assert properties_of({"a": example} | PADDED, required=[]) == {"a": {"type": "string"}}


def test_the_same_holds_for_objects_inside() -> None:
    inner = {"type": "object", "properties": {"a": {"default": None}, "b": {"default": None}}, "required": ["a"]}
    cleaned = properties_of({"outer": inner} | PADDED)
    assert cleaned["outer"]["properties"] == {"a": {}, "b": {"default": None}}


def test_a_null_default_is_kept_where_the_keys_of_the_tools_differ() -> None:
    plain = tool_with({"type": "object", "properties": {"a": {"type": "string", "default": None}}}, "f")
    stray = {"type": "function", "function": {"name": "g", "description": "d", "strict": None}}
    assert tools_of([plain, stray]) == [plain, {"type": "function", "function": {"name": "g", "description": "d"}}]


@pytest.mark.parametrize("keyword", ["enum", "examples", "type", "description", "items", "required", "properties"])
def test_a_null_keyword_says_nothing_and_is_dropped(keyword: str) -> None:
    assert properties_of({"a": {"type": ["string", "null"], keyword: None}})["a"].get(keyword, 0) != None  # noqa: E711
    assert keyword not in properties_of({"a": {"title": "t", keyword: None}})["a"]


def test_a_property_named_like_a_keyword_is_cleaned_like_any_other() -> None:
    properties = {"default": None, "enum": {"type": "string", "title": None}, "properties": {"default": 1, "x": None}}
    assert properties_of(properties) == {"enum": {"type": "string"}, "properties": {"default": 1}}


def test_definitions_named_like_keywords_are_cleaned_like_any_other() -> None:
    for keyword in ("$defs", "definitions", "patternProperties", "dependentSchemas"):
        tools = tools_of([tool_with({keyword: {"const": None, "enum": {"x": None}, "a": {"default": 1}}})])
        assert tools == [tool_with({keyword: {"enum": {}, "a": {"default": 1}}})]
    tools = tools_of([tool_with({"dependentRequired": {"default": None, "a": ["b"]}})])
    assert tools == [tool_with({"dependentRequired": {"a": ["b"]}})]


def test_the_items_of_an_array_are_no_optional_property() -> None:
    cleaned = properties_of({"a": {"items": {"type": "string", "default": None}}} | PADDED, required=[])
    assert cleaned == {"a": {"items": {"type": "string"}}}
    nullable = {"a": {"items": {"type": ["string", "null"], "default": None}}}
    assert properties_of(nullable | PADDED) == nullable


def test_a_null_keyword_shows_padding_as_a_null_property_does() -> None:
    assert properties_of({"a": {"type": "string", "title": None, "default": None}}) == {"a": {"type": "string"}}
    assert properties_of({"a": {"type": "string", "default": None}, "default": None}) == {"a": {"type": "string"}}


@pytest.mark.parametrize("keyword", ["default", "const", "example", "enum", "examples"])
def test_the_data_of_a_definition_is_left_alone_unless_it_is_padded(keyword: str) -> None:
    for data, padded in (
        ({"x": None, "y": [None, {"z": None}]}, {"y": [None, {}]}),
        ([None, {"x": None}], [None, {}]),
    ):
        properties = {"a": {keyword: data}}
        assert properties_of(properties) == properties
        assert properties_of(properties | PADDED) == {"a": {keyword: padded}}


def test_a_default_that_is_an_object_comes_back_from_arrow_as_it_was() -> None:
    def tool(name: str, default: dict[str, Any]) -> dict[str, Any]:
        return tool_with({"properties": {"headers": {"type": "object", "default": default}}}, name)

    tools = [tool("f", {"Accept": "a"}), tool("g", {"Auth": "b"}), OTHER_TOOL]
    assert tools_of(Dataset.from_list([{"tools": tools}])[0]["tools"]) == tools


def test_cleaning_is_said() -> None:
    assert normalize_row({"messages": [USER], "tools": [TOOL]}).repairs == set()
    meant = tool_with({"properties": {"a": {"type": "string", "default": None}}})
    assert normalize_row({"messages": [USER], "tools": [meant]}).repairs == set()
    padded = {**TOOL, "strict": None}
    assert normalize_row({"messages": [USER], "tools": [padded]}).repairs == {Repair.SCHEMA_NULLS}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, None),
        (True, None),
        ({"description": "a"}, None),
        ({"type": "string"}, False),
        ({"type": ["string", "null"]}, True),
        ({"type": "String", "nullable": False}, False),
        ({"nullable": False}, None),
        ({"enum": [1]}, False),
        ({"const": 1}, False),
        ({"const": None}, None),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, False),
        ({"anyOf": [{"type": "string"}, {}]}, None),
        ({"anyOf": [], "allOf": []}, None),
        ({"type": "string", "anyOf": [{"minLength": 1}, {"maxLength": 2}]}, False),
        ({"allOf": [{"type": ["string", "null"]}, {}]}, True),
        ({"allOf": [{"type": ["string", "null"]}, {"type": "string"}]}, False),
        ({"$ref": "#/$defs/Name"}, False),
        ({"$ref": "#/$defs/Self"}, None),
        ({"$ref": "#/$defs/Missing"}, None),
        ({"$ref": "#/$defs/Many"}, None),
        ({"anyOf": [{"$ref": "#/$defs/Name"}, {"$ref": "#/$defs/Name"}]}, False),
    ],
)
def test_a_schema_says_whether_it_admits_null(schema: Any, expected: bool | None) -> None:
    definitions = {
        "#/$defs/Name": {"type": "string"},
        "#/$defs/Self": {"$ref": "#/$defs/Self"},
        "#/$defs/Many": {"anyOf": [{"$ref": "#/$defs/Many"} for _ in range(9)]},
    }
    assert admits_null(schema, definitions.get) is expected


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([], True),
        ([{"a": 1}], True),
        ([{"a": 1, "b": None}, {"b": 2, "a": None}, None], True),
        ([{"a": 1}, {"a": 1, "b": None}], False),
        ([{"a": {"b": 1}}, {"a": {"c": 1}}], False),
        ([{"a": [{"b": 1}, {"c": 1}]}], False),
        ([{"a": [{"b": 1}]}, {"a": [{"b": 2}, {"b": None}]}], True),
        ([{"a": "text"}, {"a": {"b": 1}}], True),
    ],
)
def test_objects_of_one_struct_have_equal_keys(objects: list[Any], expected: bool) -> None:
    assert have_equal_keys(objects) is expected


def test_json_of_a_cleaned_tool_keeps_its_order() -> None:
    padded = json.loads('{"type": "function", "x": null, "function": {"name": "f", "y": null, "description": "d"}}')
    assert json.dumps(tools_of([padded])) == '[{"type": "function", "function": {"name": "f", "description": "d"}}]'
