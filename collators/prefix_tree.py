"""The tree of common beginnings of a batch: which tokens stand once, and for which examples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from deepfabric_trainer.collators.padding import IGNORED


@dataclass
class Segment:
    """A run of tokens that stands once in the batch.

    Args:
        example (`int`): The example that its tokens are read from.
        start (`int`): Its first position in that example.
        end (`int`): The position after its last.
        children (`list[Segment]`): What continues it.
    """

    example: int
    start: int
    end: int
    children: "list[Segment]" = field(default_factory=list)

    def tokens(self) -> int:
        """Return the number of tokens in the tree that hangs on this segment."""
        return self.end - self.start + sum(child.tokens() for child in self.children)


def build_forest(
    input_ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], min_shared: int
) -> list[Segment]:
    """Find what the examples of a batch have in common at their beginnings.

    Only tokens that no example trains are shared, and of those all but the last: so every branch begins with an
    untrained token of its own, and with the ordinary shift no label is predicted from another branch's token.

    Args:
        input_ids (`Sequence[Sequence[int]]`): B lists of tokens.
        labels (`Sequence[Sequence[int]]`): Their labels.
        min_shared (`int`): Beginnings shorter than this (tokens) are not worth a branch.

    Returns:
        `list[Segment]`: The roots. Each example is the path from a root to one leaf.
    """
    tokens = [np.asarray(ids, dtype=np.int64) for ids in input_ids]
    untrained = [_untrained_length(np.asarray(row, dtype=np.int64)) for row in labels]
    order = sorted(range(len(tokens)), key=lambda index: list(input_ids[index]))
    return _grow(order, 0, tokens, untrained, min_shared)


def lone_examples(input_ids: Sequence[Sequence[int]]) -> list[Segment]:
    """Return a tree for each example of a batch, with nothing shared."""
    return [Segment(index, 0, len(tokens)) for index, tokens in enumerate(input_ids)]


def cut_trees(roots: Sequence[Segment], capacity: int) -> list[Segment]:
    """Cut trees that hold more than `capacity` tokens into several, which repeat what their branches share.

    Args:
        roots (`Sequence[Segment]`): The trees.
        capacity (`int`): Tokens. An example that is longer becomes a tree of its own.

    Returns:
        `list[Segment]`: Trees with the same examples, each of them in one.
    """
    cut: list[Segment] = []
    for root in roots:
        cut += [root] if root.tokens() <= capacity else _cut(root, capacity)
    return cut


def _cut(root: Segment, capacity: int) -> list[Segment]:
    """Go over the branches in order, and begin a new tree where the next one would not fit any more."""
    trees: list[Segment] = []
    path: list[tuple[Segment, Segment]] = []
    free = 0
    for leaf_path in _paths(root):
        known = 0
        while known < min(len(path), len(leaf_path)) and path[known][0] is leaf_path[known]:
            known += 1
        if not trees or sum(part.end - part.start for part in leaf_path[known:]) > free:
            known, free, path = 0, capacity, []
        path = path[:known]
        for part in leaf_path[known:]:
            copy = Segment(part.example, part.start, part.end)
            free -= part.end - part.start
            if path:
                path[-1][1].children.append(copy)
            else:
                trees.append(copy)
            path.append((part, copy))
    return trees


def _paths(segment: Segment) -> Iterator[list[Segment]]:
    """Go over the ways from a segment down to each leaf."""
    if not segment.children:
        yield [segment]
    for child in segment.children:
        for path in _paths(child):
            yield [segment, *path]


def _grow(
    group: list[int], start: int, tokens: list[npt.NDArray[np.int64]], untrained: list[int], min_shared: int
) -> list[Segment]:
    """Return the segments that carry a sorted group of examples from position `start` on."""
    if len(group) == 1:
        return [Segment(group[0], start, len(tokens[group[0]]))]
    common = _common_length(tokens[group[0]], tokens[group[-1]])
    trained_early = [index for index in group if untrained[index] <= start + min_shared]
    if trained_early:
        rest = [index for index in group if index not in trained_early]
        leaves = [Segment(index, start, len(tokens[index])) for index in trained_early]
        return [*leaves, *(_grow(rest, start, tokens, untrained, min_shared) if rest else [])]
    shared = min(common, *(untrained[index] for index in group)) - 1
    if shared - start >= min_shared:
        trunk = Segment(group[0], start, shared)
        for subgroup in _split(group, shared + 1, tokens):
            trunk.children.extend(_grow(subgroup, shared, tokens, untrained, min_shared))
        return [trunk]
    subgroups = _split(group, common, tokens)
    if len(subgroups) == 1:
        return [Segment(index, start, len(tokens[index])) for index in group]
    return [segment for subgroup in subgroups for segment in _grow(subgroup, start, tokens, untrained, min_shared)]


def _split(group: list[int], position: int, tokens: list[npt.NDArray[np.int64]]) -> list[list[int]]:
    """Split a sorted group by the token at a position; an example that has ended stands alone."""
    subgroups: list[list[int]] = []
    previous: int | None = None
    for index in group:
        token = int(tokens[index][position]) if position < len(tokens[index]) else None
        if subgroups and token is not None and token == previous:
            subgroups[-1].append(index)
        else:
            subgroups.append([index])
        previous = token
    return subgroups


def _common_length(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> int:
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _untrained_length(labels: npt.NDArray[np.int64]) -> int:
    """Return how many tokens stand before the first trained one."""
    trained = np.flatnonzero(labels != IGNORED)
    return int(trained[0]) if len(trained) else len(labels)
