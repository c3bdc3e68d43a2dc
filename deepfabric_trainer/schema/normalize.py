"""From a row as it comes to a `Conversation`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema.argument_nulls import Padding, padding_of
from deepfabric_trainer.schema.calls import CallReader
from deepfabric_trainer.schema.messages import merge_calls, normalize_message, read_message
from deepfabric_trainer.schema.reading import is_missing, listed, read_json, read_plain
from deepfabric_trainer.schema.reasoning_text import reasoning_text
from deepfabric_trainer.schema.tools import normalize_tools
from deepfabric_trainer.schema.types import Conversation, Message, Repair, RowReasoning, Tool

_CONVERSATION_KEYS = ("messages", "conversations")
_COMPLETION_KEYS = ("prompt", "completion")


class ToolsReader(Protocol):
    """Reads the tools of a row, as `normalize_tools` does."""

    def __call__(self, value: Any, repairs: set[Repair], *, path: str = "tools") -> list[Tool] | None:  # noqa: D102
        ...


def normalize_row(row: Mapping[str, Any], read_tools: ToolsReader = normalize_tools) -> Conversation:
    """Make a conversation from a row of `messages` (or ShareGPT's `conversations`), `tools` and `reasoning`.

    A row of `prompt` and `completion`, both lists of messages, is one conversation, whose prompt is not trained.

    The row itself is never changed. Other columns are not looked at, but for `functions`, OpenAI's older name for
    `tools`, where there are no tools. A key of a message that is null is the same as one that is not there.

    Args:
        row (`Mapping[str, Any]`): As it comes from JSON, from Arrow (in any format of `datasets`) or from code.
        read_tools (`ToolsReader`, *optional*): Reads its tools, such as [`SharedTools`] for rows that share theirs.

    Returns:
        `Conversation`: With text contents, decoded arguments, tools in OpenAI's form, and no padding nulls. It shares
        with the row what needed no repair.

    Raises:
        DataFormatError: For what cannot be read; it names the field and the edit that mends it.
    """
    key = conversation_key(row) if isinstance(row, Mapping) else None
    if key is None and not (isinstance(row, Mapping) and is_conversational_completion(row)):
        found = f"only {listed(row)}" if isinstance(row, Mapping) else f"but is of type {type(row).__name__}"
        raise DataFormatError(
            f"the row has no `messages`, {found}",
            expected="a list of messages, each with `role` and `content`",
            fix="rename the column that holds the conversation to `messages`",
            path="messages",
        )
    repairs: set[Repair] = set()
    try:
        tools = _read_tools(row, read_tools, repairs)
        return Conversation(
            messages=_read_completion(row, tools, repairs)
            if key is None
            else _read_messages(row[key], key, tools, repairs),
            tools=tools,
            reasoning=_read_reasoning(row.get("reasoning"), repairs),
            repairs=frozenset(repairs),
        )
    except RecursionError:
        raise DataFormatError(
            "the row is nested too deeply",
            expected="objects inside objects to a depth that JSON readers take",
            fix="look for an object that holds itself",
            path=key or "prompt",
        ) from None


def conversation_key(row: Mapping[str, Any]) -> str | None:
    """Return the name of the column that holds the conversation, `None` when there is none."""
    present = [key for key in _CONVERSATION_KEYS if key in row]
    return next((key for key in present if not is_missing(row[key])), present[0] if present else None)


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is a conversation: a list of messages, as objects or as the JSON text of a list."""
    key = conversation_key(row)
    messages = row[key] if key is not None else None
    if isinstance(messages, str):
        return messages.lstrip().startswith("[")
    messages = _as_list(messages)
    return isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages)


def is_conversational_completion(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is a `prompt` and a `completion` that are both lists of messages."""
    columns = [_as_list(row.get(key)) for key in _COMPLETION_KEYS]
    return all(
        isinstance(column, list) and bool(column) and all(isinstance(message, Mapping) for message in column)
        for column in columns
    )


def _read_completion(row: Mapping[str, Any], tools: list[Tool] | None, repairs: set[Repair]) -> list[Message]:
    """Return the messages of a prompt and its completion; those of the prompt are not trained."""
    prompt, completion = (_as_list(row[key]) for key in _COMPLETION_KEYS)
    # Read as one, so that padding by Arrow shows; the key stands in all of them, as in rows that Arrow padded.
    messages = [{**message, "train": False} for message in prompt]
    messages += [{"train": None, **message} for message in completion]
    return _read_messages(messages, "messages", tools, repairs)


def _read_tools(row: Mapping[str, Any], read_tools: ToolsReader, repairs: set[Repair]) -> list[Tool] | None:
    tools = read_tools(row.get("tools"), repairs)
    if tools is not None or is_missing(row.get("functions")):
        return tools
    tools = read_tools(row["functions"], repairs, path="functions")
    if tools is not None:
        repairs.add(Repair.TOOLS_COLUMN)
    return tools


def _read_messages(value: Any, key: str, tools: list[Tool] | None, repairs: set[Repair]) -> list[Message]:
    came_as_text = isinstance(value, str)
    messages = read_json(value, key, "a list of messages") if came_as_text else _as_list(value)
    if not isinstance(messages, list) or not messages:
        kind = "empty" if messages == [] else "null" if is_missing(messages) else f"of type {type(messages).__name__}"
        raise DataFormatError(
            f"the conversation is {kind}",
            expected="a list of at least one message",
            fix="remove the row, or give it its messages",
            path=key,
        )
    if came_as_text:
        repairs.add(Repair.MESSAGES_JSON)
    elif messages is not value:
        repairs.add(Repair.PLAIN_VALUES)
    paths = [f"{key}[{index}]" for index in range(len(messages))]
    read = [read_message(message, path, repairs) for message, path in zip(messages, paths, strict=True)]
    calls = CallReader(tools, Padding.NONE if came_as_text else padding_of(read), repairs)
    normalized = [normalize_message(message, path, calls, repairs) for message, path in zip(read, paths, strict=True)]
    return merge_calls(normalized, read, repairs)


def _read_reasoning(value: Any, repairs: set[Repair]) -> RowReasoning | None:
    if is_missing(value):
        return None
    value = read_plain(value, "reasoning", repairs)
    text = reasoning_text(value, "reasoning")
    if not text:
        return None
    style = value.get("style") if isinstance(value, dict) else None
    return RowReasoning(style=str(style or "text"), text=text)


def _as_list(value: Any) -> Any:
    """Return a sequence of another kind (a tuple, an array) as a list, anything else as it is."""
    if isinstance(value, list | str | bytes | Mapping):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, Sequence) else value
