"""Trees of examples written out as rows of tokens, and which of the tokens sees which."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from deepfabric_trainer.collators.padding import IGNORED
from deepfabric_trainer.collators.prefix_tree import Segment

_Value = TypeVar("_Value", int, float)


@dataclass(frozen=True)
class PlacedSegment:
    """A run of tokens in a row.

    Args:
        length (`int`): Its tokens.
        parent (`int`): The number of the segment that it continues, in the same row; -1 for none.
        example (`int`): The example of the batch that it was read from: of a segment that several have, one of them.
    """

    length: int
    parent: int
    example: int = field(default=0, compare=False)


@dataclass(frozen=True)
class PrefixTree:
    """How the tokens of a batch hang together: for each row its segments, one behind the other.

    A segment stands before those that continue it, and what hangs on it stands in one piece. Attention that knows the
    tree needs no mask. Not a tensor: whoever moves batches to a device leaves it as it is.

    Args:
        rows (`tuple[tuple[PlacedSegment, ...], ...]`): Of each row; what is behind the last one is padding.
    """

    rows: tuple[tuple[PlacedSegment, ...], ...]

    def paths(self, row: int) -> list[list[int]]:
        """Return for each segment of a row the numbers of those that it continues, from the root on, and its own."""
        paths: list[list[int]] = []
        for number, segment in enumerate(self.rows[row]):
            paths.append([*(paths[segment.parent] if segment.parent >= 0 else []), number])
        return paths


class Row:
    """One row of a batch: trees written out from the root down, each segment before what continues it.

    Args:
        roots (`Sequence[Segment]`): The trees.
        ids (`Sequence[list[int]]`): The tokens of the batch's examples.
        labels (`Sequence[list[int]]`): Their labels.
    """

    def __init__(self, roots: Sequence[Segment], ids: Sequence[list[int]], labels: Sequence[list[int]]) -> None:
        self.segments: list[Segment] = []
        self.placed: list[PlacedSegment] = []
        for root in roots:
            self._place(root, parent=-1)
        self.input_ids = self.lay_out(ids)
        self.labels = self.lay_out(labels)
        self.positions = [position for segment in self.segments for position in range(segment.start, segment.end)]
        begin = 0
        for segment in self.segments:
            if segment.start == 0:
                self.labels[begin] = IGNORED  # the first token of an example is predicted from nothing
            begin += segment.end - segment.start

    def lay_out(self, values: Sequence[list[_Value]]) -> list[_Value]:
        """Return the values of the row's tokens, from those of the examples."""
        return [value for part in self.segments for value in values[part.example][part.start : part.end]]

    def _place(self, segment: Segment, parent: int) -> None:
        number = len(self.segments)
        self.segments.append(segment)
        self.placed.append(PlacedSegment(segment.end - segment.start, parent, segment.example))
        for child in segment.children:
            self._place(child, number)


def last_seen_by(tree: PrefixTree, length: int) -> torch.Tensor:
    """Return for each token the position in its row behind the last token that may see it.

    What hangs on a segment stands right behind it and in one piece. So token `k` is seen by exactly those tokens `q`
    with `k <= q < last_seen_by[k]`.

    Args:
        tree (`PrefixTree`): Of a batch of R rows.
        length (`int`): T, with padding.

    Returns:
        `torch.Tensor`: [R, T] int64. Padding is seen by itself only, so that no softmax is empty.
    """
    ends = torch.arange(1, length + 1).repeat(len(tree.rows), 1)
    for row, segments in enumerate(tree.rows):
        begins, position = [], 0
        for segment in segments:
            begins.append(position)
            position += segment.length
        behind = [begin + segment.length for begin, segment in zip(begins, segments, strict=True)]
        for number in range(len(segments) - 1, -1, -1):
            parent = segments[number].parent
            if parent >= 0:
                behind[parent] = max(behind[parent], behind[number])
            ends[row, begins[number] : begins[number] + segments[number].length] = behind[number]
    return ends


def times_held(tree: PrefixTree, length: int) -> torch.Tensor:
    """Return for each token how many examples hold it, [R, T] int64; 0 for padding.

    Whoever counts the batch's tokens, or takes means over them, gets with these weights what padded rows give.

    Args:
        tree (`PrefixTree`): Of a batch of R rows.
        length (`int`): T, with padding.
    """
    held = torch.zeros(len(tree.rows), length, dtype=torch.int64)
    for row, segments in enumerate(tree.rows):
        inner = {segment.parent for segment in segments}
        examples = [int(number not in inner) for number in range(len(segments))]
        for number in range(len(segments) - 1, -1, -1):
            if segments[number].parent >= 0:
                examples[segments[number].parent] += examples[number]
        lengths = torch.tensor([segment.length for segment in segments])
        held[row, : int(lengths.sum())] = torch.repeat_interleave(torch.tensor(examples), lengths)
    return held


def examples_of_tokens(tree: PrefixTree, length: int) -> torch.Tensor:
    """Return for each token the example that it was read from, [R, T] int64; -1 for padding.

    A trained token is no other example's.

    Args:
        tree (`PrefixTree`): Of a batch of R rows.
        length (`int`): T, with padding.
    """
    examples = torch.full((len(tree.rows), length), -1)
    for row, segments in enumerate(tree.rows):
        numbers = [segment.example for segment in segments for _ in range(segment.length)]
        examples[row, : len(numbers)] = torch.tensor(numbers)
    return examples


def unroll(tree: PrefixTree, row: int, values: Sequence[_Value]) -> list[list[_Value]]:
    """Return the values of each example of a row, from those of the row's tokens.

    Args:
        tree (`PrefixTree`): Of the batch.
        row (`int`): The row's number.
        values (`Sequence`): One a token, length T.
    """
    segments = tree.rows[row]
    begins, position = [], 0
    for segment in segments:
        begins.append(position)
        position += segment.length
    inner = {segment.parent for segment in segments}
    return [
        [value for number in path for value in values[begins[number] : begins[number] + segments[number].length]]
        for path in tree.paths(row)
        if path[-1] not in inner
    ]


def fill_rows(roots: Sequence[Segment], capacity: int) -> list[list[Segment]]:
    """Put trees into rows that hold no more than `capacity` tokens, best fit first; a longer tree has its own row."""
    rows: list[tuple[int, list[Segment]]] = []
    for root in sorted(roots, key=Segment.tokens, reverse=True):
        tokens = root.tokens()
        free = [row for row in range(len(rows)) if rows[row][0] + tokens <= capacity]
        if free:
            best = max(free, key=lambda row: rows[row][0])
            rows[best] = (rows[best][0] + tokens, [*rows[best][1], root])
        else:
            rows.append((tokens, [root]))
    return [trees for _, trees in rows]
