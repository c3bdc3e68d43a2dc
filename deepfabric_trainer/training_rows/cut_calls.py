"""Which tool call a cut through an example goes through; half a call is nothing to learn."""

from collections.abc import Sequence
from typing import NamedTuple

from deepfabric_trainer.encode.regions import Region

_OF_CALLS = frozenset({Region.TOOL_NAME, Region.TOOL_ARGUMENTS, Region.FORMAT})
_MOST_FORMAT = 24
"""Tokens of format that are taken for a call's own at either end, where a longer stretch of it stands there."""


class _Call(NamedTuple):
    """A call of a turn: where its name begins, and where its last argument (or its name) ends."""

    name: int
    end: int


def call_at(regions: Sequence[int], cut: int) -> range | None:
    """Return the tokens of the call that a cut goes through, with the format around it.

    Args:
        regions (`Sequence[int]`): Of the tokens of an example, [T].
        cut (`int`): Between the tokens `cut - 1` and `cut`.
    Returns:
        `range`, *optional*: With tokens on both sides of the cut; `None` where it goes through no call.
    Example:
        >>> F, N, A, S = Region.FORMAT, Region.TOOL_NAME, Region.TOOL_ARGUMENTS, Region.STOP
        >>> call_at([0, F, N, F, A, A, F, S], 4)
        range(1, 7)
        >>> call_at([0, F, N, F, A, A, F, S], 7) is None
        True
    """
    begin = end = cut
    while begin > 0 and regions[begin - 1] in _OF_CALLS:
        begin -= 1
    while end < len(regions) and regions[end] in _OF_CALLS:
        end += 1
    calls = _calls(regions, range(begin, end))
    # What stands behind the last call of a turn closes it; the format between two calls closes one and opens another.
    closing = min(end - calls[-1].end, _MOST_FORMAT) if calls else 0
    for number, call in enumerate(calls):
        first = max(begin, call.name - _MOST_FORMAT)
        if number:
            first = max(first, min(calls[number - 1].end + closing, call.name))
        following = calls[number + 1].name if number + 1 < len(calls) else end
        last = min(call.end + closing, following)
        if first < cut < last:
            return range(first, last)
    return None


def _calls(regions: Sequence[int], within: range) -> list[_Call]:
    calls: list[_Call] = []
    for token in within:
        if regions[token] == Region.TOOL_NAME and (token == within.start or regions[token - 1] != Region.TOOL_NAME):
            calls.append(_Call(token, token + 1))
        elif regions[token] != Region.FORMAT and calls:
            calls[-1] = calls[-1]._replace(end=token + 1)
    return calls
