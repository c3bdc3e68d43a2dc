"""The `tools` column of a row, in any of the shapes it comes in, as a list of tools in OpenAI's form."""

import copy
import json
from collections.abc import Mapping
from typing import Any, cast

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema.nulls import drop_schema_padding
from deepfabric_trainer.schema.strict_json import decode
from deepfabric_trainer.schema.types import Repair, Tool

_EXPECTED = 'a list of tools such as {"type": "function", "function": {"name": ..., "parameters": {...}}}'


def normalize_tools(value: Any, repairs: set[Repair]) -> list[Tool] | None:
    """Return the row's tools, or `None` when it has none.

    Args:
        value (`Any`): A list of tools or of JSON texts, one tool, the JSON text of either, or null.
        repairs (`set[Repair]`): What was mended is added to it.
    Raises:
        DataFormatError: If it is anything else, or a tool has no name.
    """
    from_json = isinstance(value, str)
    if isinstance(value, str):
        value = _decode(value, "tools", repairs) if value.strip() else None
    if isinstance(value, Mapping):
        value = [value]
    if value is None:
        return None
    if not isinstance(value, list):
        raise DataFormatError(f"tools is of type {type(value).__name__}", expected=_EXPECTED, path="tools")
    return [_normalize_tool(tool, f"tools[{i}]", from_json, repairs) for i, tool in enumerate(value)] or None


def _normalize_tool(tool: Any, path: str, from_json: bool, repairs: set[Repair]) -> Tool:
    if isinstance(tool, str):
        tool, from_json = _decode(tool, path, repairs), True
    if not isinstance(tool, Mapping):
        raise DataFormatError(f"the tool is of type {type(tool).__name__}", expected=_EXPECTED, path=path)
    if from_json:
        tool = copy.deepcopy(dict(tool))
    else:
        tool, dropped = drop_schema_padding(copy.deepcopy(dict(tool)))
        if dropped:
            repairs.add(Repair.SCHEMA_NULLS)
    if not isinstance(tool.get("function"), Mapping):
        tool = {"type": "function", "function": {key: item for key, item in tool.items() if key != "type"}}
        repairs.add(Repair.TOOL_SHAPE)
    tool.setdefault("type", "function")
    if not isinstance(tool["function"].get("description", ""), str):
        tool["function"].pop("description")
    name = tool["function"].get("name")
    if not isinstance(name, str) or not name:
        raise DataFormatError(
            f"the tool's name is {name!r}",
            expected="a text that is not empty",
            fix="name the tool as its calls name it",
            path=f"{path}.function.name",
        )
    return cast(Tool, tool)


def _decode(text: str, path: str, repairs: set[Repair]) -> Any:
    try:
        value = decode(text)
    except json.JSONDecodeError as error:
        raise DataFormatError(
            f"the text is not JSON ({error.msg} at character {error.pos})", expected=_EXPECTED, path=path
        ) from None
    except ValueError as error:
        raise DataFormatError(str(error), expected=_EXPECTED, path=path) from None
    repairs.add(Repair.TOOLS_JSON)
    return value
