"""Schemas as strangers write them, and arguments judged by what is right in them."""

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from deepfabric_trainer.validate import Severity, validate_dataset
from deepfabric_trainer.validate.mending import mend_schema
from deepfabric_trainer.validate.parameters import CannotJudgeError, read_parameters
from deepfabric_trainer.validate.plain import is_plain_schema, is_plainly_valid
from deepfabric_trainer.validate.tools import read_tool
from tests.fixtures.tiny import TOOLS, call
from tests.validate.rows import USER, assistant, found, tool

ARGUMENTS = "messages[1].tool_calls[0].function.arguments"


def properties(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas}


def rules(parameters: Any, **arguments: Any) -> list[tuple[str, str, str]]:
    return found([USER, assistant(call("get_weather", **arguments))], [tool(parameters)])


def problems(parameters: Any) -> str:
    return "; ".join(read_parameters(parameters).problems)


@pytest.mark.parametrize(
    ("parameters", "words", "fix"),
    [
        ({"type": "dict"}, "`type` is 'dict'", 'write "object"'),
        (properties(a={"type": "float"}), "`properties.a.type` is 'float'", 'write "number"'),
        (properties(a={"type": "any"}), "`properties.a.type` is 'any'", "no `type` at all"),
        (properties(a={"type": ["string", "long"]}), "`properties.a.type` is ['string', 'long']", "use the types"),
        (properties(a={"type": "string", "required": True}), "`properties.a.required` is True", "in `required`"),
        (properties(a="string"), "`properties.a` is 'string'", "as JSON Schema has it"),
        (properties(a={"pattern": "["}), "`properties.a.pattern` is '['", "as JSON Schema has it"),
        (properties(a={"$ref": "#/$defs/none"}), "`properties.a.$ref` is '#/$defs/none'", "own `$defs`"),
        (properties(a={"$ref": "http://127.0.0.1:9/x.json"}), "http://127.0.0.1:9/x.json", "own `$defs`"),
        ({"$ref": "#"}, "without end", "followed to its end"),
        ({"city": {"type": "string"}}, "city stand where keywords", '"properties"'),
        ([], "they are []", "write them as"),
        (True, "they are True", "write them as"),
        ({"$schema": ["x"]}, "`$schema` is ['x']", "as JSON Schema has it"),
        (properties(a={"$id": "http://[", "$ref": "b"}), "cannot be used as a schema", "followed to its end"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix_and_calls_go_on(parameters: Any, words: str, fix: str) -> None:
    row = {"messages": [USER, assistant(call("get_weather", city="Rome"))], "tools": [tool(parameters)]}
    (finding,) = validate_dataset([row]).findings
    assert (finding.rule, finding.severity) == ("invalid-schema", Severity.WARNING)
    assert finding.path == "tools[0].function.parameters"
    assert words in finding.found
    assert fix in finding.fix


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, properties(), properties(city={})])
def test_parameters_that_say_little_are_fine(parameters: Any) -> None:
    assert rules(parameters, city=3) == []


def test_arguments_are_judged_by_what_is_right_in_a_schema() -> None:
    parameters = {**properties(a={"type": "float"}, b={"type": "integer"}), "type": "dict", "required": ["b"]}
    broken = ("invalid-schema", "tools[0].function.parameters", "warning")
    assert rules(parameters, a="x", b=1) == [broken]
    assert rules(parameters, a="x", b="1") == [broken, ("invalid-arguments", f"{ARGUMENTS}.b", "error")]
    assert rules(parameters, a="x") == [broken, ("invalid-arguments", ARGUMENTS, "error")]


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "dict"}},
        {"oneOf": [{"type": "dict"}, {"type": "string"}]},
        {"oneOf": [{"$ref": "#/none"}, {"type": "string"}]},
        {"if": {"type": "dict"}, "then": {"type": "integer"}},
        {"properties": [], "additionalProperties": False},
        {"properties": {"x": "string"}, "additionalProperties": False},
        {"$ref": "#/none", "unevaluatedProperties": False},
    ],
)
def test_what_is_taken_out_of_a_schema_never_makes_it_stricter(schema: dict[str, Any]) -> None:
    parameters = read_parameters(properties(a=schema))
    assert parameters.problems
    for value in ("x", {"x": 1}):
        assert parameters.judge({"a": value}) == []


