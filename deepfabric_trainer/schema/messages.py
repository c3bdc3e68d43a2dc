"""The messages of a row, in any of the shapes they come in, as messages in OpenAI's form."""

import json
from collections.abc import Mapping
from typing import Any, cast

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema.calls import CallReader, read_id
from deepfabric_trainer.schema.reading import listed, not_json
from deepfabric_trainer.schema.reasoning_text import reasoning_text
from deepfabric_trainer.schema.strict_json import NotJsonError, UnknownTypeError, plain, plain_key
from deepfabric_trainer.schema.types import Message, NullText, Repair, ToolCall

_OWN_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_result": "tool",
    "function_call_output": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "tool_output": "tool",
}
"""Role names of ShareGPT, of other trainers and of OpenAI's older API, in today's words."""
_CALL_ROLES = frozenset({"function_call", "tool_call", "tool_calls"})
"""Roles of messages whose text is a call, or a list of calls."""
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")
_READ_KEYS = frozenset({"role", "content", "from", "value", "tool_calls", "function_call", *_REASONING_KEYS})
"""Keys that are read into another form; all others are kept as they are."""
_OWN_KEYS = _READ_KEYS | {"tool_call_id", "name", "train", "weight"}


def read_message(message: Any, path: str, repairs: set[Repair]) -> dict[str, Any]:
    """Return a message with plain JSON values under the keys that mean something to us.

    Raises:
        DataFormatError: If it is no object, or JSON text cannot hold one of these values.
    """
    if not isinstance(message, Mapping):
        raise DataFormatError(
            f"the message is of type {type(message).__name__}",
            expected='an object such as {"role": "user", "content": "..."}',
            fix="write each message as an object with `role` and `content`",
            path=path,
        )
    read = {}
    for key, value in message.items():
        try:
            read[plain_key(key)] = item = value if isinstance(value, NullText) else plain(value)
        except UnknownTypeError as error:
            if key in _OWN_KEYS:
                raise not_json(error, f"{path}.{key}") from None
            read[key] = item = value
        except NotJsonError as error:
            raise not_json(error, f"{path}.{key}") from None
        if item is not value:
            repairs.add(Repair.PLAIN_VALUES)
    return read


def normalize_message(message: Mapping[str, Any], path: str, calls: CallReader, repairs: set[Repair]) -> Message:
    """Return a message in OpenAI's form.

    Args:
        message (`Mapping`): As `read_message` gives it.
        path (`str`): Its place in the row, such as `"messages[2]"`.
        calls (`CallReader`): Reads its calls.
        repairs (`set[Repair]`): What is mended is added to it.

    Raises:
        DataFormatError: For what cannot be read; it names the field.
    """
    role = _read_role(message, path, repairs)
    content_key = "value" if message.get("content") is None and "value" in message else "content"
    content_path = f"{path}.{content_key}"
    content = message.get(content_key)
    own_calls = calls.of_message(message, path)
    if role in _CALL_ROLES:
        role = "assistant"
        if not own_calls:
            own_calls, content = _calls_of_content(content, content_path, calls), ""
    if own_calls and role != "assistant":
        raise DataFormatError(
            f"a message of role {role!r} has {len(own_calls)} tool calls",
            expected="calls in assistant messages only",
            fix='give the message the role "assistant", or remove its calls',
            path=f"{path}.{'tool_calls' if message.get('tool_calls') else 'function_call'}",
        )
    normalized: dict[str, Any] = {"role": role, "content": _read_content(content, role, content_path, repairs)}
    for key, value in message.items():
        if key not in _READ_KEYS and value is not None:
            normalized[key] = _CHECKS[key](value, f"{path}.{key}", repairs) if key in _CHECKS else value
    reasoning = _read_reasoning(message, path, repairs)
    if reasoning:
        normalized["reasoning_content"] = reasoning
    if own_calls:
        normalized["tool_calls"] = own_calls
    return cast(Message, normalized)


def merge_calls(messages: list[Message], as_they_came: list[dict[str, Any]], repairs: set[Repair]) -> list[Message]:
    """Put calls that follow each other, one message each, into one assistant message: they are one turn's calls.

    Formats whose messages hold one call only write parallel calls so. The model that makes them stops once.

    Args:
        messages (`list[Message]`): Normalized.
        as_they_came (`list[dict]`): The same messages as `read_message` gives them.
        repairs (`set[Repair]`): What is mended is added to it.
    """
    merged: list[Message] = []
    after_call = False
    for message, raw in zip(messages, as_they_came, strict=True):
        is_call = "tool_calls" in message and not raw.get("tool_calls")
        if is_call and after_call and _continues(message, merged[-1]):
            merged[-1] = {**merged[-1], "tool_calls": [*merged[-1]["tool_calls"], *message["tool_calls"]]}
            repairs.add(Repair.CALLS_MERGED)
        else:
            merged.append(message)
        after_call = is_call
    return merged


