"""What needs no library to be judged: the plain schemas and values that make up nearly all of a dataset.

Both functions say yes only when they are sure. Whatever they do not say yes to goes to `jsonschema`, which is exact
and far slower.
"""

from collections.abc import Callable, Mapping
from typing import Any

_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "example", "format", "deprecated"})
"""Keywords that forbid no value; `jsonschema` does not check formats unless it is told to."""


def is_plain_schema(schema: Any) -> bool:
    """Tell whether this is, beyond doubt, a valid schema of the newest draft.

    Args:
        schema (`Any`): What stands where a schema belongs.
    """
    return isinstance(schema, dict) and all(
        keyword in _KEYWORDS and _KEYWORDS[keyword](value) for keyword, value in schema.items()
    )


def is_plainly_valid(value: Any, schema: Any) -> bool:
    """Tell whether a value satisfies a valid schema beyond doubt; `False` means that somebody else must judge.

    Args:
        value (`Any`): A JSON value.
        schema (`Any`): A schema that is known to be valid in draft 6 or later.
    """
    if not isinstance(schema, dict):
        return schema is True
    for keyword, rule in schema.items():
        if keyword == "type":
            if not (_TYPES[rule](value) if isinstance(rule, str) else any(_TYPES[kind](value) for kind in rule)):
                return False
        elif keyword == "properties":
            if isinstance(value, dict) and not _properties_valid(value, rule):
                return False
        elif keyword == "required":
            if isinstance(value, dict) and not all(name in value for name in rule):
                return False
        elif keyword == "enum":
            # Of strings only: Python takes `True` for 1.
            if not (isinstance(value, str) and value in rule):
                return False
        elif keyword == "items":
            if isinstance(value, list) and not all(is_plainly_valid(item, rule) for item in value):
                return False
        elif keyword == "additionalProperties":
            declared = schema.get("properties", {})
            if rule is not True and isinstance(value, dict) and not value.keys() <= declared.keys():
                return False
        elif keyword == "anyOf":
            if not any(is_plainly_valid(value, branch) for branch in rule):
                return False
        elif keyword == "minimum":
            if type(value) in (int, float) and value < rule:
                return False
        elif keyword == "maximum":
            if type(value) in (int, float) and value > rule:
                return False
        elif keyword not in _ANNOTATIONS:
            return False
    return True


def _properties_valid(value: Mapping[str, Any], schemas: Mapping[str, Any]) -> bool:
    return all(name not in schemas or is_plainly_valid(item, schemas[name]) for name, item in value.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_anything(value: Any) -> bool:
    return True


def _is_type(value: Any) -> bool:
    kinds = value if isinstance(value, list) else [value]
    return _are_names(kinds) and bool(kinds) and all(kind in _TYPES for kind in kinds)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_plain_schema, value))


def _are_named_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(name) and is_plain_schema(value[name]) for name in value)


_KEYWORDS: dict[str, Callable[[Any], bool]] = {
    "type": _is_type,
    "properties": _are_named_schemas,
    "required": _are_names,
    "items": is_plain_schema,
    "enum": lambda value: isinstance(value, list),
    "additionalProperties": lambda value: isinstance(value, bool) or is_plain_schema(value),
    "anyOf": _are_schemas,
    "title": _is_text,
    "description": _is_text,
    "format": _is_text,
    "default": _is_anything,
    "const": _is_anything,
    "example": _is_anything,
    "examples": lambda value: isinstance(value, list),
    "deprecated": _is_flag,
    "uniqueItems": _is_flag,
    "minimum": _is_number,
    "maximum": _is_number,
    "minLength": _is_count,
    "maxLength": _is_count,
    "minItems": _is_count,
    "maxItems": _is_count,
}
