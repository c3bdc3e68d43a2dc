"""Calls counted by tool."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCount:
    """How one tool fared over the turns that were scored.

    Args:
        name (`str`): The tool.
        support (`int`): How many calls of it were expected.
        called (`int`): How many calls of it were made.
        right (`int`): How many of those expected were made, with equal arguments.
    """

    name: str
    support: int
    called: int
    right: int


@dataclass(frozen=True)
class Confusion:
    """How often one tool was called in the place of another.

    Args:
        expected (`str`, *optional*): The tool that was expected; `None`: no call was.
        called (`str`, *optional*): The tool that was called; `None`: none was.
        count (`int`): How often.
    """

    expected: str | None
    called: str | None
    count: int


@dataclass(frozen=True)
class ToolTable:
    """Calls by tool, and the pairs of tools that were taken for one another.

    Args:
        tools (`list[ToolCount]`): By falling support, then by name.
        confusions (`list[Confusion]`): By falling count, then by name.
    """

    tools: list[ToolCount]
    confusions: list[Confusion]
