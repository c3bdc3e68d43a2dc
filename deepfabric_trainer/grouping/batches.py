"""The batches of an epoch: who stands together, and what the chance of the draw decides."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Unit = Numbers
"""Examples that belong together: those of one row."""

_LOOK_AHEAD = 16
"""Units: how far behind the next one is looked for one that fills a batch."""


def group_examples(codes: Numbers, batch_size: int, rng: np.random.Generator) -> Numbers:
    """Order examples so that those with equal codes, or near ones, stand in the same batch.

    Full batches are cut from each group; what is left of the groups is put together in the order of the codes, each
    whole where it fits. The examples of the short batch are a run from a random place in that order, so that each has
    the same chance to come last.

    Args:
        codes (`np.ndarray`): [N] int64.
        batch_size (`int`): Examples a batch.
        rng (`np.random.Generator`): Decides all else.

    Returns:
        `np.ndarray`: The numbers of the examples, [N] int64: batch after batch, the short one last.
    """
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    in_short = np.zeros(len(order), bool)
    in_short[(rng.integers(len(order)) + np.arange(len(order) % batch_size)) % len(order)] = True
    short, order = order[in_short], order[~in_short]
    _, first, counts = np.unique(codes[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, counts)
    is_full = place < np.repeat(counts - counts % batch_size, counts)
    left = counts[counts % batch_size > 0] % batch_size
    rest = np.split(order[~is_full], np.cumsum(left)[:-1])
    shift = int(rng.integers(len(rest)))
    mixed = [np.concatenate(batch) for batch in _cut(rest[shift:] + rest[:shift], batch_size)]
    batches = np.concatenate([order[is_full], *mixed]).reshape(-1, batch_size)
    batches = rng.permuted(rng.permutation(batches), axis=1)
    return np.concatenate([batches.reshape(-1), rng.permutation(short)])


def group_units(codes: Numbers, units: Sequence[Unit], batch_size: int, rng: np.random.Generator) -> Numbers:
    """Order examples as `group_examples` does, with the examples of a unit together, in their order.

    A unit is cut in two only when no other would fill the batch, or when it is larger than one.

    Args:
        codes (`np.ndarray`): That of each unit, [U] int64.
        units (`Sequence[np.ndarray]`): The numbers of the examples in each; N in all.
        batch_size (`int`): Examples a batch.
        rng (`np.random.Generator`): Decides all else.

    Returns:
        `np.ndarray`: [N] int64.
    """
    order = rng.permutation(len(units))
    order = order[np.argsort(codes[order], kind="stable")]
    pieces, codes = _no_larger_than(batch_size, [units[number] for number in order.tolist()], codes[order])
    start = int(rng.integers(len(pieces)))
    circle = _Line(pieces, [*range(start, len(pieces)), *range(start)])
    # Nobody is passed over: small units would come last more often than large ones.
    short = circle.take(sum(len(piece) for piece in pieces) % batch_size, look_ahead=1)
    batches, rest = [], []
    for group in _runs(codes, sorted(circle.left())):
        line = _Line(pieces, group)
        while (batch := line.take(batch_size, cut=False)) is not None:
            batches.append(batch)
        rest += line.left()
    shift = int(rng.integers(len(rest))) if rest else 0
    batches += _cut([pieces[number] for number in rest[shift:] + rest[:shift]], batch_size)
    shuffled = [batches[number] for number in rng.permutation(len(batches)).tolist()] + [short or []]
    return np.concatenate([batch[number] for batch in shuffled for number in rng.permutation(len(batch)).tolist()])


class _Line:
    """Units waiting for a batch, by their numbers.

    Args:
        pieces (`list[np.ndarray]`): The examples of each; what is cut off one is taken from it.
        numbers (`Iterable[int]`): Who waits, in order.
    """

    def __init__(self, pieces: list[Unit], numbers: Iterable[int]) -> None:
        self._pieces = pieces
        self._waiting = deque(numbers)

    def take(self, room: int, *, cut: bool = True, look_ahead: int = _LOOK_AHEAD) -> list[Unit] | None:
        """Take units that fill so much room (examples), early ones first; `None`, and nobody, when they do not.

        Args:
            room (`int`): Examples.
            cut (`bool`, *optional*, defaults to `True`): Whether the first that does not fit is cut where none does.
            look_ahead (`int`, *optional*): How many that do not fit are passed over.
        """
        asked: list[int] = []
        chosen: list[int] = []
        others: list[int] = []
        free = room
        while free and self._waiting and len(others) < look_ahead:
            number = self._waiting.popleft()
            asked.append(number)
            fits = len(self._pieces[number]) <= free
            (chosen if fits else others).append(number)
            free -= len(self._pieces[number]) if fits else 0
        if free and look_ahead > 1:
            exact = _exact_fill([len(self._pieces[number]) for number in asked], room)
            if exact is not None:
                chosen = [asked[place] for place in exact]
                others = [number for place, number in enumerate(asked) if place not in exact]
                free = 0
        taken = [self._pieces[number] for number in chosen]
        if free and cut and others:
            taken.append(self._pieces[others[0]][:free])
            self._pieces[others[0]] = self._pieces[others[0]][free:]
            free = 0
        is_full = bool(taken) and not free
        self._waiting.extendleft(reversed(others if is_full else asked))
        return taken if is_full else None

    def left(self) -> list[int]:
        """Return who still waits."""
        return list(self._waiting)


def _cut(pieces: list[Unit], batch_size: int) -> list[list[Unit]]:
    """Cut units into full batches, in their order as far as that goes; their sizes add up to full batches."""
    line, batches = _Line(pieces, range(len(pieces))), []
    while (batch := line.take(batch_size)) is not None:
        batches.append(batch)
    return batches


def _no_larger_than(batch_size: int, units: Iterable[Unit], codes: Numbers) -> tuple[list[Unit], Numbers]:
    """Cut units that are larger than a batch, each into batches and what is left."""
    cut = [[unit[start : start + batch_size] for start in range(0, len(unit), batch_size)] for unit in units]
    return [piece for pieces in cut for piece in pieces], np.repeat(codes, [len(pieces) for pieces in cut])


def _exact_fill(sizes: Sequence[int], room: int) -> list[int] | None:
    """Return the places of units that fill the room to the last example, early ones first, if there are any."""
    reachable = [{0}]
    for size in reversed(sizes):
        reachable.append(reachable[-1] | {total + size for total in reachable[-1] if total + size <= room})
    if room not in reachable[-1]:
        return None
    places = []
    for place, size in enumerate(sizes):
        if room - size in reachable[len(sizes) - place - 1]:
            places.append(place)
            room -= size
    return places


def _runs(codes: Numbers, numbers: list[int]) -> Iterator[list[int]]:
    """Cut numbers where their code changes."""
    for _, group in groupby(numbers, key=codes.tolist().__getitem__):
        yield list(group)
