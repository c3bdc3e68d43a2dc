"""Telling the nulls that Arrow pads structs with from the nulls that somebody meant.

Arrow stores a list of structs with the union of their keys, so that a tool gets every other tool's properties and a
call every other call's arguments, all null. Text that was JSON never went through this, and callers leave it alone.
"""

from collections.abc import Mapping
from typing import Any

_VALUES = frozenset({"default", "const", "enum", "examples", "example"})
"""Keywords whose value is data: never looked into, and null there can be meant."""
_NAMED_SCHEMAS = frozenset({"properties", "$defs", "definitions", "patternProperties", "dependentSchemas"})
"""Keywords that map names, which may equal keywords, to schemas."""


def drop_schema_padding(tool: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Drop the null keys of a tool definition that are padding.

    A null `default` or `const` is kept when the schema around it admits null, or when nothing else in the tool is
    null, which shows that no padding took place.

    Returns:
        `tuple[dict, bool]`: A cleaned copy, and whether anything was dropped.
    """
    padded = _has_padding(tool, names=False)
    cleaned = _clean(tool, names=False, padded=padded)
    return cleaned, cleaned != tool


def drop_argument_padding(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Drop the null arguments that the called tool's schema does not declare, at every depth that it describes.

    Returns:
        `tuple[dict, bool]`: A cleaned copy, and whether anything was dropped.
    """
    cleaned = _clean_arguments(arguments, schema)
    return cleaned, cleaned != arguments


def _has_padding(node: Any, *, names: bool) -> bool:
    if isinstance(node, Mapping):
        return any(
            (value is None and (names or key not in _VALUES))
            or ((names or key not in _VALUES) and _has_padding(value, names=not names and key in _NAMED_SCHEMAS))
            for key, value in node.items()
        )
    if isinstance(node, list):
        return any(_has_padding(item, names=False) for item in node)
    return False


def _clean(node: Any, *, names: bool, padded: bool) -> Any:
    if isinstance(node, Mapping):
        kept = {}
        for key, value in node.items():
            is_value = not names and key in _VALUES
            if value is None and not (is_value and (not padded or _admits_null(node))):
                continue
            names_below = not names and key in _NAMED_SCHEMAS
            kept[key] = value if is_value else _clean(value, names=names_below, padded=padded)
        return kept
    if isinstance(node, list):
        return [_clean(item, names=False, padded=padded) for item in node]
    return node


def _admits_null(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    if kind == "null" or (isinstance(kind, list) and "null" in kind) or schema.get("nullable") is True:
        return True
    if None in (schema.get("enum") or []):
        return True
    branches = [*(schema.get("anyOf") or []), *(schema.get("oneOf") or [])]
    return any(isinstance(branch, Mapping) and _admits_null(branch) for branch in branches)


def _clean_arguments(value: Any, schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, list):
        return [_clean_arguments(item, schema.get("items")) for item in value]
    if not isinstance(value, Mapping) or not isinstance(schema.get("properties"), Mapping):
        return value
    declared = schema["properties"]
    free_form = bool(schema.get("additionalProperties"))
    return {
        key: _clean_arguments(item, declared.get(key))
        for key, item in value.items()
        if item is not None or key in declared or free_form
    }