def test_null_is_admitted_where_openapi_says_so() -> None:
    nullable = properties(
        a={"type": "string", "nullable": True},
        b={"type": "string", "nullable": True, "enum": ["x"]},
        c={"anyOf": [{"type": "string"}], "nullable": True},
        d={"type": ["integer"], "nullable": True},
        e={"type": "string", "nullable": False},
        nullable={"type": "string"},
    )
    parameters = read_parameters(nullable)
    assert parameters.problems == ()
    assert parameters.judge(dict.fromkeys("abcd")) == []
    assert [problem.path for problem in parameters.judge({"a": 1, "b": "y", "c": 1, "d": "1", "e": None})] == [
        f".{name}" for name in "abcde"
    ]
    assert [problem.path for problem in parameters.judge({"nullable": None})] == [".nullable"]


def test_references_inside_the_schema_are_followed() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}, "value": {"type": "integer"}}}
    parameters = {**properties(tree={"$ref": "#/$defs/Tree"}), "$defs": {"Tree": tree}}
    assert rules(parameters, tree={"left": {"left": {"value": 1}}}) == []
    assert rules(parameters, tree={"left": {"left": {"value": "1"}}}) == [
        ("invalid-arguments", f"{ARGUMENTS}.tree.left.left.value", "error")
    ]


def test_a_schema_that_fails_only_on_some_arguments_is_a_warning_there() -> None:
    endless = properties(a={"$ref": "#/properties/a"}, b={"multipleOf": 0.1})
    assert rules(endless, c=1) == []
    assert rules(endless, a=1) == [("invalid-schema", ARGUMENTS, "warning")]
    assert rules(endless, b=10**400) == [("invalid-schema", ARGUMENTS, "warning")]


def test_the_dialect_that_a_schema_names_is_the_one_that_counts() -> None:
    parameters = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **properties(a={"items": [{"type": "string"}]}),
    }
    assert problems(parameters) == ""
    assert [problem.path for problem in read_parameters(parameters).judge({"a": [1]})] == [".a[0]"]
    without = properties(a={"items": [{"type": "string"}]})
    assert "`properties.a.items`" in problems(without)


@pytest.mark.parametrize(
    ("kind", "value", "valid"),
    [
        ("integer", 1.0, True),
        ("integer", 10**40, True),
        ("integer", 1.5, False),
        ("integer", True, False),
        ("integer", "1", False),
        ("number", 1, True),
        ("number", True, False),
        ("boolean", 1, False),
        ("string", "", True),
        ("string", None, False),
        ("null", None, True),
        ("array", [], True),
        ("object", {}, True),
    ],
)
def test_types_are_those_of_json(kind: str, value: Any, valid: bool) -> None:
    expected = [] if valid else [("invalid-arguments", f"{ARGUMENTS}.größe", "error")]
    assert rules(properties(größe={"type": kind}), **{"größe": value}) == expected


def test_long_values_are_shortened_and_the_reason_is_kept() -> None:
    row = {"messages": [USER, assistant(call("get_weather", city=["x" * 5000]))], "tools": TOOLS}
    (finding,) = validate_dataset([row]).findings
    assert finding.found.endswith("… is not of type 'string'")
    assert len(finding.found) < 200


def test_a_tool_that_is_changed_is_judged_anew() -> None:
    changing = tool(properties(city={"type": "string"}))
    row = {"messages": [USER, assistant(call("get_weather", city="Rome"))], "tools": [changing]}

    def rows() -> Any:
        yield row
        changing["function"]["parameters"]["properties"]["city"]["type"] = "integer"
        yield row

    assert [finding.row for finding in validate_dataset(rows()).findings] == [1]


def test_tools_that_python_takes_for_equal_are_told_apart() -> None:
    for constant, admitted, refused in ((1, 1, True), (True, True, 1)):
        known = read_tool(tool(properties(a={"const": constant})))  # type: ignore[arg-type]
        assert known.parameters.judge({"a": admitted}) == []
        assert known.parameters.judge({"a": refused}) != []


def test_reading_a_schema_leaves_it_as_it_was() -> None:
    schema = {**properties(a={"type": "float", "nullable": True}, b={"$ref": "#/none"}), "required": True}
    before = copy.deepcopy(schema)
    read_parameters(schema)
    assert schema == before


