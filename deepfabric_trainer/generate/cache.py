"""Keys and values of tokens that were computed: of a beginning that is shared, and of the rows of a batch."""

from collections.abc import Sequence

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

    def put(self, row: int, past: Past, source: int) -> None:
        """Copy the beginning of a row of some past to a row of this one."""
        if not self._states:
            self._states = [(self._allocate(keys), self._allocate(values)) for keys, values in past]
        length = self._lengths[row]
        for target, states in zip(self._states, past, strict=True):
            for to, given in zip(target, states, strict=True):
                to[row, :, self._length - length : self._length] = given[source, :, :length]

    def cache(self) -> DynamicCache:
        """Return the cache that generation goes on with."""
        return _cache([RoomyLayer(keys, values, self._length) for keys, values in self._states])

    def _allocate(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = like.shape
        return like.new_zeros(len(self._lengths), heads, self._length + self._room, width)


def _cache(layers: Sequence[DynamicLayer]) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = list(layers)
    return cache
