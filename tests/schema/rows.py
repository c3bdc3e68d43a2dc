"""Rows and tools that the tests of the schema share."""

from typing import Any

from deepfabric_trainer.schema import Message, Tool, normalize_row

USER = {"role": "user", "content": "Weather in Paris?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}},
    },
}
OTHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_stock",
        "parameters": {"type": "object", "properties": {"ticker": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


def tool_with(parameters: Any, name: str = "get_weather") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def message_of(message: dict[str, Any]) -> Message:
    return normalize_row({"messages": [USER, message]}).messages[-1]


def arguments_of(row: dict[str, Any]) -> Any:
    return normalize_row(row).messages[-1]["tool_calls"][0]["function"]["arguments"]


def tools_of(tools: Any) -> list[Tool] | None:
    return normalize_row({"messages": [USER], "tools": tools}).tools
