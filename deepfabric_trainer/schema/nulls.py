"""Telling the nulls that Arrow pads structs with from the nulls that somebody meant, in tool definitions.

Arrow stores a list of structs with the union of their keys, so that a tool gets every other tool's properties and a
call every other call's arguments, all null. Text that was JSON never went through this, and callers leave it alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from deepfabric_trainer.schema.strict_json import NULL, survey

_VALUES = frozenset({"default", "const", "enum", "examples", "example"})
"""Keywords whose value is data: never looked into."""
_NULLABLE_VALUES = frozenset({"default", "const", "example"})
"""Those of them whose value may itself be null."""
_NAMED_SCHEMAS = frozenset(
    {"properties", "$defs", "definitions", "patternProperties", "dependentSchemas", "dependentRequired"}
)
"""Keywords that map names, which may equal keywords, to schemas."""
_NULL_TYPES = frozenset({"null", "none", "any"})


def drop_schema_padding(tools: list[Any]) -> list[Any]:
    """Drop the null keys of a row's tool definitions that are padding.

    A key that is null says nothing and is dropped, but for `default`, `const` and `example`, where null can be meant.
    There it is kept when the schema around it admits null; when the row shows that no padding took place, because no
    other key is null or because its tools have different keys, which Arrow makes equal; and, for `default`, when the
    property is optional by a `required` that does not name it. (Of the rows of a function-calling benchmark that
    come back from Arrow with a wrong `default` without this last rule, it sets three in four right.)

    Args:
        tools (`list`): The tools of one row, of plain JSON values.

    Returns:
        `list`: The same list if nothing is dropped; else a new one that shares what is unchanged.
    """
    padded = cache(lambda: are_padded(tools))
    cleaned = [clean_tool(tool, padded) for tool in tools]
    return cleaned if any(new is not old for new, old in zip(cleaned, tools, strict=True)) else tools


def clean_tool(tool: Any, padded: Callable[[], bool]) -> Any:
    """Drop the null keys of one tool definition that are padding; see `drop_schema_padding`.

    Args:
        tool (`Any`): Of plain JSON values.
        padded (`Callable[[], bool]`): Tells whether the row shows padding; called only where that decides.
    """
    return _Cleaner(padded).clean(tool)


def are_padded(tools: Sequence[Any]) -> bool:
    """Tell whether the tools of a row show that they went through Arrow's structs."""
    return any(has_null_key(tool) for tool in tools) and have_equal_keys(tools)


def has_null_key(tool: Any) -> bool:
    """Tell whether a key of a tool is null for which null can mean nothing."""
    return _has_null_key(tool, names=False)


def have_equal_keys(objects: Sequence[Any]) -> bool:
    """Tell whether objects that stand at one place of a struct have the same keys at every depth, as Arrow gives them.

    Args:
        objects (`Sequence`): Objects of plain JSON values; nulls among them are passed over.
    """
    objects = [item for item in objects if isinstance(item, dict)]
    if not objects:
        return True
    first = objects[0]
    if any(item.keys() != first.keys() for item in objects):
        return False
    return all(have_equal_keys([part for item in objects for part in _parts(item[key])]) for key in first)


def admits_null(schema: Any, resolve: Callable[[str], Any] = lambda _: None) -> bool | None:
    """Tell whether a JSON Schema says that a value may be null.

    Where its parts disagree, as in `{"type": "string", "enum": ["a", null]}`, the one that names null is believed.

    Args:
        schema (`Any`): The schema of the value.
        resolve (`Callable`, *optional*): Returns the schema that a `$ref` points to.

    Returns:
        `bool`, *optional*: `None` if the schema says nothing about it.
    """
    return _admits_null(schema, resolve, {})


def _admits_null(schema: Any, resolve: Callable[[str], Any], answers: dict[int, bool | None]) -> bool | None:
    """Answer each schema once; one that refers to itself says nothing there."""
    if not isinstance(schema, Mapping):
        return None
    if id(schema) not in answers:
        answers[id(schema)] = None
        answers[id(schema)] = _combine(schema, lambda inner: _admits_null(inner, resolve, answers), resolve)
    return answers[id(schema)]


