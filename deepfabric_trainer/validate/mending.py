"""JSON Schemas as strangers write them: what is wrong in them, and what of them can still be judged."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry, Specification
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from deepfabric_trainer.validate.broken import dotted, shown
from deepfabric_trainer.validate.plain import is_plain_schema

_NAMED_SCHEMAS = frozenset({"properties", "$defs", "definitions", "patternProperties", "dependentSchemas"})
"""Keywords that map names, which may equal keywords, to schemas."""
_DATA = frozenset({"default", "const", "enum", "examples", "example"})
"""Keywords whose value is data."""
_TURNING = frozenset({"not", "oneOf", "if", "contains"})
"""Keywords under which less in a schema can forbid more."""
_REFERRING = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_DECLARING = (
    frozenset({"properties", "patternProperties", "items", "prefixItems", "allOf", "anyOf"}) | _TURNING | _REFERRING
)
_FORBIDDING_THE_REST = ("additionalProperties", "additionalItems", "unevaluatedProperties", "unevaluatedItems")
"""Keywords that forbid what the declaring ones do not name: they go with them."""
_TYPE_WORDS = {
    "any": "no `type` at all",
    "bool": '"boolean"',
    "dict": '"object"',
    "double": '"number"',
    "float": '"number"',
    "int": '"integer"',
    "list": '"array"',
    "none": '"null"',
    "str": '"string"',
    "tuple": '"array"',
}
"""What people mean by type names of Python and other languages."""
_ROUNDS = 8

_Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class MendedSchema:
    """A schema without what is broken in it.

    Args:
        schema (`dict`): Valid, with `nullable` of OpenAPI in the words of JSON Schema.
        dialect (`type[Validator]`): The class that judges by it.
        is_plain (`bool`): Whether it was plain from the beginning, with nothing to mend and no references.
        problems (`tuple[str, ...]`): What was left out, each with its place.
        fixes (`tuple[str, ...]`): The edits that mend it.
    """

    schema: dict[str, Any]
    dialect: type[Validator] = Draft202012Validator
    is_plain: bool = False
    problems: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()


def mend_schema(schema: Mapping[str, Any]) -> MendedSchema:
    """Take out of a schema what is not valid, so that arguments are judged by the rest.

    Args:
        schema (`Mapping`): The parameters of a tool; it is not changed.
    """
    kept = _with_nulls(schema)
    if is_plain_schema(kept):
        return MendedSchema(kept, is_plain=True)
    kept = copy.deepcopy(kept)
    dialect = _dialect(kept)
    problems: dict[str, str] = {}
    fixes: dict[str, None] = {}
    for _ in range(_ROUNDS):
        errors = list(_schema_errors(kept, dialect))
        if not errors:
            break
        by_place = {tuple(error.absolute_path): error for error in reversed(errors)}  # `jsonschema` repeats itself
        for path, error in by_place.items():
            place = dotted(path) or "parameters"
            if place not in problems:
                problems[place] = _describe(place, error)
                fixes[_fix(error)] = None
        for path in by_place:
            _take_out(kept, path)
    else:
        kept = {}
    for path, reference in _dead_references(kept, dialect):
        problems[dotted(path)] = f"`{dotted(path)}` is {shown(reference)}, which the schema does not hold"
        fixes["put what it refers to into the schema's own `$defs`"] = None
        _take_out(kept, path)
    return MendedSchema(
        kept, dialect, problems=tuple(problems[place] for place in sorted(problems)), fixes=tuple(fixes)
    )


def _dialect(schema: Mapping[str, Any]) -> type[Validator]:
    named = isinstance(schema.get("$schema"), str)
    return validator_for(schema, default=Draft202012Validator) if named else Draft202012Validator


def _schema_errors(schema: Mapping[str, Any], dialect: type[Validator]) -> Iterator[ValidationError]:
    judge = validator_for(dialect.META_SCHEMA, default=dialect)
    yield from judge(dialect.META_SCHEMA, format_checker=judge.FORMAT_CHECKER).iter_errors(schema)


def _describe(place: str, error: ValidationError) -> str:
    if error.absolute_path and error.absolute_path[-1] == "type":
        return f"`{place}` is {shown(error.instance)}, which is no type of JSON Schema"
    if error.absolute_path and error.absolute_path[-1] == "required" and isinstance(error.instance, bool):
        return f"`{place}` is {error.instance}, not a list of names"
    return f"`{place}` is {shown(error.instance)}: {error.validator} must be {shown(error.validator_value)}"


def _fix(error: ValidationError) -> str:
    keyword = error.absolute_path[-1] if error.absolute_path else None
    if keyword == "type" and isinstance(error.instance, str) and error.instance.lower() in _TYPE_WORDS:
        return f"write {_TYPE_WORDS[error.instance.lower()]} in place of {error.instance!r}"
    if keyword == "type":
        return "use the types object, array, string, number, integer, boolean, null"
    if keyword == "required" and isinstance(error.instance, bool):
        return "list the required names in `required` beside `properties`"
    return "write it as JSON Schema has it"


def _take_out(schema: dict[str, Any], path: _Path) -> None:
    """Take out what is broken at a path: the keyword around it, as long as less of the schema forbids less."""
    path, is_named = _keyword_path(path)
    if not path:
        schema.clear()
        return
    around: Any = schema
    for key in path[:-1]:
        try:
            around = around[key]
        except (KeyError, IndexError, TypeError):
            return  # an earlier error has taken it out
    key = path[-1]
    if not isinstance(around, dict) or key not in around:
        return
    if is_named and around[key] != {}:
        around[key] = {}  # its name stays declared
        return
    del around[key]
    if key in _DECLARING:
        for rest in _FORBIDDING_THE_REST:
            around.pop(rest, None)


def _keyword_path(path: _Path) -> tuple[_Path, bool]:
    """Cut a path back to a keyword or a named schema that can be left out, and tell whether it is the latter."""
    names = [False]  # whether the key at this position is a name
    for position, key in enumerate(path):
        if key in _TURNING and not names[position]:
            return path[: position + 1], False
        names.append(key in _NAMED_SCHEMAS and not names[position])
    end = len(path)
    while end and isinstance(path[end - 1], int):
        end -= 1
    return path[:end], bool(end) and names[end - 1]


def _dead_references(schema: dict[str, Any], dialect: type[Validator]) -> list[tuple[_Path, str]]:
    """Return the places of references to what is not inside the schema, and the references: nothing is fetched."""
    specification = specification_with(dialect.META_SCHEMA["$schema"])
    resolver = Registry().resolver_with_root(specification.create_resource(schema))
    return list(_dead_below(schema, (), resolver, specification, names=False))


def _dead_below(
    node: Any, path: _Path, resolver: Any, specification: Specification[Any], *, names: bool
) -> Iterator[tuple[_Path, str]]:
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _dead_below(item, (*path, index), resolver, specification, names=False)
    if not isinstance(node, dict):
        return
    if path and not names:
        resolver = resolver.in_subresource(specification.create_resource(node))  # it may have an `$id`
    for key, value in node.items():
        if not names and key in _DATA:
            continue
        if not names and key in _REFERRING and isinstance(value, str) and not _is_found(value, resolver):
            yield (*path, key), value
        below = not names and key in _NAMED_SCHEMAS
        yield from _dead_below(value, (*path, key), resolver, specification, names=below)


def _is_found(reference: str, resolver: Any) -> bool:
    try:
        resolver.lookup(reference)
    except Unresolvable:
        return False
    return True


def _with_nulls(node: Any, *, names: bool = False) -> Any:
    """Copy a schema with OpenAPI's `nullable` said in JSON Schema, which does not know the word."""
    if isinstance(node, list | tuple):
        return [_with_nulls(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    if names:
        return {key: _with_nulls(value) for key, value in node.items()}
    copied = {
        key: value if key in _DATA else _with_nulls(value, names=key in _NAMED_SCHEMAS) for key, value in node.items()
    }
    if isinstance(copied.get("nullable"), bool) and copied.pop("nullable"):
        return _or_null(copied)
    return copied


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type")
    if not isinstance(kind, str | list):
        return {"anyOf": [schema, {"type": "null"}]}
    kinds = [kind] if isinstance(kind, str) else kind
    admitting = {**schema, "type": kinds if "null" in kinds else [*kinds, "null"]}
    if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
        admitting["enum"] = [*schema["enum"], None]
    return admitting
