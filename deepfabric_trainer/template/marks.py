"""Spans of fields, found by bracketing the text of every field before it goes into the template.

A field is one piece of text: a content, a reasoning, a tool's name, a text among a call's arguments. Its brackets
stand inside the surrounding white space, which templates trim, and inside `<think>` tags, which templates test for.
The caller compares what is left without the brackets with the template's own rendering.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from deepfabric_trainer.schema import Message
from deepfabric_trainer.template.brackets import MAX_NUMBER, Bracket

_THINK_TAG = re.compile(r"(</?think(?:ing)?>)")


class FieldKind(Enum):
    """What a piece of text was in its message."""

    CONTENT = "content"
    REASONING = "reasoning_content"
    TOOL_NAME = "tool_calls[].function.name"
    ARGUMENT = "tool_calls[].function.arguments"


@dataclass(frozen=True)
class Field:
    """One piece of text of a message.

    Args:
        message (`int`): The index of its message.
        kind (`FieldKind`): What it is there.
        text (`str`): The text, without surrounding white space.
        call (`int`, *optional*): The index of its call, for names and arguments.
        number (`int`): Its place among all fields of the conversation.
    """

    message: int
    kind: FieldKind
    text: str
    call: int | None = None
    number: int = 0


def bracket_fields(messages: Sequence[Message]) -> tuple[list[Message], list[Field]]:
    """Bracket every piece of text in a copy of the messages.

    Returns:
        `tuple[list[Message], list[Field]]`: The bracketed copy, and the fields in the order of their numbers.
    """
    bracketing = _Bracketing()
    return [bracketing.message(index, message) for index, message in enumerate(messages)], bracketing.fields


class _Bracketing:
    def __init__(self) -> None:
        self.fields: list[Field] = []

    def message(self, index: int, message: Message) -> Message:
        copied = copy.deepcopy(message)
        if "reasoning_content" in message:
            reasoning = Field(index, FieldKind.REASONING, message["reasoning_content"].strip())
            copied["reasoning_content"] = self._bracket(message["reasoning_content"], reasoning)
        copied["content"] = self._content(index, message["content"], message["role"] == "assistant")
        for number, call in enumerate(message.get("tool_calls", [])):
            function = copied["tool_calls"][number]["function"]
            name = call["function"]["name"]
            function["name"] = self._bracket(name, Field(index, FieldKind.TOOL_NAME, name, number))
            function["arguments"] = self._arguments(call["function"]["arguments"], index, number)
        return copied

    def _content(self, index: int, content: str, splits: bool) -> str:
        if not splits or "</think" not in content:
            return self._bracket(content, Field(index, FieldKind.CONTENT, content.strip()))
        pieces, kind = [], FieldKind.REASONING
        for piece in _THINK_TAG.split(content):
            if _THINK_TAG.fullmatch(piece):
                kind = FieldKind.CONTENT if piece.startswith("</") else FieldKind.REASONING
                pieces.append(piece)
            else:
                pieces.append(self._bracket(piece, Field(index, kind, piece.strip())))
        return "".join(pieces)

    def _arguments(self, value: Any, index: int, call: int) -> Any:
        if isinstance(value, str):
            return self._bracket(value, Field(index, FieldKind.ARGUMENT, value.strip(), call))
        if isinstance(value, list):
            return [self._arguments(item, index, call) for item in value]
        if isinstance(value, dict):
            return {key: self._arguments(item, index, call) for key, item in value.items()}
        return value

    def _bracket(self, text: str, field: Field) -> str:
        stripped = text.strip()
        if not stripped or len(self.fields) > MAX_NUMBER:
            return text
        number = len(self.fields)
        self.fields.append(replace(field, number=number))
        before, after = text.split(stripped, 1)
        return f"{before}{Bracket.FIELD.opening(number)}{stripped}{Bracket.FIELD.closing(number)}{after}"
