"""Keys and values of tokens that were computed: of a beginning that is shared, and of the rows of a batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

Past = list[tuple[torch.Tensor, torch.Tensor]]
"""The keys and values of each layer, both [B, heads, T, width]."""


class RoomyLayer(DynamicLayer):
    """A layer with room for the tokens to come, which are written in place; its base copies all of them each step.

    Args:
        keys (`torch.Tensor`): [B, heads, room, width].
        values (`torch.Tensor`): The same, perhaps of another width.
        length (`int`): How many tokens are there already.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        super().__init__()
        self.keys, self.values, self.length = keys, values, length
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens; return the keys and values of all, both [B, heads, T, width]."""
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return how many tokens are there."""
        return self.length


def cache_of(past: Past, batch_size: int) -> DynamicCache:
    """Return a cache that goes on from a past of one row, in every row of a batch. Nothing is copied or changed.

    Sliding layers keep all their tokens too: the model masks those outside of the window.
    """
    layers = []
    for keys, values in past:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = (states.expand(batch_size, -1, -1, -1) for states in (keys, values))
        layers.append(layer)
    return _cache(layers)


def past_of(cache: DynamicCache) -> Past:
    """Return what a cache holds."""
    return [(layer.keys, layer.values) for layer in cache.layers]


@dataclass(frozen=True)
class Beginning:
    """What some rows of a batch share.

    Args:
        past (`Past`): Of one row; perhaps of no tokens.
        begin (`int`): The first of the rows.
        end (`int`): The first behind them.
    """

    past: Past
    begin: int
    end: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.begin, self.end)


class BranchesCache(DynamicCache):
    """The past of the rows of a batch, behind beginnings that they share.

    Args:
        layers (`list[RoomyLayer]`): What the rows have of their own.
        beginnings (`list[Beginning]`): What they share, from the first row to the last; none if the layers hold all.
    """

    def __init__(self, layers: Sequence[DynamicLayer], beginnings: Sequence[Beginning] = ()) -> None:
        super().__init__()
        self.layers = list(layers)
        self.beginnings = list(beginnings)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some of the rows, in their order."""
        super().batch_select_indices(indices)
        kept, begin, left = indices.tolist(), 0, []
        for one in self.beginnings:
            end = begin + sum(one.begin <= row < one.end for row in kept)
            if begin < end:
                left.append(replace(one, begin=begin, end=end))
            begin = end
        self.beginnings = left


class RowsPast:
    """The past of the rows of a batch, which end together.

    What stands before a shorter row is padding, to be masked. So the distances between the tokens of a row are those
    of their places, which is what sliding windows are measured in.

    Args:
        lengths (`list[int]`): The tokens of each row.
        room (`int`): How many tokens are to follow.
    """

    def __init__(self, lengths: Sequence[int], room: int) -> None:
        self._lengths = lengths
        self._length = max(lengths)
        self._room = room
        self._states: Past = []

    def put(self, row: int, past: Past, source: int, first: int) -> None:
        """Fill a row with tokens of a row of some past, from the first one to be taken on."""
        if not self._states:
            self._states = [(self._allocate(keys), self._allocate(values)) for keys, values in past]
        length = self._lengths[row]
        for target, states in zip(self._states, past, strict=True):
            for to, given in zip(target, states, strict=True):
                to[row, :, self._length - length : self._length] = given[source, :, first : first + length]

    def cache(self, shared: Iterable[tuple[Past, int]] = ()) -> BranchesCache:
        """Return the cache that generation goes on with.

        Args:
            shared (`Iterable[tuple[Past, int]]`): What was skipped, and for how many rows, from the first row to the
                last; an empty past where nothing was.
        """
        nothing = [(keys[:1, :, :0], values[:1, :, :0]) for keys, values in self._states]
        beginnings: list[Beginning] = []
        for past, rows in shared:
            begin = beginnings[-1].end if beginnings else 0
            beginnings.append(Beginning(past or nothing, begin, begin + rows))
        layers = [RoomyLayer(keys, values, self._length) for keys, values in self._states]
        return BranchesCache(layers, beginnings)

    def _allocate(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = like.shape
        return like.new_zeros(len(self._lengths), heads, self._length + self._room, width)


def _cache(layers: Sequence[DynamicLayer]) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = list(layers)
    return cache