def _continues(message: Message, before: Message) -> bool:
    """Tell whether a message has nothing to say beyond its calls that differs from the message before it."""

    def others(each: Message) -> dict[str, Any]:
        return {key: value for key, value in each.items() if key not in ("content", "reasoning_content", "tool_calls")}

    return not message["content"] and "reasoning_content" not in message and others(message) == others(before)


def _read_role(message: Mapping[str, Any], path: str, repairs: set[Repair]) -> str:
    key = "from" if message.get("role") is None and "from" in message else "role"
    role = message.get(key)
    if not isinstance(role, str) or not role:
        raise DataFormatError(
            f"the role is {role!r}, among the keys {listed(message)}",
            expected="one of system, user, assistant, tool",
            fix="name the role of the message",
            path=f"{path}.{key}",
        )
    if role in _OWN_ROLES:
        return role
    folded = role.strip().lower()
    if folded not in _OWN_ROLES and folded not in _ROLES and folded not in _CALL_ROLES:
        return role
    repairs.add(Repair.ROLE_NAMES)
    return _ROLES.get(folded, folded)


def _calls_of_content(content: Any, path: str, calls: CallReader) -> list[ToolCall]:
    found = calls.of_field(content, path)
    if not found:
        raise DataFormatError(
            "the function call is empty",
            expected='the JSON text of a call, {"name": ..., "arguments": {...}}, or of a list of calls',
            fix="write the call, or remove the message",
            path=path,
        )
    return found


def _read_content(content: Any, role: str, path: str, repairs: set[Repair]) -> str:
    if content is None:
        return NullText()
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(_is_text_part(part, role) for part in content):
        repairs.add(Repair.CONTENT_PARTS)
        return "".join(part if isinstance(part, str) else part["text"] for part in content)
    if role == "tool":
        repairs.add(Repair.CONTENT_JSON)
        return json.dumps(content, ensure_ascii=False)
    if content == []:
        return ""
    kinds = set()
    if isinstance(content, list):
        kinds = {str(part.get("type")) for part in content if isinstance(part, dict)}
    fix = "write the content as text; rows with images go to the trainer with their `images` column"
    if kinds & {"tool_use", "tool_result", "tool_call", "function_call"}:
        fix = 'write calls as the `tool_calls` of the message, and results as messages of role "tool"'
    raise DataFormatError(
        f"the content is of type {type(content).__name__}"
        + (f" with parts of type {', '.join(sorted(kinds))}" if kinds else ""),
        expected="text, or a list of text parts",
        fix=fix,
        path=path,
    )


def _is_text_part(part: Any, role: str) -> bool:
    """Tell a text part from other values; a tool may also return a list of texts, or objects with a text inside."""
    if not isinstance(part, dict):
        return isinstance(part, str) and role != "tool"
    if not isinstance(part.get("text"), str):
        return False
    if role == "tool":
        has_more = any(part[key] is not None for key in part if key not in ("type", "text", "annotations"))
        return part.get("type") in _TEXT_PARTS and not has_more
    return part.get("type") is None or part["type"] in _TEXT_PARTS


def _read_reasoning(message: Mapping[str, Any], path: str, repairs: set[Repair]) -> str:
    found = ""
    for key in _REASONING_KEYS:
        text = reasoning_text(message.get(key), f"{path}.{key}")
        if text and found and text != found:
            raise DataFormatError(
                f"the reasoning in `{key}` differs from the one before it",
                expected="one reasoning in a message",
                fix="keep the one to be trained, as `reasoning_content`",
                path=f"{path}.{key}",
            )
        if text and key != "reasoning_content":
            repairs.add(Repair.REASONING_KEYS)
        found = found or text
    return found


def _read_name(value: Any, path: str, repairs: set[Repair]) -> str:
    if not isinstance(value, str):
        raise DataFormatError(
            f"the name is of type {type(value).__name__}", expected="text", fix="write the name as text", path=path
        )
    return value


def _read_train(value: Any, path: str, repairs: set[Repair]) -> bool:
    if not isinstance(value, bool):
        raise DataFormatError(
            f"`train` is {value!r}",
            expected="true or false",
            fix="write whether the message is to be trained, or leave `train` out",
            path=path,
        )
    return value


def _read_weight(value: Any, path: str, repairs: set[Repair]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise DataFormatError(
            f"the weight is {value!r}",
            expected="a number that is not negative",
            fix="write how much the message's loss counts (0 for not at all), or leave `weight` out",
            path=path,
        )
    return value


_CHECKS = {"tool_call_id": read_id, "name": _read_name, "train": _read_train, "weight": _read_weight}
"""How the keys of a message that keep their form are checked."""
