"""Reading one value, as JSON or as a Python literal, out of a text that a model wrote.

Everything is read in one pass, to a bounded depth: a model writes what it likes, also 100,000 brackets.
"""

import ast
import re
import warnings
from typing import Any

from deepfabric_trainer.schema import strict_json
from deepfabric_trainer.toolcalls.pieces import skip_space

MAX_DEPTH = 100
"""Deeper values are malformed: no tool asks for them, and comparing them would exhaust Python's stack."""
WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_DECODER = strict_json.decoder()
_SIGNS = re.compile(r"['\"\[\]{}()]")
_TEXTS = {quote: re.compile(rf"{quote}[^{quote}\\]*(?:\\.[^{quote}\\]*)*{quote}", re.DOTALL) for quote in "'\""}
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_ATOM = re.compile(r"[^\s,()\[\]{}<>'\"]+")


class Malformed(Exception):
    """A call that cannot be read; the message says why."""


class Data(Malformed):
    """What looks like a call at first sight, and is data: it names no tool that there is, and has no arguments."""


def read_json(text: str, position: int) -> tuple[Any, int]:
    """Read the JSON value at a position; return it with the position behind it.

    Raises:
        Malformed: If there is no such value.
    """
    try:
        value, end = _DECODER.raw_decode(text, skip_space(text, position))
        return strict_json.plain(_not_too_deep(value)), end
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the call is not readable JSON: {error}") from error


def read_value(text: str, position: int) -> tuple[Any, int]:
    """Read the value at a position, as JSON or else as a Python literal; return it with the position behind it.

    Raises:
        Malformed: If there is no such value.
    """
    try:
        return read_json(text, position)
    except Malformed:
        position = skip_space(text, position)
        end = _literal_end(text, position)
        literal = text[position:end]
        return (WORDS[literal] if literal in WORDS else _not_too_deep(evaluate(literal))), end


def text_end(text: str, position: int) -> int | None:
    """Return the position behind the quoted text that begins at a position; `None` if it is not closed."""
    match = _TEXTS[text[position]].match(text, position)
    return match and match.end()


def evaluate(literal: str) -> Any:
    """Return the value of a Python literal, as JSON's types.

    Raises:
        Malformed: If it is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return strict_json.plain(ast.literal_eval(literal))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise Malformed(f"{_shortened(literal)} is not a value") from error


def _literal_end(text: str, position: int) -> int:
    first = text[position : position + 1]
    if first in ("'", '"'):
        end = text_end(text, position)
        if end is None:
            raise Malformed("a text is not closed by its quote")
        return end
    if first not in _CLOSING:
        atom = _ATOM.match(text, position)
        if atom is None:
            raise Malformed("a value is missing")
        return atom.end()
    expected: list[str] = []
    while (sign := _SIGNS.search(text, position)) is not None:
        position = sign.end()
        if sign[0] in _TEXTS:
            end = text_end(text, sign.start())
            if end is None:
                raise Malformed("a text is not closed by its quote")
            position = end
        elif sign[0] in _CLOSING:
            expected.append(_CLOSING[sign[0]])
            if len(expected) > MAX_DEPTH:
                raise Malformed("the values are nested too deeply")
        elif expected.pop() != sign[0]:
            raise Malformed(f"a bracket is closed by {sign[0]}")
        if not expected:
            return position
    raise Malformed(f"a bracket is not closed by {expected[-1]}")


def _not_too_deep(value: Any) -> Any:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return value
        level = inner
    raise Malformed("the values are nested too deeply")


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
