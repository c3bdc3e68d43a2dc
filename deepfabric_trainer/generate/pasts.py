"""What prompts have before their last tokens, computed once for all that share it, and put together for a batch."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from deepfabric_trainer.generate.cache import BranchesCache, Past, RowsPast
from deepfabric_trainer.generate.prefill import Prefill
from deepfabric_trainer.generate.prefix_tree import Node, build_prefix_tree
from deepfabric_trainer.generate.shared_attention import attending_to


@dataclass(frozen=True)
class Batch:
    """Prompts that are there but for their last tokens.

    Args:
        indices (`list[int]`): Which prompts, row by row; those with the same beginning beside each other.
        prompts (`list[list[int]]`): Their tokens.
        own (`list[int]`): How many tokens each row has in the cache.
        cache (`BranchesCache`): Their past, with room for the tokens to come.
        reads_once (`bool`): Whether what they share stands in the cache once, beside the rows.
    """

    indices: list[int]
    prompts: list[list[int]]
    own: list[int]
    cache: BranchesCache
    reads_once: bool

    def attending(self, base: Any) -> AbstractContextManager[None]:
        """Return in what a model, without adapters, attends to all of the past."""
        return attending_to(self.cache, base) if self.reads_once else nullcontext()

    def inputs(self, room: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the last tokens, [B, 1], their positions, [B, 1], and a mask of the cache, [B, longest + room]."""
        longest = max(self.own) + 1
        mask = torch.ones(len(self.own), longest + room, dtype=torch.long, device=device)
        for row, length in enumerate(self.own):
            mask[row, : longest - 1 - length] = 0
        tokens = torch.tensor([[prompt[-1]] for prompt in self.prompts], device=device)
        positions = torch.tensor([[len(prompt) - 1] for prompt in self.prompts], device=device)
        return tokens, positions, mask


class SharedPasts:
    """Computes the past of prompts; each beginning that they share once, and forgotten with the last that needs it.

    What a prompt has of its own is computed beside others with the same beginning, without its last token: with this
    the rows of a batch begin, whatever they share.

    Args:
        prompts (`list[list[int]]`): All of them, B lists of length T_i > 0.
        prefill (`Prefill`): Computes tokens.
        room (`int`): How many tokens are to follow.
    """

    def __init__(self, prompts: Sequence[list[int]], prefill: Prefill, room: int) -> None:
        self._prompts = prompts
        self._prefill = prefill
        self._room = room
        tree = build_prefix_tree(prompts)
        self._nodes = tree.nodes
        self.order = tree.order
        """The prompts in an order in which those that share most are beside each other, the longest first."""
        self._pasts: dict[Node, Past] = {}
        self._needed = Counter(node for index in range(len(prompts)) for node in self._path(index))

    def __len__(self) -> int:
        """Return how many beginnings are kept."""
        return len(self._pasts)

    def batch(self, indices: Sequence[int], *, reads_once: bool) -> Batch:
        """Compute some prompts but for their last tokens, each at most once.

        Args:
            indices (`list[int]`): Which.
            reads_once (`bool`): Do not copy what they share to the rows, where that saves enough.

        Returns:
            `Batch`: Them, perhaps in another order.
        """
        groups: dict[Node | None, list[int]] = {}
        for index in indices:
            groups.setdefault(self._nodes[index], []).append(index)
        reads_once = reads_once and _saves_half(groups)
        rows = [index for members in groups.values() for index in members]
        own = [len(self._prompts[index]) - 1 - _length(self._nodes[index]) * reads_once for index in rows]
        past = RowsPast(own, self._room)
        for node, members in groups.items():
            self._prefill_own(node, members, rows, past, reads_once=reads_once)
        cache = past.cache([(self._past_of(node), len(members)) for node, members in groups.items() if reads_once])
        self.forget(indices)
        return Batch(rows, [self._prompts[index] for index in rows], own, cache, reads_once)

    def forget(self, indices: Iterable[int]) -> None:
        """Take it that some of the prompts are not asked for any more, so that what only they share is let go."""
        for index in indices:
            for node in self._path(index):
                self._needed[node] -= 1
                if not self._needed[node]:
                    self._pasts.pop(node, None)

    def _path(self, index: int) -> Iterator[Node]:
        """Go over the beginnings of a prompt, from the longest to the shortest."""
        node = self._nodes[index]
        while node is not None:
            yield node
            node = node.parent

    def _past_of(self, node: Node | None) -> Past:
        """Return the keys and values of a shared beginning, computed when it is first asked for."""
        if node is None:
            return []
        if node not in self._pasts:
            begin = _length(node.parent)
            own = self._prompts[node.prompt][begin : node.length]
            self._pasts[node] = self._prefill.one(self._past_of(node.parent), own, begin)
        return self._pasts[node]

    def _prefill_own(
        self, node: Node | None, members: Sequence[int], rows: Sequence[int], past: RowsPast, *, reads_once: bool
    ) -> None:
        """Compute what prompts have behind a beginning, but for the last token, and put it into their rows."""
        begin, before = _length(node), self._past_of(node)
        own = {rows.index(index): self._prompts[index][begin:-1] for index in members}
        for row in [row for row in own if not own[row]]:
            if before:
                past.put(row, before, 0, begin if reads_once else 0)
            del own[row]
        for row, computed, source, first in self._prefill.each(before, own, begin, joined=reads_once):
            past.put(row, computed, source, first if reads_once else 0)


def _length(node: Node | None) -> int:
    return node.length if node else 0


def _saves_half(groups: Mapping[Node | None, Sequence[int]]) -> bool:
    """Tell whether reading each beginning once leaves half of the keys unread; below that it is no faster."""
    once = sum(map(_length, groups))
    return 0 < 2 * once <= sum(_length(node) * len(members) for node, members in groups.items())
