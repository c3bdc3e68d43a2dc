"""Texts that a template writes, cut into tags, words and white space, compared, and looked for leniently."""

import re
from collections.abc import Sequence

from deepfabric_trainer.template.habits import TAG

_PIECE = re.compile(rf"{TAG.pattern}|<[^<>\s]*>?|\s+|[^\s<>\w]|\w+|>")


def pieces(text: str) -> list[str]:
    """Cut a text into tags, runs of white space, words and single signs; joined they are the text."""
    return _PIECE.findall(text)


def common_start(one: str, other: str) -> str:
    """Return the pieces with which both texts begin."""
    return "".join(_common(pieces(one), pieces(other)))


def common_end(one: str, other: str) -> str:
    """Return the pieces with which both texts end."""
    return "".join(reversed(_common(pieces(one)[::-1], pieces(other)[::-1])))


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    together = zip(one, other, strict=False)
    length = next((index for index, (mine, yours) in enumerate(together) if mine != yours), min(len(one), len(other)))
    return list(one[:length])


def after_common_start(text: str, start: str) -> str:
    """Return a text without what it shares with the beginning of another, cut between pieces."""
    position = 0
    for piece in pieces(text):
        if not start.startswith(piece, position):
            break
        position += len(piece)
    return text[position:]


def lenient(text: str) -> str:
    """Return a pattern for a text in which white space may differ, also behind tags where the text has none."""
    pattern, before = "", ""
    for piece in pieces(text):
        gap = piece.isspace() or TAG.fullmatch(before) is not None
        pattern += r"\s*" if gap and not before.isspace() else ""
        pattern += "" if piece.isspace() else re.escape(piece)
        before = piece
    return pattern


def skip_space(text: str, position: int) -> int:
    """Return the position of the next character that is not white space."""
    while position < len(text) and text[position].isspace():
        position += 1
    return position
