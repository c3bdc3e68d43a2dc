"""Telling the nulls that Arrow pads structs with from the nulls that somebody meant, in the arguments of calls."""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from deepfabric_trainer.schema.nulls import admits_null, have_equal_keys
from deepfabric_trainer.schema.types import Repair

_BRANCHES = ("anyOf", "oneOf", "allOf")


class Padding(Enum):
    """What a row shows of having been stored as Arrow structs, which pads arguments with nulls."""

    NONE = "none"
    """It came as JSON text: every null was meant."""
    POSSIBLE = "possible"
    """Its messages or calls differ in their keys, or it has too few to tell."""
    LIKELY = "likely"
    """All its messages have the same keys, and so do the arguments of all its calls: structs always do."""


def padding_of(messages: Sequence[Mapping[str, Any]]) -> Padding:
    """Tell from the messages of a row, as they came, whether their nulls may be padding."""
    first = messages[0].keys()
    if len(messages) < 2 or any(message.keys() != first for message in messages):
        return Padding.POSSIBLE
    return Padding.LIKELY if have_equal_keys(_structs_of_arguments(messages)) else Padding.POSSIBLE


def drop_argument_padding(
    arguments: dict[str, Any], schema: Any, padding: Padding
) -> tuple[dict[str, Any], frozenset[Repair]]:
    """Drop the null arguments that are padding, at every depth.

    A null stays where the schema declares the property. There is one exception: the property is optional, its schema
    forbids null, and the row is likely to have been stored as structs. Then another call of the same tool had the
    argument and this one had none; as a value the null would be wrong, and trained.

    A null that the schema does not declare goes. Inside an object for which the schema names no properties, or admits
    any, it stays unless the row is likely to have been stored as structs.

    Args:
        arguments (`dict`): The arguments of one call, of plain JSON values.
        schema (`Any`): The called tool's parameters (JSON Schema); `None` if the row does not list the tool, whose
            nulls are then dropped only if they are likely to be padding.
        padding (`Padding`): What the row shows.

    Returns:
        `tuple[dict, frozenset[Repair]]`: The same arguments if nothing is dropped, else new ones; and what was done.
    """
    if padding is Padding.NONE or (schema is None and padding is not Padding.LIKELY):
        return arguments, frozenset()
    cleaner = _Cleaner(schema, likely=padding is Padding.LIKELY)
    return cleaner.clean_object(arguments, cleaner.expand(schema), outermost=True), frozenset(cleaner.repairs)


class _Cleaner:
    """Goes through arguments and their schema together.

    Args:
        root (`Any`): The schema that `$ref` points into.
        likely (`bool`): Whether the row is likely to have been stored as structs.
    """

    def __init__(self, root: Any, *, likely: bool) -> None:
        self.root = root
        self.likely = likely
        self.repairs: set[Repair] = set()

    def expand(self, *schemas: Any) -> list[Mapping[str, Any]]:
        """Return schemas together with all that they refer to and branch into, each once."""
        found: dict[int, Mapping[str, Any]] = {}
        waiting = list(schemas)
        while waiting:
            schema = waiting.pop()
            if not isinstance(schema, Mapping) or id(schema) in found:
                continue
            found[id(schema)] = schema
            if "$ref" in schema:
                waiting.append(self.resolve(str(schema["$ref"])))
            for keyword in _BRANCHES:
                waiting += _list(schema.get(keyword))
            waiting += [schema.get("then"), schema.get("else")]
        return list(found.values())

    def resolve(self, reference: str) -> Any:
        """Return what a reference of the form `#/$defs/Name` points to, `None` if there is no such thing."""
        if not reference.startswith("#"):
            return None
        target = self.root
        for part in reference[1:].split("/")[1:]:
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        return target

    def clean(self, value: Any, schemas: list[Mapping[str, Any]]) -> Any:
        if isinstance(value, dict):
            return self.clean_object(value, schemas)
        if not isinstance(value, list):
            return value
        items = [self.clean(item, self._schemas_of_item(schemas, index)) for index, item in enumerate(value)]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value

    def clean_object(
        self, value: dict[str, Any], schemas: list[Mapping[str, Any]], *, outermost: bool = False
    ) -> dict[str, Any]:
        kept = {}
        for key, item in value.items():
            if item is not None:
                # Only nulls go, so only what may hold some is looked at, with its schemas.
                holds_more = isinstance(item, dict | list)
                kept[key] = self.clean(item, self.expand(*_declared(schemas, key))) if holds_more else item
                continue
            declared = _declared(schemas, key)
            if declared:
                if self.likely and self._cannot_be_null(key, declared, schemas):
                    self.repairs.add(Repair.OPTIONAL_NULLS)
                else:
                    kept[key] = item
            elif _is_open(schemas, outermost=outermost) and not self.likely:
                kept[key] = item
            else:
                self.repairs.add(Repair.ARGUMENT_NULLS)
        same = len(kept) == len(value) and all(kept[key] is value[key] for key in kept)
        return value if same else kept

    def _cannot_be_null(self, key: str, declared: list[Any], schemas: list[Mapping[str, Any]]) -> bool:
        required = any(key in _list(schema.get("required")) for schema in schemas)
        return not required and all(admits_null(schema, self.resolve) is False for schema in declared)

    def _schemas_of_item(self, schemas: list[Mapping[str, Any]], index: int) -> list[Mapping[str, Any]]:
        items = []
        for schema in schemas:
            first = [*_list(schema.get("prefixItems")), *_list(schema.get("items"))]
            items.append(first[index] if index < len(first) else schema.get("items"))
        return self.expand(*items)


def _declared(schemas: list[Mapping[str, Any]], key: str) -> list[Any]:
    """Return the schemas given for a property: by its name, by a pattern, or else for all other properties."""
    named = []
    for schema in schemas:
        properties, patterns = schema.get("properties"), schema.get("patternProperties")
        if isinstance(properties, Mapping) and key in properties:
            named.append(properties[key])
        if isinstance(patterns, Mapping):
            named += [below for pattern, below in patterns.items() if _matches(pattern, key)]
    return named or [
        schema["additionalProperties"]
        for schema in schemas
        if isinstance(schema.get("additionalProperties"), Mapping) and schema["additionalProperties"]
    ]


def _is_open(schemas: list[Mapping[str, Any]], *, outermost: bool) -> bool:
    """Tell whether the schemas admit properties that they do not name.

    A tool that names no parameters at all has none; an object inside its arguments for which no properties are named
    may hold anything.
    """
    if any(schema.get("additionalProperties") in (True, {}) for schema in schemas):
        return True
    return not outermost and not any(
        "properties" in schema or "patternProperties" in schema or "additionalProperties" in schema
        for schema in schemas
    )


def _matches(pattern: str, key: str) -> bool:
    try:
        return re.search(pattern, key) is not None
    except re.error:
        return False


def _structs_of_arguments(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    found = []
    for message in messages:
        calls = [*_list(message.get("tool_calls")), message.get("function_call")]
        for call in calls:
            if isinstance(call, Mapping):
                function = call.get("function")
                found.append((function if isinstance(function, Mapping) else call).get("arguments"))
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
