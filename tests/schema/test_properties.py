"""What holds for any row: nothing is lost, nothing but a `DataFormatError` is raised, Arrow changes nothing."""

import copy
import json
from typing import Any

from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema import Conversation, normalize_row
from tests.schema.rows import USER, arguments_of, call, tool_with, tools_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
SCALARS = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT)


def values(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
    )


VALUES, NULLABLE_VALUES = values(SCALARS), values(SCALARS | st.none())
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(st.dictionaries(TEXT, NULLABLE_VALUES, min_size=1, max_size=4))
def test_arguments_in_json_text_come_out_as_they_went_in(arguments: dict[str, Any]) -> None:
    for text in (json.dumps(arguments), json.dumps(arguments, ensure_ascii=False, indent=1)):
        row = {"messages": [USER, call("f", text)], "tools": [tool_with({"type": "object"}, "f")]}
        assert json.dumps(arguments_of(row)) == json.dumps(arguments)


@QUICK
@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_arguments_without_nulls_come_out_as_they_went_in(arguments: dict[str, Any]) -> None:
    row = {"messages": [USER, call("f", arguments)], "tools": [tool_with({"properties": {}}, "f")]}
    before = json.dumps(row)
    assert json.dumps(arguments_of(row)) == json.dumps(arguments)
    assert json.dumps(row) == before


@QUICK
@given(st.dictionaries(TEXT, NULLABLE_VALUES, min_size=1, max_size=4))
def test_declared_arguments_of_rows_from_json_come_out_as_they_went_in(arguments: dict[str, Any]) -> None:
    tool = tool_with({"properties": {name: {} for name in arguments}}, "f")
    assert json.dumps(arguments_of({"messages": [USER, call("f", arguments)], "tools": [tool]})) == json.dumps(
        arguments
    )


@QUICK
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_tools_without_nulls_come_out_as_they_went_in(parameters: dict[str, Any]) -> None:
    tools = [tool_with(parameters)]
    assert json.dumps(tools_of(tools)) == json.dumps(tools)


@QUICK
@given(st.dictionaries(TEXT, NULLABLE_VALUES, max_size=4))
def test_tools_in_json_text_come_out_as_they_went_in(parameters: dict[str, Any]) -> None:
    tools = [tool_with(parameters)]
    assert json.dumps(tools_of(json.dumps(tools))) == json.dumps(tools)


@QUICK
@given(NULLABLE_VALUES)
def test_tool_results_hold_the_json_that_came(content: Any) -> None:
    message = normalize_row({"messages": [{"role": "tool", "content": content}]}).messages[0]
    expected = (
        "" if content is None else content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    )
    assert message["content"] == expected


JUNK_KEYS = st.sampled_from(
    [
        "role",
        "content",
        "from",
        "value",
        "tool_calls",
        "function_call",
        "function",
        "name",
        "arguments",
        "parameters",
        "properties",
        "required",
        "default",
        "enum",
        "anyOf",
        "$ref",
        "type",
        "text",
        "thought",
        "reasoning",
        "train",
        "weight",
        "id",
        "tool_call_id",
    ]
)
JUNK_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2),
    st.just(10**700),
    st.floats(),
    st.binary(max_size=2),
    st.sampled_from(
        [
            "user",
            "assistant",
            "tool",
            "function_call",
            "f",
            "#",
            "{}",
            "[]",
            "null",
            '"{}"',
            '{"name": "f"}',
            "{",
            "\ud800",
        ]
    ),
)
JUNK = st.recursive(
    JUNK_LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(JUNK_KEYS, inner, max_size=5)
        | st.dictionaries(st.integers(0, 1), inner, max_size=1)
    ),
    max_leaves=12,
)
JUNK_MESSAGES = st.lists(
    JUNK
    | st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "function_call"])},
        optional={
            "content": JUNK,
            "tool_calls": JUNK,
            "function_call": JUNK,
            "reasoning": JUNK,
            "weight": JUNK,
            "name": JUNK,
        },
    ),
    max_size=3,
)
JUNK_TOOLS = JUNK | st.lists(
    st.fixed_dictionaries({"name": st.just("f")}, optional={"parameters": JUNK, "input_schema": JUNK}), max_size=2
)
JUNK_ROWS = JUNK | st.fixed_dictionaries(
    {},
    optional={
        "messages": JUNK_MESSAGES | JUNK,
        "conversations": JUNK,
        "tools": JUNK_TOOLS,
        "functions": JUNK_TOOLS,
        "reasoning": JUNK,
    },
)