_NAMES = st.sampled_from(["a", "b", "properties", "not"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.sampled_from("abé"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=6,
)
_TYPES = st.sampled_from(["string", "integer", "number", "boolean", "array", "object", "null"])
_NONE: Any = st.nothing()
_ARGUMENTS = st.dictionaries(_NAMES, _VALUES, max_size=3)


def _plain_keywords(schema: Any, other: Any) -> dict[str, Any]:
    return {
        "type": _TYPES | st.lists(_TYPES, min_size=1, max_size=2, unique=True) | other,
        "properties": st.dictionaries(_NAMES, schema, max_size=3) | other,
        "required": st.lists(_NAMES, max_size=1) | other,
        "items": schema,
        "enum": st.lists(_VALUES, max_size=3) | other,
        "anyOf": st.lists(schema, min_size=1, max_size=2) | other,
        "additionalProperties": st.booleans() | schema,
        "minimum": st.integers(-2, 2) | other,
        "maximum": st.floats(-2, 2) | other,
        "description": st.sampled_from("ab") | other,
    }


def _more_keywords(schema: Any, other: Any) -> dict[str, Any]:
    return {
        "const": _VALUES,
        "oneOf": st.lists(schema, min_size=1, max_size=2) | other,
        "not": schema,
        "patternProperties": st.dictionaries(st.just("^a"), schema, max_size=1) | other,
        "minLength": st.integers(0, 2) | other,
        "uniqueItems": st.booleans() | other,
    }


def _odd_keywords(schema: Any, other: Any) -> dict[str, Any]:
    return {
        "type": _TYPES | st.sampled_from(["dict", "any"]),
        "nullable": st.booleans() | other,
        "patternProperties": st.dictionaries(st.just("["), schema, max_size=1),
        "$ref": st.sampled_from(["#", "#/properties/a", "#/$defs/b", "http://127.0.0.1:9/"]),
        "$defs": st.dictionaries(_NAMES, schema, max_size=2),
    }


def _schemas(*keywords: Any, other: Any = _NONE) -> st.SearchStrategy[Any]:
    """Schemas of some of these keywords, with other values among theirs."""

    def build(inner: Any) -> st.SearchStrategy[Any]:
        known = {name: values for each in keywords for name, values in each(inner | other, other).items()}
        few = st.sets(st.sampled_from(sorted(known)), max_size=3)
        return few.flatmap(lambda names: st.fixed_dictionaries({name: known[name] for name in sorted(names)}))

    return st.recursive(st.fixed_dictionaries({}, optional={"type": _TYPES}), build, max_leaves=5)


@settings(max_examples=100, deadline=None)
@given(_schemas(_plain_keywords), _VALUES)
def test_who_is_sure_that_a_value_is_valid_is_right(schema: Any, value: Any) -> None:
    assert is_plain_schema(schema)
    if is_plainly_valid(value, schema):
        assert Draft202012Validator(schema).is_valid(value)


@settings(max_examples=100, deadline=None)
@given(_schemas(_plain_keywords, other=_VALUES))
def test_who_is_sure_that_a_schema_is_valid_is_right(schema: Any) -> None:
    if is_plain_schema(schema):
        Draft202012Validator.check_schema(schema)


@settings(max_examples=100, deadline=None)
@given(_schemas(_plain_keywords, _more_keywords), _ARGUMENTS)
def test_valid_schemas_are_judged_as_jsonschema_does(schema: Any, arguments: dict[str, Any]) -> None:
    parameters = read_parameters(schema)
    assert parameters.problems == ()
    assert (parameters.judge(arguments) == []) == Draft202012Validator(schema).is_valid(arguments)


@settings(max_examples=100, deadline=None)
@given(_schemas(_plain_keywords, _more_keywords, _odd_keywords, other=_VALUES) | _VALUES, _ARGUMENTS)
def test_no_schema_is_too_odd(schema: Any, arguments: dict[str, Any]) -> None:
    with contextlib.suppress(CannotJudgeError):
        read_parameters(schema).judge(arguments)
    if isinstance(schema, dict):
        mended = mend_schema(schema)
        mended.dialect.check_schema(mended.schema)
