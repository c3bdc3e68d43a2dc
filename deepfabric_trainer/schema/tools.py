"""The `tools` column of a row, in any of the shapes it comes in, as a list of tools in OpenAI's form."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema.nulls import drop_schema_padding
from deepfabric_trainer.schema.reading import is_missing, read_json, read_plain
from deepfabric_trainer.schema.strict_json import NOT_PLAIN, plain, survey
from deepfabric_trainer.schema.tool_texts import ItemTexts
from deepfabric_trainer.schema.types import Repair, Tool

_EXPECTED = 'a list of tools such as {"type": "function", "function": {"name": ..., "parameters": {...}}}'
_FIX = "give the tools in this form, or as JSON text; null if the row has none"
_PARAMETER_KEYS = ("input_schema", "inputSchema")
"""What Anthropic's API and MCP call the parameters of a tool."""


def normalize_tools(value: Any, repairs: set[Repair], *, path: str = "tools") -> list[Tool] | None:
    """Return the row's tools, or `None` when it has none.

    Args:
        value (`Any`): A list of tools or of their JSON texts, one tool, tools by their names, the JSON text of any of
            these, or null.
        repairs (`set[Repair]`): What was mended is added to it.
        path (`str`, *optional*, defaults to `"tools"`): The column.

    Returns:
        `list[Tool]`, *optional*: To be taken as immutable: parts are shared with `value`, and tools that came as JSON
        text with whoever gave the same text before.

    Raises:
        DataFormatError: If it is anything else, or a tool has no name.
    """
    if is_missing(value):
        return None
    if isinstance(value, str):
        tools, found = tools_of_text(str(value), path)
        repairs.update(found)
        return list(tools) or None
    seen = survey(value)
    listed = _list_tools(read_plain(value, path, repairs) if seen & NOT_PLAIN else value, path, repairs)
    given = [tool for tool, _ in listed]
    cleaned = drop_schema_padding(given) if seen else given
    if cleaned is not given:
        repairs.add(Repair.SCHEMA_NULLS)
    return [normalize_tool(tool, where, repairs) for tool, (_, where) in zip(cleaned, listed, strict=True)] or None


@lru_cache(maxsize=128)
def tools_of_text(text: str, path: str) -> tuple[list[Tool], frozenset[Repair]]:
    """Return the tools of a JSON text, and what was mended; the rows of a dataset often repeat it, or its parts.

    Equal texts give the same list, which nobody may change.
    """
    known = _TEXTS.of_list(text)
    if known is not None:
        return [tool for tool, _ in known], frozenset({Repair.TOOLS_JSON}).union(*(found for _, found in known))
    value = read_json(text, path, _EXPECTED) if text.strip() else None
    if value is None:
        return [], frozenset()
    if isinstance(value, str):
        return tools_of_text(value, path)
    found = {Repair.TOOLS_JSON}
    listed = _list_tools(value, path, found)
    return [normalize_tool(tool, where, found) for tool, where in listed], frozenset(found)


def _read_item(value: Any) -> tuple[Tool, frozenset[Repair]]:
    found: set[Repair] = set()
    return normalize_tool(plain(value), "", found), frozenset(found)


_TEXTS = ItemTexts(_read_item)


@lru_cache(maxsize=1024)
def _tool_of_text(text: str) -> tuple[Tool, frozenset[Repair]]:
    found = {Repair.TOOLS_JSON}
    tool = read_json(text, "", "a tool")
    if not isinstance(tool, dict):
        raise _wrong_type(tool, "")
    return normalize_tool(tool, "", found), frozenset(found)


def _list_tools(value: Any, path: str, repairs: set[Repair]) -> list[tuple[Any, str]]:
    """Return the tools of a column one by one, each with its place."""
    if isinstance(value, dict):
        if not value:
            return []
        if not _has_names(value):
            return [(value, path)]
        repairs.add(Repair.TOOL_SHAPE)
        return [(_named(tool, name), f"{path}.{name}") for name, tool in value.items() if tool is not None]
    if not isinstance(value, list):
        raise DataFormatError(f"tools is of type {type(value).__name__}", expected=_EXPECTED, fix=_FIX, path=path)
    return [(tool, f"{path}[{index}]") for index, tool in enumerate(value)]


def _has_names(value: Mapping[str, Any]) -> bool:
    """Tell tools by their names from a single tool."""
    is_tool = "function" in value or isinstance(value.get("name"), str)
    return not is_tool and all(tool is None or isinstance(tool, dict) for tool in value.values())


def _named(tool: dict[str, Any], name: str) -> dict[str, Any]:
    if tool.get("name") or tool.get("function"):
        return tool
    return {"name": name, **{key: item for key, item in tool.items() if key != "name"}}


def normalize_tool(tool: Any, path: str, repairs: set[Repair]) -> Tool:
    """Return one tool in OpenAI's form; see `normalize_tools`."""
    if isinstance(tool, str):
        try:
            normalized, found = _tool_of_text(tool)
        except DataFormatError as error:
            raise DataFormatError(
                error.found, expected=error.expected, fix=error.fix, path=f"{path}{error.path}"
            ) from None
        repairs.update(found)
        return normalized
    if not isinstance(tool, dict):
        raise _wrong_type(tool, path)
    function = tool.get("function")
    if isinstance(function, str):
        function = read_json(function, f"{path}.function", "a function's definition")
        repairs.add(Repair.TOOLS_JSON)
    if isinstance(function, dict):
        path = f"{path}.function"
    else:
        tool, function = {}, {key: item for key, item in tool.items() if key not in ("type", "function")}
    normalized_function = _normalize_function(function, path, repairs)
    if tool.get("type") is None:
        tool = {"type": "function", **{key: item for key, item in tool.items() if key != "type"}}
        repairs.add(Repair.TOOL_SHAPE)
    if normalized_function is not tool.get("function"):
        tool = {**tool, "function": normalized_function}
    return cast(Tool, tool)


def _normalize_function(function: dict[str, Any], path: str, repairs: set[Repair]) -> dict[str, Any]:
    name, description, parameters = function.get("name"), function.get("description", ""), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise DataFormatError(
            f"the tool's name is {name!r}",
            expected="a text that is not empty",
            fix="name the tool as its calls name it",
            path=f"{path}.name",
        )
    if description is None:
        function = {key: item for key, item in function.items() if key != "description"}
        repairs.add(Repair.SCHEMA_NULLS)
    elif not isinstance(description, str):
        raise DataFormatError(
            f"the tool's description is of type {type(description).__name__}",
            expected="text",
            fix="write the description as text, or leave it out",
            path=f"{path}.description",
        )
    alias = next((key for key in _PARAMETER_KEYS if function.get(key) is not None), None)
    if parameters is None and alias is not None:
        function = {
            "parameters" if key == alias else key: item for key, item in function.items() if key != "parameters"
        }
        repairs.add(Repair.TOOL_SHAPE)
        parameters = function["parameters"]
    if isinstance(parameters, str):
        decoded = read_json(parameters, f"{path}.parameters", "a JSON Schema") if parameters.strip() else None
        function = {key: decoded if key == "parameters" else item for key, item in function.items()}
        if decoded is None:
            del function["parameters"]
        repairs.add(Repair.TOOLS_JSON)
    return function


def _wrong_type(tool: Any, path: str) -> DataFormatError:
    return DataFormatError(f"the tool is of type {type(tool).__name__}", expected=_EXPECTED, fix=_FIX, path=path)
