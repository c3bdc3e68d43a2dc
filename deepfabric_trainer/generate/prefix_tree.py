"""What prompts have in common, as a tree: a system prompt above tool catalogues above conversations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MIN_SHARED_TOKENS = 16
"""Tokens that a node must save; below this a forward pass of its own costs more than it saves."""


@dataclass(frozen=True, eq=False)
class Node:
    """A beginning that several prompts share.

    Args:
        parent (`Node`, *optional*): The shorter beginning that it goes on from.
        prompt (`int`): The index of one of the prompts that begin with it.
        length (`int`): Its tokens, those of its parents included.
    """

    parent: "Node | None"
    prompt: int
    length: int


@dataclass(frozen=True)
class PrefixTree:
    """The beginnings that prompts share.

    Args:
        nodes (`tuple[Node | None, ...]`): For each prompt the longest beginning that it shares; `None` when it shares
            none that is worth it.
        order (`tuple[int, ...]`): The prompts, those with the same beginnings beside each other, the longest first.
    """

    nodes: tuple[Node | None, ...]
    order: tuple[int, ...]


def build_prefix_tree(prompts: Sequence[list[int]]) -> PrefixTree:
    """Find the beginnings that prompts share, each of them short of the last token of every prompt.

    Args:
        prompts (`list[list[int]]`): Token ids, B lists of length T_i > 0.

    Returns:
        `PrefixTree`: A node's own tokens, times the prompts that need them but one, are at least `MIN_SHARED_TOKENS`.
    """
    ordered = sorted(range(len(prompts)), key=lambda index: prompts[index])
    # Of neighbours in the order of the alphabet; of others it is the least between them.
    common = [_common(prompts[one], prompts[other]) for one, other in pairwise(ordered)]
    nodes: list[Node | None] = [None] * len(prompts)

    def grow(begin: int, end: int, parent: Node | None) -> list[int]:
        """Place the prompts `begin:end` of the order below a node; return them, the longest first."""
        if end - begin == 1:
            nodes[ordered[begin]] = parent
            return [ordered[begin]]
        shared = min(common[begin : end - 1])
        own = shared - (parent.length if parent else 0)
        node = Node(parent, ordered[begin], shared) if own * (end - begin - 1) >= MIN_SHARED_TOKENS else parent
        cuts = [place + 1 for place in range(begin, end - 1) if common[place] == shared]
        branches = [grow(first, last, node) for first, last in zip([begin, *cuts], [*cuts, end], strict=True)]
        branches.sort(key=lambda branch: -len(prompts[branch[0]]))
        return [index for branch in branches for index in branch]

    order = grow(0, len(prompts), None) if prompts else []
    return PrefixTree(tuple(nodes), tuple(order))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two prompts share, at most all but the last of the shorter one."""
    most = min(len(one), len(other)) - 1
    return next((place for place in range(most) if one[place] != other[place]), most)
