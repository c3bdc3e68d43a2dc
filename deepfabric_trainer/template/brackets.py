r"""Private-use characters as brackets that carry a number, and the way to take them out of a text again.

A bracket is one character of plane 16, so that no template can tear it apart. What a JSON filter escapes to
`\uXXXX\uXXXX`, and Python's `repr` to `\UXXXXXXXX`, is undone first.
"""

import re
from typing import NamedTuple

_OPENING, _CLOSING = 0x100000, 0x108000
MAX_NUMBER = 0x7FFD
_BRACKET = re.compile("[\U00100000-\U0010ffff]")
_ESCAPED = re.compile(r"\\u(d[bB][89a-fA-F][0-9a-fA-F])\\u(d[c-fC-F][0-9a-fA-F]{2})|\\U(0010[0-9a-fA-F]{4})")


class Span(NamedTuple):
    """Characters `start` to `end` (not included) of a text."""

    start: int
    end: int


class Bracketed(NamedTuple):
    """A text without its brackets, and what stood between them.

    Args:
        text (`str`): The text without brackets.
        spans (`dict[int, list[Span]]`): For each number, in order, the spans that hold text.
    """

    text: str
    spans: dict[int, list[Span]]


def bracket(text: str, number: int) -> str:
    """Put a text between the brackets of a number."""
    return f"{chr(_OPENING + number)}{text}{chr(_CLOSING + number)}"


def has_brackets(text: str) -> bool:
    """Tell whether a text holds characters that brackets are made of."""
    return not text.isascii() and _BRACKET.search(text) is not None


def take_out(text: str) -> Bracketed:
    """Take the brackets out of a text. A bracket without its partner leaves no span."""
    text = unescape(text)
    pieces: list[str] = []
    length = position = 0
    opened: dict[int, int] = {}
    spans: dict[int, list[Span]] = {}
    for match in _BRACKET.finditer(text):
        pieces.append(text[position : match.start()])
        length += match.start() - position
        position = match.end()
        closes, number = _read(match[0])
        if not closes:
            opened[number] = length
            continue
        start = opened.pop(number, None)
        if start is not None and start < length:
            spans.setdefault(number, []).append(Span(start, length))
    pieces.append(text[position:])
    return Bracketed("".join(pieces), spans)


def unescape(text: str) -> str:
    """Undo what filters have escaped of the brackets in a text."""
    return _ESCAPED.sub(_unescape, text) if "\\ud" in text or "\\U0010" in text else text


def split_at_brackets(text: str) -> list[tuple[str, int | None]] | None:
    """Cut a text, whose brackets are not escaped, at its brackets.

    Returns:
        `list[tuple[str, int | None]]`, *optional*: The pieces, none of them empty, each with the number of the
        brackets that it stands between. `None` where brackets stand in brackets or have no partner.
    """
    pieces: list[tuple[str, int | None]] = []
    position, inside = 0, None
    for match in _BRACKET.finditer(text):
        if match.start() > position:
            pieces.append((text[position : match.start()], inside))
        position = match.end()
        closes, number = _read(match[0])
        if inside != (number if closes else None):
            return None
        inside = None if closes else number
    if position < len(text):
        pieces.append((text[position:], inside))
    return pieces if inside is None else None


def _read(character: str) -> tuple[int, int]:
    """Return whether a bracket closes, and its number."""
    return divmod(ord(character) - _OPENING, _CLOSING - _OPENING)


def _unescape(match: re.Match[str]) -> str:
    if match[3]:
        return chr(int(match[3], 16))
    return (chr(int(match[1], 16)) + chr(int(match[2], 16))).encode("utf-16", "surrogatepass").decode("utf-16")
