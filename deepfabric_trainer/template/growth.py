"""How large what an operator, a method or a filter makes will be, before it makes it.

Only a few can make much of little: those that repeat, pad, insert and format. What they are going to make is computed
from their arguments; everything else is counted when it is there, and is not larger than what it was made of. Those
that take the product of two lengths are counted by it.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from deepfabric_trainer.template.budget import MOST_BITS, Budget, OverBudgetError

WIDEST = 100_000
"""Characters that a text may be padded to, and digits that a number may be written with."""
_DIGITS = re.compile(r"\d+")
_NESTED = re.compile(r"\{[^{}]*\{|%[^%a-zA-Z]*\*")
"""A width that is an argument, as in `{:{}}` and `%*d`."""


def check_product(budget: Budget, left: Any, right: Any) -> None:
    """Check `left * right`."""
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, str | bytes | list | tuple):
            budget.made_text(budget.weight(value) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MOST_BITS:
        raise OverBudgetError("it makes a number of too many digits")


def check_power(budget: Budget, left: Any, right: Any) -> None:
    """Check `left ** right`."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MOST_BITS:
        raise OverBudgetError("it makes a number of too many digits")


def check_formatted(budget: Budget, pattern: Any, values: Any) -> None:
    """Check a text in which values are formatted, with `%` or `format`."""
    if not isinstance(pattern, str):
        return
    given = [*values, *values.values()] if isinstance(values, Mapping) else values
    given = given if isinstance(given, list | tuple) else [given]
    widths: list[Any] = _DIGITS.findall(pattern)
    if _NESTED.search(pattern):
        widths += [value for value in given if isinstance(value, int)]
    _require_narrow(widths)
    places = pattern.count("%") + pattern.count("{")
    widest = max(map(int, widths), default=0) + max(map(budget.weight, given), default=0)
    budget.made_text(len(pattern) + places * widest)


def check_method(budget: Budget, owner: str | bytes | int, name: str, args: Any, options: Any) -> Any:
    """Check a call of a method of a text or a number; return its arguments, of which an iterator has been read."""
    given = [*args, *options.values()]
    if name == "replace" and len(given) > 1 and _all_texts(owner, *given[:2]):
        budget.made_text(replaced_length(owner, given[0], given[1]))
    elif name == "join" and given:
        return (read_joined(budget, owner, given[0]),)
    elif name in _SEARCHES and given and isinstance(owner, str | bytes):
        _check_search(budget, owner, name, given[0])
    elif name == "striptags":
        _check_tags(budget, str(owner))
    elif name in ("encode", "decode") and isinstance(owner, str | bytes):
        _check_coded(budget, len(owner), given)
    elif name == "translate" and given and isinstance(given[0], dict):
        budget.made_text(len(str(owner)) * max(map(budget.weight, given[0].values()), default=1))
    else:
        _require_narrow([value for value in given if isinstance(value, int)])
        if name == "expandtabs":
            width = next((value for value in given if isinstance(value, int)), 8)
            budget.made_text(str(owner).count("\t") * width)
    return args


