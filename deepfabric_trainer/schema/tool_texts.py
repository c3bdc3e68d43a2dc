"""Reading the JSON text of a list of tools, most of which stood in other texts before.

The rows of a dataset draw their tools from a catalogue, so that every tool's text comes again, letter by letter, in
thousands of lists. Where a text that is known to be one whole JSON object stands at the place of an item, the item is
that object, and need not be decoded again.
"""

import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from deepfabric_trainer.schema.strict_json import decoder

_Item = TypeVar("_Item")

_SPACE = r"[ \t\n\r]*"
_OPENING = re.compile(rf"{_SPACE}\[{_SPACE}{{")
_SEPARATOR = re.compile(rf"{_SPACE},{_SPACE}{{")
_USUAL = ", {"
"""The separator that `json` writes."""
_CLOSING = re.compile(rf"{_SPACE}\]{_SPACE}\Z")
_BEGINNING = 96
"""Characters by which known texts are looked up; the name of a tool mostly stands among them."""
_MOST_ALIKE = 8
"""Known texts of one beginning: more are not compared."""
_MOST = 4096


class ItemTexts(Generic[_Item]):
    """The objects of JSON lists, each different text read once.

    Args:
        read (`Callable[[Any], Item]`): Makes an item of a decoded object; a `ValueError` says that it cannot.
    """

    def __init__(self, read: Callable[[Any], _Item]) -> None:
        self._read = read
        self._decode = decoder().raw_decode
        self._known: dict[str, list[tuple[str, _Item]]] = {}
        self._count = 0

    def of_list(self, text: str) -> list[_Item] | None:
        """Return the items of a JSON list of objects, `None` if the text is anything else or an item cannot be read.

        Equal texts give the same item.
        """
        items: list[_Item] = []
        match = _OPENING.match(text)
        start = match.end() - 1 if match else -1
        while start >= 0:
            found = self._item_at(text, start)
            if found is None:
                return None
            item, end = found
            items.append(item)
            if text.startswith(_USUAL, end):
                start = end + len(_USUAL) - 1
                continue
            match = _SEPARATOR.match(text, end)
            start = match.end() - 1 if match else -1
            if match is None and _CLOSING.match(text, end):
                return items
        return None

    def _item_at(self, text: str, start: int) -> tuple[_Item, int] | None:
        """Return the item that begins at a place, and where it ends."""
        beginning = text[start : start + _BEGINNING]
        alike = self._known.get(beginning, ())
        for known, item in alike:
            if text.startswith(known, start):
                return item, start + len(known)
        try:
            value, end = self._decode(text, start)
            item = self._read(value)
        except (ValueError, RecursionError):
            return None
        if len(alike) < _MOST_ALIKE and end - start >= _BEGINNING:
            if self._count >= _MOST:
                self._known.clear()
                self._count = 0
            self._known.setdefault(beginning, []).append((text[start:end], item))
            self._count += 1
        return item, end
