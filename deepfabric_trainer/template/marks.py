"""Spans of fields, found by bracketing the text of every field before it goes into the template.

A field is one piece of text: a content, a reasoning, a tool's name, a name or a text among a call's arguments. Its
brackets stand inside the surrounding white space, which templates trim, and inside `<think>` tags, which templates
test for. The caller compares what is left without the brackets with the template's own rendering.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Any, cast

from deepfabric_trainer.schema import Message
from deepfabric_trainer.template.brackets import MAX_NUMBER, bracket

_THINK_TAG = re.compile(r"(</?think(?:ing)?>)")


class FieldKind(Enum):
    """What a piece of text was in its message."""

    CONTENT = "content"
    REASONING = "reasoning"
    TOOL_NAME = "tool name"
    ARGUMENT_NAME = "argument name"
    ARGUMENT = "argument"


class Marking(IntEnum):
    """Which fields are bracketed. Templates that look at some of them render the rest the same."""

    ALL = 0
    NO_ARGUMENT_NAMES = 1
    LAST_MESSAGE = 2
    LAST_MESSAGE_NO_ARGUMENT_NAMES = 3


@dataclass(frozen=True)
class Field:
    """One piece of text of a message.

    Args:
        message (`int`): The index of its message.
        kind (`FieldKind`): What it is there.
        text (`str`): The text, without surrounding white space.
        call (`int`, *optional*): The index of its call, for names and arguments.
        number (`int`): Its place among all fields of the conversation.
        inline (`bool`): Whether it is a reasoning between tags in the content.
    """

    message: int
    kind: FieldKind
    text: str
    call: int | None = None
    number: int = 0
    inline: bool = False

    @property
    def path(self) -> str:
        """Where the field stands in its row."""
        inside = {FieldKind.CONTENT: "content", FieldKind.REASONING: "reasoning_content", FieldKind.TOOL_NAME: "name"}
        path = "content" if self.inline else inside.get(self.kind, "arguments")
        return f"messages[{self.message}]." + (
            path if self.call is None else f"tool_calls[{self.call}].function.{path}"
        )

    def __str__(self) -> str:
        shortened = self.text if len(self.text) <= 40 else f"{self.text[:39]}…"
        return f"the {self.kind.value} {shortened!r}"


def bracket_fields(
    messages: Sequence[Message], marking: Marking = Marking.ALL
) -> tuple[list[Message], list[Field], set[int]]:
    """Bracket every piece of text that the marking names, in a copy of the messages.

    Returns:
        `tuple[list[Message], list[Field], set[int]]`: The bracketed copy, all fields in the order of their numbers,
        and the numbers of those that are bracketed.
    """
    bracketing = _Bracketing(marking, len(messages) - 1)
    bracketed = [bracketing.message(index, message) for index, message in enumerate(messages)]
    return bracketed, bracketing.fields, bracketing.bracketed


class _Bracketing:
    def __init__(self, marking: Marking, last: int) -> None:
        self.fields: list[Field] = []
        self.bracketed: set[int] = set()
        self._names = marking in (Marking.ALL, Marking.LAST_MESSAGE)
        self._first = 0 if marking in (Marking.ALL, Marking.NO_ARGUMENT_NAMES) else last

    def message(self, index: int, message: Message) -> Message:
        copied: dict[str, Any] = dict(message)
        if "reasoning_content" in message:
            reasoning = Field(index, FieldKind.REASONING, message["reasoning_content"].strip())
            copied["reasoning_content"] = self._bracket(message["reasoning_content"], reasoning)
        copied["content"] = self._content(index, message["content"], message["role"] == "assistant")
        if "tool_calls" in message:
            copied["tool_calls"] = [
                {**call, "function": self._function(call["function"], index, number)}
                for number, call in enumerate(message["tool_calls"])
            ]
        return cast(Message, copied)

    def _content(self, index: int, content: str, splits: bool) -> str:
        if not splits or "</think" not in content:
            return self._bracket(content, Field(index, FieldKind.CONTENT, content.strip()))
        pieces: list[str] = []
        split = _THINK_TAG.split(content)
        # The prompt may have opened the block; else what stands before its tag is content.
        kind = FieldKind.REASONING if split[1].startswith("</") else FieldKind.CONTENT
        for piece in split:
            if _THINK_TAG.fullmatch(piece):
                kind = FieldKind.CONTENT if piece.startswith("</") else FieldKind.REASONING
                pieces.append(piece)
            else:
                is_inline = kind is FieldKind.REASONING
                pieces.append(self._bracket(piece, Field(index, kind, piece.strip(), inline=is_inline)))
        return "".join(pieces)

    def _function(self, function: Mapping[str, Any], index: int, number: int) -> dict[str, Any]:
        name = self._bracket(function["name"], Field(index, FieldKind.TOOL_NAME, function["name"], number))
        return {**function, "name": name, "arguments": self._arguments(function["arguments"], index, number)}

    def _arguments(self, value: Any, index: int, call: int) -> Any:
        if isinstance(value, str):
            return self._bracket(value, Field(index, FieldKind.ARGUMENT, value.strip(), call))
        if isinstance(value, list):
            return [self._arguments(item, index, call) for item in value]
        if not isinstance(value, dict):
            return value
        # Numbered in the order of the filter `dictsort`, so that a template which sorts the names still does.
        brackets = {
            key: self._bracket(key, Field(index, FieldKind.ARGUMENT_NAME, key.strip(), call))
            for key in sorted(value, key=str.lower)
        }
        return {brackets[key]: self._arguments(item, index, call) for key, item in value.items()}

    def _bracket(self, text: str, field: Field) -> str:
        stripped = text.strip()
        if not stripped:
            return text
        number = len(self.fields)
        self.fields.append(replace(field, number=number))
        is_left = field.message < self._first or (field.kind is FieldKind.ARGUMENT_NAME and not self._names)
        if is_left or number > MAX_NUMBER:
            return text
        self.bracketed.add(number)
        before, after = text.split(stripped, 1)
        return f"{before}{bracket(stripped, number)}{after}"