def check_filter(budget: Budget, name: str, value: Any, args: Any, options: Mapping[str, Any]) -> Any:
    """Check a call of a filter; return what it is called on, of which an iterator has been read."""
    given = [*args, *options.values()]
    if name in _WITH_WIDTHS:
        widths = [one for one in given if isinstance(one, int)]
        texts = [one for one in given if isinstance(one, str)]
        _require_narrow(widths)
        width = max([1, *widths, *map(len, texts)])
        if name in ("batch", "slice"):
            budget.made_text(max([0, *map(budget.weight, given)]) * width)
        elif name == "tojson" and given:
            size = budget.weight(value)
            budget.spend(size)
            budget.made_text(size * (_depth(value) * width + sum(map(budget.weight, given))))
        elif name == "indent":
            budget.made_text(len(str(value)) + width * (str(value).count("\n") + 1))
        elif name == "wordwrap":
            budget.made_text(len(str(value)) * (1 + max(map(len, texts), default=0)))
            # A word that is too long is cut off line by line, and what is left copied each time.
            longest = max(map(len, str(value).splitlines()), default=0)
            narrowest = max(1, min((one for one in widths if not isinstance(one, bool)), default=79))
            budget.spend(len(str(value)) + (longest * longest // narrowest >> 12))
    elif name == "replace" and len(given) > 1:
        budget.made_text(replaced_length(str(value), str(given[0]), str(given[1])))
    elif name == "format":
        check_formatted(budget, value, list(given))
    elif name == "join":
        return read_joined(budget, str(options.get("d", args[0] if args else "")), value)
    elif name == "trim":
        for characters in given:
            _check_search(budget, str(value), "strip", characters)
    elif name == "striptags":
        _check_tags(budget, str(value))
    elif name in _PIECEWISE:
        budget.spend(_PIECEWISE[name] * budget.weight(value))
    elif name == "sum":
        start = options.get("start", args[1] if len(args) > 1 else 0)
        if not isinstance(start, int | float):
            raise OverBudgetError("it sums up what are no numbers, and may sum up numbers only")
    return value


def replaced_length(text: Any, old: Any, new: Any) -> int:
    """Return an upper bound of the length of a text with a part replaced."""
    most = len(text) + 1 if not old else len(text) // len(old)
    length = len(text) + most * len(new)
    return length if length < 1_000_000 or not old else len(text) + text.count(old) * len(new)


def read_joined(budget: Budget, separator: Any, pieces: Any) -> Any:
    """Check what pieces will be when they are joined, and return them, read if they could be read only once."""
    if isinstance(pieces, str):
        budget.made_text(len(pieces) * (1 + len(separator)))
        return pieces
    read = pieces if isinstance(pieces, list | tuple) else list(pieces)
    budget.made_text(sum(map(budget.weight, read)) + len(separator) * len(read))
    return read


def _check_search(budget: Budget, owner: str | bytes, name: str, wanted: Any) -> None:
    """Check a search that may look through all of one text for each character of another."""
    if isinstance(wanted, str | bytes):
        budget.spend(len(owner) * len(wanted) >> _SEARCHES[name])


def _check_tags(budget: Budget, text: str) -> None:
    """Check the search for tags, each of which may be looked for up to the end of the text."""
    budget.spend((text.count("<") + 1) * len(text) >> 9)


def _check_coded(budget: Budget, length: int, given: list[Any]) -> None:
    """Check what becomes of a text or bytes: some codings take the square of the length, some errors a long name."""
    if given and (len(given) > 1 or str(given[0]).lower() not in ("utf-8", "utf8", "ascii", "latin-1")):
        budget.made_text(16 * length)
        budget.spend(length * length >> 4)


_SEARCHES = {"strip": 10, "lstrip": 10, "rstrip": 10} | dict.fromkeys(("rfind", "rindex", "rsplit", "rpartition"), 9)
"""Methods that compare each character with each of another text; comparisons in a step, as a power of 2."""
_PIECEWISE = {"pprint": 16, "title": 4, "wordcount": 4, "urlencode": 4}
"""Filters that are slow, and the steps for each character or value that they read."""
_WITH_WIDTHS = frozenset({"center", "indent", "wordwrap", "batch", "slice", "round", "tojson", "truncate"})
"""Filters whose numbers are widths or counts."""
GROWING_FILTERS = _WITH_WIDTHS | {"replace", "format", "join", "sum", "trim", "striptags", *_PIECEWISE}
"""Filters that can make much of little, or take long for it."""
CHECKED: Mapping[str, Callable[[Budget, Any, Any], None]] = {
    "*": check_product,
    "**": check_power,
    "%": check_formatted,
}
"""The operators that can make much of little."""


def _all_texts(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values) or all(isinstance(value, bytes) for value in values)


def _depth(value: Any) -> int:
    """Return how deep containers are nested in a value."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list | tuple):
                inner += item
        level = inner
    return depth


def _require_narrow(widths: list[Any]) -> None:
    """Refuse numbers that are too large for a width; they may be given as digits."""
    for width in widths:
        if (len(width) > 9 if isinstance(width, str) else False) or int(width) > WIDEST:
            raise OverBudgetError(f"it makes a text {str(width)[:12]} characters wide, and may make {WIDEST:,}")
