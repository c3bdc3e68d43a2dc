"""The shape of a conversation: all of it but its texts, so that conversations of one shape are rendered alike."""

import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from deepfabric_trainer.schema import Message, NullText
from deepfabric_trainer.template import Watch
from deepfabric_trainer.template.brackets import has_brackets

_MESSAGE_KEYS = {"role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "train", "weight"}
_CALL_KEYS = {"type", "function", "id"}


def shape_of(messages: Sequence[Message], watch: Watch, control: re.Pattern[str]) -> Hashable | None:
    """Return the shape of a conversation: its roles and keys, the white space around its texts, which ids are equal.

    Args:
        messages (`Sequence[Message]`): The conversation.
        watch (`Watch`): What the template looks for in texts.
        control (`re.Pattern[str]`): Matches control tokens.
    Returns:
        `Hashable`, *optional*: `None` where the texts hold something that the template or the reading of its
        rendering may take notice of, so that shape alone does not tell how they are rendered.
    """
    if not watch.is_clear:
        return None
    # Answers that begin like a prompt's end, as one for a turn that reasons, may stand behind either prompt.
    answers = (text for message in messages if message["role"] == "assistant" for text in _answers(message))
    if any(text.lstrip().startswith(watch.written) for text in answers):
        return None
    texts: list[str] = []
    names: dict[str, int] = {}
    shape: list[Hashable] = []
    for message in messages:
        entry = _entry(message, texts, names)
        if entry is None:
            return None
        shape.append(entry)
    joined = "\0".join(texts)
    if watch.inside.search(joined) or control.search(joined) or has_brackets(joined):
        return None
    if any(text in watch.whole or text.strip() in watch.whole for text in texts if text):
        return None
    return tuple(shape)


def plain_values(messages: Sequence[Message]) -> tuple[str, ...]:
    """Return the values in the arguments of a conversation's calls that are no texts: numbers, truth values, nulls."""
    calls = (call for message in messages for call in message.get("tool_calls", ()))
    return tuple(repr(value) for call in calls for value in _plain(call["function"]["arguments"]))


def _entry(message: Message, texts: list[str], names: dict[str, int]) -> Hashable | None:
    """Return what a message adds to the shape, `None` where it has keys of its own; collect its texts."""
    if not _MESSAGE_KEYS.issuperset(message):
        return None
    found: list[Hashable] = [message["role"], tuple(message), _edges(message["content"])]
    texts.append(message["content"])
    if "reasoning_content" in message:
        found.append(_edges(message["reasoning_content"]))
        texts.append(message["reasoning_content"])
    if "tool_call_id" in message:
        found += [len(message["tool_call_id"]), _name(message["tool_call_id"], texts, names)]
    if "name" in message:
        found.append(_name(message["name"], texts, names))
    for call in message.get("tool_calls", ()):
        function = call["function"]
        if not _CALL_KEYS.issuperset(call) or len(function) != 2:
            return None
        arguments = function["arguments"]
        found += [tuple(call), call["type"], _name(function["name"], texts, names), bool(arguments)]
        if "id" in call:
            found += [len(call["id"]), _name(call["id"], texts, names)]
        texts.extend(_leaves(arguments))
    return tuple(found)


def _answers(message: Message) -> tuple[str, ...]:
    return message["content"], message.get("reasoning_content", "")


def _edges(text: str) -> Hashable:
    """Return the white space around a text, which stays where it is when the text is another."""
    stripped = text.strip()
    if len(stripped) == len(text):
        return "text" if text else isinstance(text, NullText)
    start = text.find(stripped)
    return text[:start], text[start + len(stripped) :], bool(stripped)


def _name(name: str, texts: list[str], names: dict[str, int]) -> Hashable:
    """Return which name or id of the conversation it is."""
    texts.append(name)
    return names.setdefault(name, len(names)), _edges(name)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)


def _plain(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _plain(item)
    elif not isinstance(value, str):
        yield value
