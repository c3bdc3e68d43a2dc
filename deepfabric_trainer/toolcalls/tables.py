"""Calls counted by tool."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from deepfabric_trainer.toolcalls.comparison import canonical_calls, functions_of

_Calls = Sequence[Mapping[str, Any]] | None


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


def tool_table(turns: Iterable[tuple[_Calls, _Calls]]) -> ToolTable:
    """Count the calls of many turns by tool.

    Inside a turn, calls of one name answer each other. What is then left of the expected calls and of those made is
    paired in order, as one tool taken for another; where one side has more, as missing or extra calls.

    Args:
        turns (`list[tuple[list[dict], list[dict]]]`): For each turn the expected calls and those made, in any shape
            that [`score_tool_calls`] takes.

    Returns:
        `ToolTable`: All tools that were expected or called.

    Raises:
        DataFormatError: If a call has no name.
    """
    support, called, right = Counter[str](), Counter[str](), Counter[str]()
    confusions = Counter[tuple[str | None, str | None]]()
    for turn, (expected, predicted) in enumerate(turns):
        wanted, made = functions_of(expected, f"turns[{turn}][0]"), functions_of(predicted, f"turns[{turn}][1]")
        asked, answered = [name for name, _ in wanted], [name for name, _ in made]
        support.update(asked)
        called.update(answered)
        right.update(name for name, _ in (canonical_calls(wanted) & canonical_calls(made)).elements())
        confusions.update(zip_longest(_left(asked, answered), _left(answered, asked)))
    counts = [ToolCount(name, support[name], called[name], right[name]) for name in support | called]
    pairs = [
        Confusion(expected_name, called_name, count) for (expected_name, called_name), count in confusions.items()
    ]
    return ToolTable(
        sorted(counts, key=lambda one: (-one.support, one.name)),
        sorted(pairs, key=lambda one: (-one.count, one.expected or "", one.called or "")),
    )


def _left(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the names without those that others answer, in order."""
    answered = Counter(others)
    left = []
    for name in names:
        if answered[name]:
            answered[name] -= 1
        else:
            left.append(name)
    return left
