r"""Private-use characters as brackets that carry a number, and the way to take them out of a text again.

A bracket is one character, so that no template can tear it apart: plane 15 brackets messages, plane 16 fields. What a
JSON filter escapes to `\uXXXX\uXXXX` is undone first.
"""

import re
from enum import IntEnum
from typing import NamedTuple

_CLOSE_OFFSET = 0x8000
MAX_NUMBER = 0x7FFD
_BRACKET = re.compile("[\U000f0000-\U0010ffff]")
_ESCAPED = re.compile(r"\\u(d[bB][89a-fA-F][0-9a-fA-F])\\u(d[c-fC-F][0-9a-fA-F]{2})")


class Span(NamedTuple):
    """Characters `start` to `end` (not included) of a text."""

    start: int
    end: int


class Bracket(IntEnum):
    """What is bracketed; the value is the character that opens number 0."""

    MESSAGE = 0xF0000
    FIELD = 0x100000

    def opening(self, number: int) -> str:
        """Return the character that opens this number."""
        return chr(self + number)

    def closing(self, number: int) -> str:
        """Return the character that closes this number."""
        return chr(self + _CLOSE_OFFSET + number)


class Bracketed(NamedTuple):
    """A text without its brackets, and what stood between them.

    Args:
        text (`str`): The text without brackets.
        spans (`dict[tuple[Bracket, int], list[Span]]`): For each kind and number, in order, the spans that hold text.
        seen (`set[tuple[Bracket, int]]`): Every kind and number of which a bracket stood in the text.
    """

    text: str
    spans: dict[tuple[Bracket, int], list[Span]]
    seen: set[tuple[Bracket, int]]

    def only(self, kind: Bracket, number: int) -> Span | None:
        """Return the one span of this number, `None` when there is none or more than one."""
        spans = self.spans.get((kind, number), [])
        return spans[0] if len(spans) == 1 else None


def has_brackets(text: str) -> bool:
    """Tell whether a text holds characters that brackets are made of."""
    return not text.isascii() and _BRACKET.search(text) is not None


def take_out(text: str) -> Bracketed:
    """Take the brackets out of a text. A bracket without its partner leaves no span."""
    if "\\ud" in text:
        text = _ESCAPED.sub(_unescape, text)
    pieces: list[str] = []
    length = position = 0
    opened: dict[tuple[Bracket, int], int] = {}
    spans: dict[tuple[Bracket, int], list[Span]] = {}
    seen: set[tuple[Bracket, int]] = set()
    for match in _BRACKET.finditer(text):
        pieces.append(text[position : match.start()])
        length += match.start() - position
        position = match.end()
        kind = Bracket.FIELD if ord(match[0]) >= Bracket.FIELD else Bracket.MESSAGE
        closes, number = divmod(ord(match[0]) - kind, _CLOSE_OFFSET)
        seen.add((kind, number))
        if not closes:
            opened[kind, number] = length
            continue
        start = opened.pop((kind, number), None)
        if start is not None and start < length:
            spans.setdefault((kind, number), []).append(Span(start, length))
    pieces.append(text[position:])
    return Bracketed("".join(pieces), spans, seen)


def _unescape(match: re.Match[str]) -> str:
    return (chr(int(match[1], 16)) + chr(int(match[2], 16))).encode("utf-16", "surrogatepass").decode("utf-16")
