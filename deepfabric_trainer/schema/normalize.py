"""From a row as it comes to a `Conversation`."""

import copy
import json
from collections.abc import Mapping
from typing import Any, cast

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema.calls import normalize_calls
from deepfabric_trainer.schema.strict_json import decode, problem
from deepfabric_trainer.schema.tools import normalize_tools
from deepfabric_trainer.schema.types import Conversation, Message, Repair, RowReasoning, Tool

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""Role names of ShareGPT and of OpenAI's legacy API, in today's words."""
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_OWN_KEYS = frozenset({"role", "content", "from", "value", "tool_calls", "function_call", *_REASONING_KEYS})


def normalize_row(row: Mapping[str, Any]) -> Conversation:
    """Make a conversation from a row of `messages` (or ShareGPT's `conversations`), `tools` and `reasoning`.

    The row itself is never changed. Other columns are not looked at.

    Args:
        row (`Mapping[str, Any]`): As it comes from JSON, from Arrow or from code.
    Returns:
        `Conversation`: With text contents, decoded arguments, tools in OpenAI's form, and no padding nulls.
    Raises:
        DataFormatError: For what cannot be read; it names the field and the edit that mends it.
    """
    key = conversation_key(row)
    if key is None:
        raise DataFormatError(
            f"the row has no `messages`, only {_listed(row)}",
            expected="a list of messages, each with `role` and `content`",
            fix="rename the column that holds the conversation to `messages`",
            path="messages",
        )
    messages = row[key]
    if isinstance(messages, str):
        messages = _decode_messages(messages, key)
    if not isinstance(messages, list) or not messages:
        kind = "empty" if messages == [] else f"{type(messages).__name__}" if messages is not None else "null"
        raise DataFormatError(
            f"the conversation is {kind}",
            expected="a list of at least one message",
            fix="remove the row, or give it its messages",
            path=key,
        )
    repairs: set[Repair] = set()
    tools = normalize_tools(row.get("tools"), repairs)
    normalized = [_normalize_message(message, f"{key}[{i}]", tools, repairs) for i, message in enumerate(messages)]
    for value, name in ((normalized, key), (tools, "tools")):
        found = problem(value)
        if found is not None:
            raise DataFormatError(
                found[1], expected="values that JSON text can hold", fix="mend the value", path=f"{name}{found[0]}"
            )
    return Conversation(
        messages=normalized,
        tools=tools,
        reasoning=_normalize_reasoning(row.get("reasoning")),
        repairs=frozenset(repairs),
    )


def conversation_key(row: Mapping[str, Any]) -> str | None:
    """Return the name of the column that holds the conversation, `None` when there is none."""
    return next((key for key in ("messages", "conversations") if key in row), None)


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is a conversation: a list of messages, as objects or as the JSON text of a list."""
    key = conversation_key(row)
    messages = row[key] if key is not None else None
    if isinstance(messages, str):
        return messages.lstrip().startswith("[")
    return isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages)


def _normalize_message(message: Any, path: str, tools: list[Tool] | None, repairs: set[Repair]) -> Message:
    if not isinstance(message, Mapping):
        raise DataFormatError(
            f"the message is of type {type(message).__name__}",
            expected='an object such as {"role": "user", "content": "..."}',
            path=path,
        )
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or not role:
        raise DataFormatError(
            f"the role is {role!r}, among the keys {_listed(message)}",
            expected="one of system, user, assistant, tool",
            fix="name the role of the message",
            path=f"{path}.role",
        )
    if role in _ROLES:
        role = _ROLES[role]
        repairs.add(Repair.ROLE_NAMES)
    elif role == "function_call":
        return _sharegpt_call(message, path, tools, repairs)
    content = message.get("content", message.get("value"))
    normalized: dict[str, Any] = {"role": role, "content": _normalize_content(content, role, path, repairs)}
    for key, value in message.items():
        if key not in _OWN_KEYS and value is not None:
            normalized[key] = copy.deepcopy(value)
    reasoning = next((message[key] for key in _REASONING_KEYS if message.get(key)), None)
    if reasoning is not None:
        normalized["reasoning_content"] = _normalize_content(reasoning, role, path, repairs)
    if "tool_call_id" in normalized:
        normalized["tool_call_id"] = str(normalized["tool_call_id"])
    calls = normalize_calls(message, path, tools, repairs)
    if calls and role != "assistant":
        raise DataFormatError(
            f"a message of role {role!r} has {len(calls)} tool calls",
            expected="calls in assistant messages only",
            fix='give the message the role "assistant", or remove its `tool_calls`',
            path=f"{path}.tool_calls",
        )
    if calls:
        normalized["tool_calls"] = calls
    return cast(Message, normalized)


def _sharegpt_call(message: Mapping[str, Any], path: str, tools: list[Tool] | None, repairs: set[Repair]) -> Message:
    repairs.update((Repair.ROLE_NAMES, Repair.CALL_SHAPE))
    value = message.get("value", message.get("content"))
    calls = normalize_calls({"tool_calls": value}, path, tools, repairs)
    if not calls:
        raise DataFormatError("the function call is empty", expected="a call's JSON text", path=f"{path}.value")
    return Message(role="assistant", content="", tool_calls=calls)


def _normalize_content(content: Any, role: str, path: str, repairs: set[Repair]) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        repairs.add(Repair.CONTENT_PARTS)
        return "".join(part if isinstance(part, str) else part["text"] for part in content)
    if role == "tool":
        repairs.add(Repair.CONTENT_JSON)
        return json.dumps(content, ensure_ascii=False)
    if content == []:
        return ""
    kinds = (
        sorted({str(part.get("type")) for part in content if isinstance(part, Mapping)})
        if isinstance(content, list)
        else []
    )
    raise DataFormatError(
        f"the content is of type {type(content).__name__}"
        + (f" with parts of type {', '.join(kinds)}" if kinds else ""),
        expected="text, or a list of text parts",
        fix="write the content as text; rows with images go to the trainer with their `images` column",
        path=f"{path}.content",
    )


def _is_text_part(part: Any) -> bool:
    if isinstance(part, Mapping):
        return part.get("type", "text") == "text" and isinstance(part.get("text"), str)
    return isinstance(part, str)


def _normalize_reasoning(value: Any) -> RowReasoning | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return RowReasoning(style="text", text=value)
    if isinstance(value, Mapping):
        content, style = value.get("content"), str(value.get("style") or "text")
        if content is None or content in ("", []):
            return None
        if isinstance(content, str):
            return RowReasoning(style=style, text=content)
        if isinstance(content, list):
            return RowReasoning(style=style, text="\n".join(_step_text(step, i) for i, step in enumerate(content)))
    raise DataFormatError(
        f"the reasoning is of type {type(value).__name__}",
        expected='text, or {"style": ..., "content": text or list of steps}',
        path="reasoning",
    )


def _step_text(step: Any, index: int) -> str:
    if isinstance(step, str):
        return step
    if isinstance(step, Mapping):
        thought = step.get("thought") or step.get("content") or step.get("text")
        if isinstance(thought, str):
            return thought
    raise DataFormatError(
        f"the step is {type(step).__name__} without a text",
        expected="text, or an object with `thought`",
        path=f"reasoning.content[{index}]",
    )


def _decode_messages(text: str, key: str) -> Any:
    try:
        return decode(text)
    except ValueError as error:
        raise DataFormatError(f"the text is not JSON ({error})", expected="a list of messages", path=key) from None


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"
