"""The calls of an assistant message, in any of the shapes they come in, as calls in OpenAI's form."""

import copy
import json
from collections.abc import Mapping
from typing import Any

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema.nulls import drop_argument_padding
from deepfabric_trainer.schema.strict_json import decode
from deepfabric_trainer.schema.types import FunctionCall, Repair, Tool, ToolCall

_EXPECTED = 'calls such as {"type": "function", "function": {"name": ..., "arguments": {...}}}'


def normalize_calls(
    message: Mapping[str, Any], path: str, tools: list[Tool] | None, repairs: set[Repair]
) -> list[ToolCall]:
    """Return the calls of a message: those of `tool_calls`, or the one of the legacy `function_call`.

    Args:
        message (`Mapping`): The message as it came.
        path (`str`): Where it stands in the row, such as `"messages[2]"`.
        tools (`list[Tool]`, *optional*): The row's tools, which say which null arguments are real.
        repairs (`set[Repair]`): What was mended is added to it.
    Raises:
        DataFormatError: If a call has no name, or arguments that are not an object.
    """
    calls, path_of_calls = message.get("tool_calls"), f"{path}.tool_calls"
    if not calls and message.get("function_call"):
        calls, path_of_calls = [message["function_call"]], f"{path}.function_call"
    if isinstance(calls, str):
        calls = _decode(calls, path_of_calls) if calls.strip() else None
    if calls is None:
        return []
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list):
        raise DataFormatError(f"the calls are of type {type(calls).__name__}", expected=_EXPECTED, path=path_of_calls)
    return [_normalize_call(call, f"{path_of_calls}[{i}]", tools, repairs) for i, call in enumerate(calls)]


def _normalize_call(call: Any, path: str, tools: list[Tool] | None, repairs: set[Repair]) -> ToolCall:
    if isinstance(call, str):
        call = _decode(call, path)
    if not isinstance(call, Mapping):
        raise DataFormatError(f"the call is of type {type(call).__name__}", expected=_EXPECTED, path=path)
    function = call.get("function")
    if not isinstance(function, Mapping):
        function = call
        repairs.add(Repair.CALL_SHAPE)
    else:
        path = f"{path}.function"
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise DataFormatError(
            f"the call's name is {name!r}",
            expected="the name of a tool",
            fix="name the called tool or remove the call",
            path=f"{path}.name",
        )
    arguments = _normalize_arguments(function.get("arguments"), f"{path}.arguments", name, tools, repairs)
    normalized = ToolCall(type="function", function=FunctionCall(name=name, arguments=arguments))
    if call.get("id") is not None:
        normalized["id"] = str(call["id"])
    return normalized


def _normalize_arguments(
    value: Any, path: str, name: str, tools: list[Tool] | None, repairs: set[Repair]
) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        value = _decode(value, path)
        repairs.add(Repair.ARGUMENTS_JSON)
        if isinstance(value, dict):
            return value
    if not isinstance(value, Mapping):
        raise DataFormatError(
            f"the arguments are of type {type(value).__name__}",
            expected="an object of named arguments, or its JSON text",
            path=path,
        )
    arguments: dict[str, Any] = copy.deepcopy(dict(value))
    schema = _parameters_of(name, tools)
    if schema is not None:
        arguments, dropped = drop_argument_padding(arguments, schema)
        if dropped:
            repairs.add(Repair.ARGUMENT_NULLS)
    return arguments


def _parameters_of(name: str, tools: list[Tool] | None) -> Mapping[str, Any] | None:
    for tool in tools or []:
        if tool["function"]["name"] == name:
            parameters = tool["function"].get("parameters")
            return parameters if isinstance(parameters, Mapping) and parameters else {"properties": {}}
    return None


def _decode(text: str, path: str) -> Any:
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        raise DataFormatError(
            f"the text is not JSON ({error.msg} at character {error.pos}): {_shorten(text)}",
            expected="valid JSON",
            fix="write the value with a JSON encoder, or remove the call",
            path=path,
        ) from None
    except ValueError as error:
        raise DataFormatError(str(error), expected="valid JSON, which has no such number", path=path) from None


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
