"""The tools that conversations list, told apart by content, so that what is known of a tool is found again.

The rows of a dataset repeat their tools, as objects of their own that anybody may change. So a tool is known by all
that it holds, and kept as a copy that nobody else has.
"""

import marshal
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from deepfabric_trainer.schema import Tool
from deepfabric_trainer.template.brackets import has_brackets

MOST_TOOLS = 4096
MOST_BYTES = 64 * 2**20
"""Of the contents of the tools that are kept."""
_MOST_LISTS = 256
_VERSION = 2
"""Of `marshal`: the last in which equal values always give equal bytes."""


@dataclass(eq=False)
class KnownTool:
    """A tool, and what was found out about it.

    Args:
        tool (`Tool`): A copy of its own.
        content (`bytes`): What it is known by.
        written (`dict[Any, str]`): What templates wrote it as, by the part that was written and the style.
        shows_all (`dict[str, bool]`): Whether such a text holds all that a model must see of the tool.
        control_texts (`dict[str, frozenset[str]]`): Its texts that hold control tokens, by the pattern of these.
        holds_brackets (`bool`): Whether it holds characters that brackets are made of.
    """

    tool: Tool
    content: bytes
    written: dict[Any, str] = field(default_factory=dict)
    shows_all: dict[str, bool] = field(default_factory=dict)
    control_texts: dict[str, frozenset[str]] = field(default_factory=dict)
    holds_brackets: bool = field(init=False)

    def __post_init__(self) -> None:
        self.holds_brackets = has_brackets(self.content.decode(errors="replace"))


class Catalogue(Sequence[Tool]):
    """The tools of a conversation, each of them known.

    Args:
        known (`tuple[KnownTool, ...]`): What is known of each.
    """

    def __init__(self, known: tuple[KnownTool, ...]) -> None:
        self.known = known
        self.tools = [one.tool for one in known]
        self.holds_brackets = any(one.holds_brackets for one in known)

    def __getitem__(self, index: Any) -> Any:
        """Return the tool, or the list of tools, at an index."""
        return self.tools[index]

    def __len__(self) -> int:
        """Return how many tools there are."""
        return len(self.tools)

    def __iter__(self) -> Iterator[Tool]:
        """Go over the tools."""
        return iter(self.tools)


class KnownTools:
    """Finds tools by their content. It keeps those that were seen last, up to a bound."""

    def __init__(self) -> None:
        self._tools: OrderedDict[bytes, KnownTool] = OrderedDict()
        self._bytes = 0
        self._owners: dict[int, tuple[KnownTool, str]] = {}
        self._lists: dict[int, tuple[Sequence[Tool], Sequence[Tool]]] = {}
        self._objects: dict[int, tuple[Tool, KnownTool]] = {}

    def catalogue(self, tools: Sequence[Tool] | None, *, unchanging: bool = False) -> Sequence[Tool] | None:
        """Return the tools as a [`Catalogue`], or as they are when there are none or they hold odd values.

        Args:
            tools (`Sequence[Tool]`, *optional*): The tools.
            unchanging (`bool`): Whether nobody changes the list and its tools, so that the same objects are the same
                tools as before.
        """
        if not tools or isinstance(tools, Catalogue):
            return tools or None
        if not unchanging:
            return self._catalogue([self._tool(tool) for tool in tools], tools)
        if id(tools) not in self._lists:
            if len(self._lists) >= _MOST_LISTS:
                self._lists.clear()
            self._lists[id(tools)] = tools, self._catalogue([self._same_tool(tool) for tool in tools], tools)
        return self._lists[id(tools)][1]

    def owner(self, value: Any) -> tuple[KnownTool, str] | None:
        """Return the known tool that an object of a template belongs to, and which part of it the object is."""
        return self._owners.get(id(value))

    def _catalogue(self, known: Sequence[KnownTool | None], tools: Sequence[Tool]) -> Sequence[Tool]:
        return tools if None in known else Catalogue(tuple(tool for tool in known if tool is not None))

    def _same_tool(self, tool: Tool) -> KnownTool | None:
        """Return what is known of a tool that nobody changes."""
        found = self._objects.get(id(tool))
        if found is not None:
            return found[1]
        known = self._tool(tool)
        if known is not None:
            if len(self._objects) >= MOST_TOOLS:
                self._objects.clear()
            self._objects[id(tool)] = tool, known
        return known

    def _tool(self, tool: Tool) -> KnownTool | None:
        own = self._owners.get(id(tool))
        if own is not None and own[0].tool is tool:
            return own[0]
        try:
            content = marshal.dumps(cast(Any, tool), _VERSION)
        except ValueError:  # a value that is not plain
            return None
        known = self._tools.get(content)
        if known is not None:
            self._tools.move_to_end(content)
            return known
        known = KnownTool(cast(Tool, marshal.loads(content)), content)
        self._tools[content] = known
        self._bytes += len(content)
        for part, value in _parts(known.tool):
            self._owners[id(value)] = known, part
        while self._bytes > MOST_BYTES or len(self._tools) > MOST_TOOLS:
            self._forget(self._tools.popitem(last=False)[1])
        return known

    def _forget(self, known: KnownTool) -> None:
        self._bytes -= len(known.content)
        for _, value in _parts(known.tool):
            self._owners.pop(id(value), None)


def _parts(tool: Any) -> list[tuple[str, Any]]:
    """Return the parts of a tool that templates write out as a whole."""
    function = tool.get("function")
    parts = [("tool", tool), ("function", function)]
    if isinstance(function, dict):
        parts.append(("parameters", function.get("parameters")))
    return [(name, value) for name, value in parts if isinstance(value, dict)]
