"""Normalizing the tools of many rows, where equal tools are one object that nobody changes."""

from collections.abc import Callable
from functools import cache
from typing import Any

from deepfabric_trainer.schema.nulls import clean_tool, has_null_key, have_equal_keys
from deepfabric_trainer.schema.strict_json import NOT_PLAIN, NULL, survey
from deepfabric_trainer.schema.tools import normalize_tool, normalize_tools, tools_of_text
from deepfabric_trainer.schema.types import Repair, Tool

_MOST_LISTS = 256
_MOST_TOOLS = 4096


class SharedTools:
    """Normalizes `tools` columns like `normalize_tools`, and remembers lists and tools by their identity.

    Only for values that nobody changes, such as a reader of Arrow columns makes: it keeps them alive. Equal lists give
    the same list, equal tools the same tool, so that whoever comes after can remember by identity as well.
    """

    def __init__(self) -> None:
        self._lists: dict[int, tuple[list[Any], list[Tool] | None, frozenset[Repair]]] = {}
        self._tools: dict[int, _SharedTool] = {}

    def read(self, value: Any, repairs: set[Repair], *, path: str = "tools") -> list[Tool] | None:
        """Return the tools of a row; see `normalize_tools`."""
        if isinstance(value, str):
            from_text, mended = tools_of_text(str(value), path)
            repairs |= mended
            return from_text or None
        if not isinstance(value, list):
            return normalize_tools(value, repairs, path=path)
        if id(value) not in self._lists:
            if len(self._lists) >= _MOST_LISTS:
                self._lists.clear()
            found: set[Repair] = set()
            tools = self._normalize(value, found, path)
            self._lists[id(value)] = value, tools, frozenset(found)
        _, tools, known = self._lists[id(value)]
        repairs |= known
        return tools

    def _normalize(self, value: list[Any], repairs: set[Repair], path: str) -> list[Tool] | None:
        shared = [self._shared(tool) for tool in value]
        if not all(tool.is_plain_object for tool in shared):
            return normalize_tools(value, repairs, path=path)
        padded = cache(lambda: any(tool.has_null_key for tool in shared) and have_equal_keys(value))
        tools = []
        for number, tool in enumerate(shared):
            normalized, found = tool.normalize(padded, f"{path}[{number}]")
            tools.append(normalized)
            repairs |= found
        return tools or None

    def _shared(self, tool: Any) -> "_SharedTool":
        if id(tool) not in self._tools:
            if len(self._tools) >= _MOST_TOOLS:
                self._tools.clear()
            self._tools[id(tool)] = _SharedTool(tool)
        return self._tools[id(tool)]


class _SharedTool:
    """A tool as it came, and what becomes of it.

    Args:
        raw (`Any`): The tool; nobody changes it.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        seen = survey(raw) if type(raw) is dict else NOT_PLAIN
        self.is_plain_object = not seen & NOT_PLAIN
        self.has_null_key = bool(seen & NULL) and self.is_plain_object and has_null_key(raw)
        self._decided_by_itself: tuple[Tool, frozenset[Repair]] | None = None
        self._decided_by_row: dict[bool, tuple[Tool, frozenset[Repair]]] = {}

    def normalize(self, padded: Callable[[], bool], path: str) -> tuple[Tool, frozenset[Repair]]:
        """Return the tool in OpenAI's form and what was mended.

        Args:
            padded (`Callable[[], bool]`): Tells whether the row shows padding.
            path (`str`): The tool's place in this row, for errors.
        """
        if self._decided_by_itself is not None:
            return self._decided_by_itself
        if self._decided_by_row and padded() in self._decided_by_row:
            return self._decided_by_row[padded()]
        asked = []

        def ask() -> bool:
            asked.append(padded())
            return asked[0]

        cleaned = clean_tool(self._raw, ask)
        repairs = set() if cleaned is self._raw else {Repair.SCHEMA_NULLS}
        normalized = normalize_tool(cleaned, path, repairs), frozenset(repairs)
        if asked:
            self._decided_by_row[asked[0]] = normalized
        else:
            self._decided_by_itself = normalized
        return normalized