@settings(QUICK, max_examples=600)
@given(JUNK_ROWS)
def test_junk_is_refused_by_name_or_becomes_a_sound_conversation(row: Any) -> None:
    before = copy.deepcopy(row)
    conversation, error = normalize_or_refuse(row)
    assert repr_of(row) == repr_of(before)
    if conversation is None:
        assert error is not None
        assert error.path
        assert error.expected
        assert error.fix
        return
    assert conversation.messages
    for message in conversation.messages:
        assert message["role"]
        assert isinstance(message["content"], str)
        assert message.get("tool_calls") != []
        for each in message.get("tool_calls", []):
            assert each["type"] == "function"
            assert each["function"]["name"]
            assert to_json(each)
    for tool in conversation.tools or []:
        assert tool["type"]
        assert tool["function"]["name"]
        assert to_json(tool)


def to_json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def normalize_or_refuse(row: Any) -> tuple[Conversation | None, DataFormatError | None]:
    try:
        return normalize_row(row), None
    except DataFormatError as error:
        return None, error


def repr_of(value: Any) -> str:
    """Return a text that differs when anything inside the value does; NaN equals itself in it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{repr_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return type(value).__name__ + "(" + ",".join(map(repr_of, value)) + ")"
    return repr(value)


PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer", "description": "How many."},
    "unit": {"type": ["string"], "enum": ["C", "F"]},
    "tags": {"type": "array", "items": {"type": "string"}},
    "area": {
        "type": "object",
        "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
        "required": ["lat"],
    },
    "sort": {
        "type": "array",
        "items": {"type": "object", "properties": {"by": {"type": "string"}, "up": {"type": "boolean"}}},
    },
}
ARGUMENTS = {
    "city": TEXT,
    "days": st.integers(0, 9),
    "unit": st.sampled_from(["C", "F"]),
    "tags": st.lists(TEXT, max_size=2),
    "area": st.fixed_dictionaries({"lat": st.just(0.5)}, optional={"lon": st.just(1.5)}),
    "sort": st.lists(st.fixed_dictionaries({}, optional={"by": TEXT, "up": st.booleans()}), max_size=2),
}


@st.composite
def tools_and_calls(draw: st.DrawFn) -> dict[str, Any]:
    tools, messages = [], [USER]
    for number in range(draw(st.integers(1, 3))):
        names = draw(st.lists(st.sampled_from(sorted(PROPERTIES)), unique=True, min_size=1))
        required = [name for name in names if draw(st.booleans())]
        properties = {name: PROPERTIES[name] for name in names}
        tools.append(tool_with({"type": "object", "properties": properties, "required": required}, f"tool_{number}"))
        chosen = [name for name in names if name in required or draw(st.booleans())]
        messages.append(call(f"tool_{number}", {name: draw(ARGUMENTS[name]) for name in chosen}))
    return {"messages": messages, "tools": tools}


@settings(QUICK, max_examples=60)
@given(st.lists(tools_and_calls(), min_size=1, max_size=4))
def test_rows_come_back_from_arrow_as_they_were(rows: list[dict[str, Any]]) -> None:
    for row, stored in zip(rows, Dataset.from_list(rows), strict=True):
        expected, padded = normalize_row(row), normalize_row(stored)
        assert padded.tools == expected.tools
        assert padded.messages == expected.messages