def _combine(
    schema: Mapping[str, Any], ask: Callable[[Any], bool | None], resolve: Callable[[str], Any]
) -> bool | None:
    said: list[bool | None] = []
    if isinstance(schema.get("nullable"), bool):
        said.append(schema["nullable"] or None)
    kind = schema.get("type")
    if kind is not None:
        kinds = kind if isinstance(kind, list) else [kind]
        said.append(any(str(name).lower() in _NULL_TYPES for name in kinds))
    if isinstance(schema.get("enum"), list):
        said.append(None in schema["enum"])
    if schema.get("const") is not None:
        said.append(False)
    if "$ref" in schema:
        said.append(ask(resolve(str(schema["$ref"]))))
    for keyword in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(keyword)
        if isinstance(branches, list) and branches:
            answers = [ask(branch) for branch in branches]
            said.append(_all_of(answers) if keyword == "allOf" else _any_of(answers))
    return True if True in said else _all_of(said)


def _any_of(answers: list[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers else False


def _all_of(answers: list[bool | None]) -> bool | None:
    return False if False in answers else True if True in answers else None


class _Cleaner:
    """Goes through a tool; every method returns what it was given if there is nothing to drop."""

    def __init__(self, padded: Callable[[], bool]) -> None:
        self._padded = padded

    def clean(self, node: Any, *, optional: bool = False) -> Any:
        """Return a node without its padding.

        Args:
            node (`Any`): A tool, a schema, or anything inside one.
            optional (`bool`, *optional*, defaults to `False`): Whether it is a property that may be left out.
        """
        if isinstance(node, dict):
            return self._clean_object(node, optional)
        if not isinstance(node, list):
            return node
        items = [self.clean(item) for item in node]
        return items if any(new is not old for new, old in zip(items, node, strict=True)) else node

    def _clean_object(self, node: dict[str, Any], optional: bool) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        changed = False
        for key, value in node.items():
            cleaned = value
            if value is None:
                if key not in _NULLABLE_VALUES or not self._is_meant(key, node, optional):
                    changed = True
                    continue
            elif isinstance(value, dict | list):
                if key in _VALUES:
                    cleaned = _drop_null_keys(value) if survey(value) & NULL and self._padded() else value
                elif key in _NAMED_SCHEMAS and isinstance(value, dict):
                    cleaned = self._clean_named(value, node.get("required") if key == "properties" else None)
                else:
                    cleaned = self.clean(value)
                changed = changed or cleaned is not value
            kept[key] = cleaned
        return kept if changed else node

    def _clean_named(self, schemas: dict[str, Any], required: Any) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        changed = False
        for name, schema in schemas.items():
            if schema is not None:
                optional = isinstance(required, list) and name not in required
                kept[name] = cleaned = self.clean(schema, optional=optional)
                changed = changed or cleaned is not schema
        return kept if changed or len(kept) < len(schemas) else schemas

    def _is_meant(self, key: str, schema: dict[str, Any], optional: bool) -> bool:
        return bool(admits_null(schema)) or (key == "default" and optional) or not self._padded()


def _drop_null_keys(value: Any) -> Any:
    """Drop the null keys of data inside a padded definition."""
    if isinstance(value, dict):
        return {key: _drop_null_keys(item) for key, item in value.items() if item is not None}
    return [_drop_null_keys(item) for item in value] if isinstance(value, list) else value


def _has_null_key(node: Any, *, names: bool) -> bool:
    """Tell whether a key is null for which null can mean nothing."""
    if isinstance(node, dict):
        for key, value in node.items():
            if value is None:
                if names or key not in _NULLABLE_VALUES:
                    return True
            elif (names or key not in _VALUES) and _has_null_key(value, names=not names and key in _NAMED_SCHEMAS):
                return True
        return False
    return isinstance(node, list) and any(_has_null_key(item, names=False) for item in node)


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
