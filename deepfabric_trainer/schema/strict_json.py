"""JSON as its standard has it, where Python's decoder also takes NaN, infinities and halves of characters."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any


def decode(text: str) -> Any:
    """Decode JSON text.

    Raises:
        json.JSONDecodeError: If it is not JSON.
        ValueError: If it holds a number that is not finite, or one of more digits than Python reads.
    """
    return decoder().decode(text)


def decoder() -> json.JSONDecoder:
    """Return the decoder itself, for who wants `raw_decode`."""
    return json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def problem(value: Any) -> tuple[str, str] | None:
    """Return where and why a value cannot be written as JSON text, `None` when it can.

    Returns:
        `tuple[str, str]`, *optional*: The path inside the value, and the reason in words.
    """
    return next(_problems(value, ""), None)


def _problems(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _problems(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _problems(item, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"the number {value} is not JSON"
    elif isinstance(value, str) and not value.isascii() and _has_surrogate(value):
        yield path, "the text holds half of a character (a lone surrogate, as cut JSON text has)"


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the text holds the number {text}, which is too large")
    return number


def _refuse(name: str) -> Any:
    raise ValueError(f"the text holds {name}")
