"""The skeleton of a rendering: what the template wrote, and between it the places of the conversation's own texts.

It is learned from one rendering with brackets, and fitted to the rendering of another conversation of the same shape.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple

from deepfabric_trainer.encode.fields import json_forms, written_forms
from deepfabric_trainer.schema import Message, Tool
from deepfabric_trainer.template import Catalogue, ChatTemplate, Field, FieldKind
from deepfabric_trainer.template.brackets import bracket, split_at_brackets, unescape
from deepfabric_trainer.template.direct import FIRST_TOOL
from deepfabric_trainer.template.marks import bracket_fields

_FIRST_NAME = 0x6000
"""The number of the brackets around the first name or id; fields have the numbers below it."""
_SIMPLE = re.compile(r"[ !#-&(-\[\]-~]*")
"""Text that every template writes as it is."""


class Place(NamedTuple):
    """A position in every rendering with one skeleton: so many characters behind the beginning of a piece."""

    piece: int
    offset: int


class _Key(Enum):
    """A text of a message that is no field."""

    NAME = "name"
    RESULT_ID = "tool_call_id"
    CALL_ID = "id"


class _Text(NamedTuple):
    """The place of a text of a message."""

    message: int
    kind: FieldKind | _Key
    call: int | None

    def end(self, text: str, start: int, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int | None:
        own = self._text(messages[self.message]).strip()
        if _SIMPLE.fullmatch(own):
            return start + len(own) if text.startswith(own, start) else None
        ends = {start + len(form) for form in written_forms(own) if text.startswith(form, start)}
        return ends.pop() if len(ends) == 1 else None

    def _text(self, message: Message) -> str:
        if self.call is not None:
            call = message["tool_calls"][self.call]
            return call["id"] if self.kind is _Key.CALL_ID else call["function"]["name"]
        if isinstance(self.kind, _Key):
            return message["name"] if self.kind is _Key.NAME else message["tool_call_id"]
        return message["content"] if self.kind is FieldKind.CONTENT else message["reasoning_content"]


class _Arguments(NamedTuple):
    """The place of the arguments of a call, written as JSON."""

    message: int
    call: int

    def end(self, text: str, start: int, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int | None:
        arguments = messages[self.message]["tool_calls"][self.call]["function"]["arguments"]
        # No JSON text of an object begins with another one.
        return next((start + len(form) for form in json_forms(arguments) if text.startswith(form, start)), None)


class _Written(NamedTuple):
    """The place of a tool, written out as a whole."""

    tool: int
    style: Any

    def end(self, text: str, start: int, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int | None:
        written = tools.known[self.tool].written.get(self.style) if isinstance(tools, Catalogue) else None
        return start + len(written) if written is not None and text.startswith(written, start) else None


class _ToolText(NamedTuple):
    """A tool in the one rendering that is learned from, with the number of its brackets."""

    text: str
    number: int


_Hole = _Text | _Arguments | _Written


@dataclass(frozen=True)
class Skeleton:
    """The pieces of a rendering, in order.

    Args:
        pieces (`tuple[str | _Hole, ...]`): What the template wrote, none of it empty, and the places of texts.
        shows_tools (`bool`): Whether every tool stands in a place of its own, so that any others may stand there.
    """

    pieces: tuple[str | _Hole, ...]
    shows_tools: bool

    @property
    def constant(self) -> str:
        """What the template wrote, and tools that have no places."""
        return "\0".join(piece for piece in self.pieces if isinstance(piece, str))

    def written_tools(self) -> Iterator[tuple[int, Any]]:
        """Go over the tools that have places: the number of each, and the key of how it is written."""
        return ((piece.tool, piece.style) for piece in self.pieces if isinstance(piece, _Written))

    def fit(self, text: str, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[int] | None:
        """Return where each piece begins in a rendering, and where the last one ends; `None` if it does not fit."""
        begins: list[int] = []
        at = 0
        for piece in self.pieces:
            begins.append(at)
            if isinstance(piece, str):
                end = at + len(piece) if text.startswith(piece, at) else None
            else:
                end = piece.end(text, at, messages, tools)
            if end is None:
                return None
            at = end
        begins.append(at)
        return begins if at == len(text) else None

    def place(self, position: int, begins: Sequence[int]) -> Place | None:
        """Return the place of a position in the rendering that it was fitted to; `None` inside a hole."""
        for number, (start, end) in enumerate(pairwise(begins)):
            if start <= position < end:
                return Place(number, position - start) if self._is_place(number, position - start) else None
        return Place(len(self.pieces), 0) if position == begins[-1] else None

    def _is_place(self, number: int, offset: int) -> bool:
        return not offset or isinstance(self.pieces[number], str)


def learn_skeleton(
    template: ChatTemplate, text: str, messages: Sequence[Message], tools: Sequence[Tool] | None
) -> Skeleton | None:
    """Learn the skeleton of a rendering.

    Args:
        template (`ChatTemplate`): That renders it.
        text (`str`): The rendering.
        messages (`Sequence[Message]`): The conversation.
        tools (`Sequence[Tool]`, *optional*): Its tools.
    Returns:
        `Skeleton`, *optional*: It fits the rendering. `None` where the places of the texts cannot be told.
    """
    bracketed, fields, _ = bracket_fields(messages)
    names = _bracket_names(bracketed)
    if len(fields) > _FIRST_NAME or len(names) > FIRST_TOOL - _FIRST_NAME:
        return None
    rendered = template.render_marked(bracketed, tools)
    if rendered is None:
        return None
    marked, styles = unescape(rendered[0]), rendered[1]
    pieces = _pieces(marked, bracketed, fields, names)
    if pieces is None:
        return None
    shows_tools = _shows_all({piece.number for piece in pieces if isinstance(piece, _ToolText)}, styles, tools)
    merged: list[str | _Hole] = []
    for piece in pieces:
        if not isinstance(piece, _ToolText):
            hole: str | _Hole = piece
        elif shows_tools:
            hole = _Written(piece.number - FIRST_TOOL, next(iter(styles[piece.number])))
        else:
            hole = piece.text
        if isinstance(hole, str) and merged and isinstance(merged[-1], str):
            merged[-1] += hole
        else:
            merged.append(hole)
    skeleton = Skeleton(tuple(merged), shows_tools)
    return skeleton if skeleton.fit(text, messages, tools) is not None else None


def _bracket_names(messages: list[Message]) -> list[_Text]:
    """Bracket the names and ids in messages, which are copies whose calls are copies too; return their places."""
    places: list[_Text] = []

    def put(owner: Any, key: _Key, index: int, call: int | None) -> None:
        if owner.get(key.value, "").strip():
            text = owner[key.value]
            stripped = text.strip()
            before, after = text.split(stripped, 1)
            owner[key.value] = f"{before}{bracket(stripped, _FIRST_NAME + len(places))}{after}"
            places.append(_Text(index, key, call))

    for index, message in enumerate(messages):
        put(message, _Key.NAME, index, None)
        put(message, _Key.RESULT_ID, index, None)
        for number, call in enumerate(message.get("tool_calls", ())):
            put(call, _Key.CALL_ID, index, number)
    return places


def _pieces(
    marked: str, messages: Sequence[Message], fields: Sequence[Field], names: Sequence[_Text]
) -> list[str | _Hole | _ToolText] | None:
    """Cut a rendering with brackets into what the template wrote, holes, and tools, each with its number."""
    places = _places_of_arguments(marked, messages)
    if places is None:
        return None
    pieces: list[str | _Hole | _ToolText] = []
    position = 0
    for start, end, arguments in [*sorted(places), (len(marked), len(marked), None)]:
        cut = split_at_brackets(marked[position:start])
        if cut is None:
            return None
        for text, number in cut:
            if number is None:
                pieces.append(text)
            elif number >= FIRST_TOOL:
                pieces.append(_ToolText(text, number))
            elif number >= _FIRST_NAME:
                pieces.append(names[number - _FIRST_NAME])
            elif fields[number].kind in (FieldKind.ARGUMENT, FieldKind.ARGUMENT_NAME):
                return None
            else:
                field = fields[number]
                pieces.append(_Text(field.message, field.kind, field.call))
        if arguments is not None:
            pieces.append(arguments)
        position = end
    return pieces


def _places_of_arguments(marked: str, messages: Sequence[Message]) -> list[tuple[int, int, _Arguments | None]] | None:
    """Find the arguments of every call as JSON; `None` where a template writes them in another way."""
    places: list[tuple[int, int, _Arguments | None]] = []
    for index, message in enumerate(messages):
        for number, call in enumerate(message.get("tool_calls", ())):
            arguments = call["function"]["arguments"]
            if not arguments:
                continue
            forms = {unescape(form) for form in json_forms(arguments)}
            found = [(marked.find(form), form) for form in forms if form in marked]
            if len(found) != 1 or marked.count(found[0][1]) != 1:
                return None
            at, form = found[0]
            places.append((at, at + len(form), _Arguments(index, number)))
    return places


def _shows_all(numbers: set[int], styles: dict[int, set[Any]], tools: Sequence[Tool] | None) -> bool:
    """Tell whether every tool is written out as a whole, always in one way, and no two are the same."""
    known = tools.known if isinstance(tools, Catalogue) else ()
    expected = {FIRST_TOOL + number for number in range(len(known))}
    return (
        numbers == expected and len(set(known)) == len(known) and all(len(styles[number]) == 1 for number in expected)
    )
