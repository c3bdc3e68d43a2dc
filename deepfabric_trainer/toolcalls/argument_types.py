"""Values for arguments that a notation writes as bare text, with the help of the schemas of the tools."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepfabric_trainer.toolcalls.values import WORDS, Malformed, read_value

Schemas = Mapping[str, Mapping[str, Any]]
"""The parameters of each tool, by its name."""
_MAX_DEPTH = 20


def schemas_of(tools: Sequence[Mapping[str, Any]] | str | None) -> Schemas:
    """Return the JSON Schema of each tool's arguments; what is no tool is left out."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            return {}
    schemas: dict[str, Mapping[str, Any]] = {}
    for tool in tools if isinstance(tools, Sequence) else ():
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            parameters = function.get("parameters")
            schemas[function["name"]] = parameters if isinstance(parameters, Mapping) else {}
    return schemas


def typed_argument(text: str, tool: str, argument: str, schemas: Schemas) -> Any:
    """Return the value that the bare text of an argument stands for.

    A text stays a text where the schema asks for nothing else. Where it asks for more than one type, or says nothing,
    the text is the value of another type that is written just so; `007` is a text, as no number is.
    """
    parameters = schemas.get(tool, {})
    properties = parameters.get("properties")
    schema = properties.get(argument) if isinstance(properties, Mapping) else None
    types = set(_types(schema, parameters))
    if types == {"string"}:
        return text
    if not types or "string" in types:
        value = _written_so(text)
        return value if not types or _fits(value, types) else text
    value = _read(text)
    if "integer" in types and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _written_so(text: str) -> Any:
    """Return the value that is written as this text, the text itself if it is none."""
    value = _read(text)
    if isinstance(value, dict | list) or value is None or isinstance(value, bool | str):
        return text if isinstance(value, str) else value
    return value if json.dumps(value) == text else text


def _read(text: str) -> Any:
    stripped = text.strip()
    if stripped in WORDS:
        return WORDS[stripped]
    if stripped[:1] not in tuple("{[-0123456789"):
        return text
    try:
        value, end = read_value(stripped, 0)
    except Malformed:
        return text
    return value if end == len(stripped) and not isinstance(value, str) else text


def _fits(value: Any, types: set[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    if isinstance(value, int):
        return bool(types & {"integer", "number"})
    if isinstance(value, float):
        return "number" in types
    names = {type(None): "null", dict: "object", list: "array"}
    return names.get(type(value), "string") in types


def _types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """Go over the types that a schema allows; none if it does not say."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return
    declared = schema.get("type")
    yield from [declared] if isinstance(declared, str) else filter(_is_text, declared or ())
    for value in [*_listed(schema.get("enum")), *([schema["const"]] if "const" in schema else ())]:
        if declared is None:
            yield from _type_of(value)
    for union in ("anyOf", "oneOf", "allOf"):
        for choice in _listed(schema.get(union)):
            yield from _types(choice, root, depth + 1)
    if schema.get("nullable") is True:
        yield "null"
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for key in reference[2:].split("/"):
            target = target.get(key) if isinstance(target, Mapping) else None
        yield from _types(target, root, depth + 1)


def _type_of(value: Any) -> Iterator[str]:
    names = ("boolean", "integer", "number", "string", "null", "array", "object")
    yield from (name for name in names if _fits(value, {name}))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
