"""The calls of an assistant message, in any of the shapes they come in, as calls in OpenAI's form."""

from collections.abc import Mapping, Sequence
from typing import Any

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema.argument_nulls import Padding, drop_argument_padding
from deepfabric_trainer.schema.reading import read_json
from deepfabric_trainer.schema.strict_json import NULL, survey
from deepfabric_trainer.schema.types import FunctionCall, Repair, Tool, ToolCall

_EXPECTED = 'calls such as {"type": "function", "function": {"name": ..., "arguments": {...}}}'
_FIX = "write the calls in this form, or remove them"
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
"""What the arguments of a call are called: by OpenAI; by Llama, LangChain and Anthropic."""
_ID_KEYS = ("call_id", "id")
"""What the id is called: OpenAI's Responses API has both, and its results name the first."""

_SCHEMA_KEYWORDS = frozenset({"properties", "patternProperties", "additionalProperties", "if", "then", "else"})
"""Keywords of an object's schema whose value is an object, so that they could be taken for the names of properties."""


class CallReader:
    """Reads the calls of one row's messages.

    Args:
        tools (`Sequence[Tool]`, *optional*): The row's tools, which say which null arguments are real.
        padding (`Padding`): Whether null arguments may be padding.
        repairs (`set[Repair]`): What is mended is added to it.
    """

    def __init__(self, tools: Sequence[Tool] | None, padding: Padding, repairs: set[Repair]) -> None:
        self._tools = tools or ()
        self._padding = padding
        self._repairs = repairs

    def of_message(self, message: Mapping[str, Any], path: str) -> list[ToolCall]:
        """Return the calls of a message: those of `tool_calls`, or the one of the legacy `function_call`.

        Raises:
            DataFormatError: If a call has no name, or arguments that are no object, or the message has both fields.
        """
        calls = self.of_field(message.get("tool_calls"), f"{path}.tool_calls")
        legacy = message.get("function_call")
        if not legacy or (isinstance(legacy, dict) and all(item is None for item in legacy.values())):
            return calls
        if calls:
            raise DataFormatError(
                "the message has calls in `tool_calls` and in `function_call`",
                expected="all calls in `tool_calls`",
                fix="remove `function_call`",
                path=f"{path}.function_call",
            )
        return self.of_field(legacy, f"{path}.function_call")

    def of_field(self, value: Any, path: str) -> list[ToolCall]:
        """Return the calls of a field that holds a list of calls, one call, or the JSON text of either."""
        from_text = isinstance(value, str)
        if isinstance(value, str) and value.strip():
            value = read_json(value, path, _EXPECTED)
        if value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip()):
            return []
        if isinstance(value, dict):
            return [self._read_call(value, path, from_text)]
        if not isinstance(value, list):
            raise _wrong_type("the calls are", value, path)
        return [self._read_call(call, f"{path}[{index}]", from_text) for index, call in enumerate(value)]

    def _read_call(self, call: Any, path: str, from_text: bool) -> ToolCall:
        if isinstance(call, str):
            call, from_text = read_json(call, path, _EXPECTED), True
        if not isinstance(call, dict):
            raise _wrong_type("the call is", call, path)
        function = call.get("function")
        if isinstance(function, str) and function.lstrip().startswith("{"):
            function, from_text = read_json(function, f"{path}.function", '{"name": ..., "arguments": {...}}'), True
        if isinstance(function, dict):
            path = f"{path}.function"
        else:
            function = {**call, "name": function} if isinstance(function, str) else call
            self._repairs.add(Repair.CALL_SHAPE)
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise DataFormatError(
                f"the call's name is {name!r}",
                expected="the name of a tool",
                fix="name the called tool or remove the call",
                path=f"{path}.name",
            )
        key = next((key for key in _ARGUMENT_KEYS if function.get(key) is not None), "arguments")
        if key != "arguments":
            self._repairs.add(Repair.CALL_SHAPE)
        arguments = self._read_arguments(function.get(key), f"{path}.{key}", name, from_text)
        normalized = ToolCall(type="function", function=FunctionCall(name=name, arguments=arguments))
        id_key = next((key for key in _ID_KEYS if call.get(key) is not None), None)
        if id_key is not None:
            normalized["id"] = read_id(call[id_key], f"{path.removesuffix('.function')}.{id_key}", self._repairs)
        return normalized

    def _read_arguments(self, value: Any, path: str, name: str, from_text: bool) -> dict[str, Any]:
        times_decoded = 0
        while isinstance(value, str) and value.strip():
            value = read_json(value, path, "an object of named arguments")
            times_decoded += 1
        if times_decoded:
            self._repairs.add(Repair.ARGUMENTS_JSON)
        if times_decoded > 1:
            self._repairs.add(Repair.ARGUMENTS_JSON_TWICE)
        if value is None or isinstance(value, str) or value == []:
            self._repairs.add(Repair.ARGUMENTS_EMPTY)
            return {}
        if not isinstance(value, dict):
            raise DataFormatError(
                f"the arguments are of type {type(value).__name__}",
                expected="an object of named arguments, or its JSON text",
                fix="give each argument its name, or remove the call",
                path=path,
            )
        if from_text or times_decoded or not survey(value) & NULL:
            return value
        cleaned, found = drop_argument_padding(value, self._parameters_of(name), self._padding)
        self._repairs.update(found)
        return cleaned

    def _parameters_of(self, name: str) -> Mapping[str, Any] | None:
        """Return the schema of a tool's arguments, `None` when the row does not list the tool."""
        for tool in self._tools:
            if tool["function"]["name"] == name:
                return _as_schema(tool["function"].get("parameters"))
        return None


def read_id(value: Any, path: str, repairs: set[Repair]) -> str:
    """Return the id of a call as text.

    Raises:
        DataFormatError: If it is neither text nor a whole number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        repairs.add(Repair.CALL_IDS)
        return str(value)
    raise DataFormatError(
        f"the id is of type {type(value).__name__}",
        expected="text",
        fix="write the id as text, the same for the call and its result",
        path=path,
    )


def _as_schema(parameters: Any) -> Mapping[str, Any]:
    """Return a tool's parameters as a JSON Schema, where some writers give only the properties, or a list of them."""
    if isinstance(parameters, list):
        return {"properties": {each["name"]: each for each in parameters if isinstance(each, dict) and "name" in each}}
    if not isinstance(parameters, dict):
        return {}
    if _SCHEMA_KEYWORDS.isdisjoint(parameters) and all(isinstance(each, dict) for each in parameters.values()):
        return {"properties": parameters}
    return parameters


def _wrong_type(subject: str, value: Any, path: str) -> DataFormatError:
    return DataFormatError(f"{subject} of type {type(value).__name__}", expected=_EXPECTED, fix=_FIX, path=path)
