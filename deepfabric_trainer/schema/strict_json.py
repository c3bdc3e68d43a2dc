"""JSON as its standard has it, where Python's decoder also takes NaN, infinities and halves of characters."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

NULL = 1
NOT_PLAIN = 2


class NotJsonError(ValueError):
    """A value that JSON text cannot hold.

    Args:
        reason (`str`): What was found, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""
        """Where it stands inside the value, such as `".filters[0].value"`."""


class UnknownTypeError(NotJsonError):
    """A value of a type that JSON has nothing for, such as a date, bytes or an image."""


def decode(text: str) -> Any:
    """Decode JSON text.

    Raises:
        json.JSONDecodeError: If it is not JSON.
        ValueError: If it holds a number that is not finite, or one of more digits than Python reads, or is nested
            deeper than Python reads.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("the text is nested too deeply") from None


def decoder() -> json.JSONDecoder:
    """Return a decoder of its own, for who wants `raw_decode`."""
    return json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def survey(value: Any) -> int:
    """Look through a value, quickly: most values need nothing more.

    Returns:
        `int`: The sum of `NULL`, if it is null or holds a null, and of `NOT_PLAIN`, if it holds anything that `plain`
        changes or refuses; 0 for most values.
    """
    kind = type(value)
    seen = 0
    if kind is dict:
        for key in value:
            if type(key) is not str or not (key.isascii() or _has_whole_characters(key)):
                seen = NOT_PLAIN
        items = value.values()
    else:
        items = value if kind is list else (value,)
    for item in items:
        kind = type(item)
        if kind is str:
            if not item.isascii() and not _has_whole_characters(item):
                seen |= NOT_PLAIN
        elif kind is dict or kind is list:
            seen |= survey(item)
        elif item is None:
            seen |= NULL
        elif kind is float:
            if not isfinite(item):
                seen |= NOT_PLAIN
        elif kind is int:
            if not -_LARGE < item < _LARGE:
                seen |= NOT_PLAIN
        elif kind is not bool:
            seen |= NOT_PLAIN
    return seen


def plain(value: Any) -> Any:
    """Return a value as JSON's own types: dicts with text keys, lists, text, numbers, booleans and null.

    Tuples, arrays and tensors become lists, NumPy's scalars numbers. What is plain already is not copied but returned
    itself, so that `plain(value) is value` tells that there was nothing to do.

    Raises:
        NotJsonError: If JSON text cannot hold the value: a number that is not finite, half of a character, a key that
            is not text.
        UnknownTypeError: If it, or something inside it, is of a type that JSON has nothing for.
    """
    return _plain(value) if survey(value) & NOT_PLAIN else value


def plain_key(key: Any) -> str:
    """Return the key of an object as JSON's own text.

    Raises:
        NotJsonError: If it is not text, or holds half of a character.
    """
    if type(key) is str and key.isascii():
        return key
    if not isinstance(key, str):
        raise NotJsonError(f"the key {key!r} is of type {type(key).__name__}, where JSON has only text")
    _require_whole_characters(key)
    return str.__str__(key)


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {plain_key(key): _plain_part(item, f".{key}") for key, item in value.items()}
    if kind is list:
        return [_plain_part(item, f"[{index}]") for index, item in enumerate(value)]
    if kind is str:
        _require_whole_characters(value)
    elif kind is float and not isfinite(value):
        raise NotJsonError(f"the number {value} is not JSON")
    elif kind is int:
        _require_writable(value)
    elif kind not in (float, bool) and value is not None:
        return _plain(_as_builtin(value))
    return value


def _plain_part(value: Any, place: str) -> Any:
    try:
        return _plain(value)
    except NotJsonError as error:
        error.path = f"{place}{error.path}"
        raise


def _as_builtin(value: Any) -> Any:
    """Return a value that is none of JSON's types as the one that it stands for."""
    for base, convert in _SUBCLASSES:
        if isinstance(value, base):
            return convert(value)
    if isinstance(value, type | bytes | bytearray | memoryview):
        pass
    elif hasattr(value, "tolist"):  # NumPy's scalars and arrays, tensors, series
        converted = value.tolist()
        if type(converted) is not type(value):
            return converted
    elif isinstance(value, Sequence):
        return list(value)
    raise UnknownTypeError(f"a value of type {type(value).__name__} is not JSON")


def _require_whole_characters(text: str) -> None:
    if not _has_whole_characters(text):
        raise NotJsonError("the text holds half of a character (a lone surrogate, as cut JSON text has)")


def _has_whole_characters(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_writable(number: int) -> None:
    try:
        str(number)
    except ValueError:
        raise NotJsonError(f"the number has more than {sys.get_int_max_str_digits()} digits") from None


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"the text holds the number {text}, which is too large")
    return number


def _refuse(name: str) -> Any:
    raise ValueError(f"the text holds {name}")


_DECODER = decoder()
_LARGE = 10**640
"""Below it Python writes out every number, whatever limit is set."""
_SUBCLASSES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (Mapping, dict),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
)
"""Types whose subclasses (enums, NumPy's text and floats, lazy rows) stand for a plain value, with the way to it."""
