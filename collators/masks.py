"""Attention masks of laid-out batches, in the forms that models take."""

from dataclasses import dataclass

import torch

from deepfabric_trainer.collators.block_mask import PrefixBlockMask, prefix_block_mask
from deepfabric_trainer.collators.layout import PrefixTree, last_seen_by
from deepfabric_trainer.errors import ConfigError

MASKED = ("sdpa", "eager", "flex_attention")
"""The attention implementations that take a mask of any shape."""
LAYER_TYPES = ("full_attention", "sliding_attention")
OneMask = torch.Tensor | PrefixBlockMask
Mask = OneMask | dict[str, OneMask]


@dataclass(frozen=True)
class MaskForm:
    """What a model wants to be told of which token sees which.

    Args:
        attn_implementation (`str`): The model's attention. `"sdpa"` gets a boolean mask; `"eager"` an additive one,
            since it adds whatever it is given; `"flex_attention"` a `BlockMask`; `"prefix_tree"` no mask, but the
            tree itself, see `tree_attention`.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Of the additive mask.
        sliding_window (`int`, *optional*): How far back layers with a window see, in positions.
        by_layer_type (`bool`, *optional*, defaults to `False`): Whether the model takes a mask for each type of layer
            (`{"full_attention": ..., "sliding_attention": ...}`), as those do that have both.

    Raises:
        ConfigError: For an attention implementation that takes no such mask, or a window of no tokens.
    """

    attn_implementation: str = "sdpa"
    dtype: torch.dtype = torch.float32
    sliding_window: int | None = None
    by_layer_type: bool = False

    def __post_init__(self) -> None:
        known = (*MASKED, "prefix_tree")
        if self.attn_implementation not in known:
            raise ConfigError(
                f"attn_implementation is {self.attn_implementation!r}, which takes no mask of this form",
                expected=f"one of {', '.join(known)}",
                fix="load the model with `attn_implementation='sdpa'`, or pad with `ToolCallCollator`",
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(f"sliding_window is {self.sliding_window}", expected="at least 1 token, or None")

    def of(self, tree: PrefixTree, positions: torch.Tensor) -> Mask:
        """Return the mask of a batch.

        Args:
            tree (`PrefixTree`): How its tokens hang together.
            positions (`torch.Tensor`): The `position_ids`, [R, T].

        Returns:
            `torch.Tensor` or `dict[str, torch.Tensor]`: [R, 1, T, T], boolean or additive, or a `BlockMask`; one for
            each type of layer if the model wants it so. For `"prefix_tree"` [R, 1, 1, T]: which tokens are real.
        """
        if self.attn_implementation == "prefix_tree":
            return real_tokens(tree, positions.shape[1])[:, None, None]
        if not self.by_layer_type:
            return self._mask(tree, positions, self.sliding_window)
        windows = dict(zip(LAYER_TYPES, (None, self.sliding_window), strict=True))
        return {name: self._mask(tree, positions, window) for name, window in windows.items()}

    def _mask(self, tree: PrefixTree, positions: torch.Tensor, window: int | None) -> OneMask:
        ends = last_seen_by(tree, positions.shape[1])
        if self.attn_implementation == "flex_attention":
            return prefix_block_mask(ends, positions, window)
        mask = boolean_mask(ends, positions, window)
        if self.attn_implementation == "sdpa":
            return mask
        return torch.zeros(mask.shape, dtype=self.dtype).masked_fill_(~mask, torch.finfo(self.dtype).min)


def boolean_mask(ends: torch.Tensor, positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Return which token sees which, from what `last_seen_by` gives.

    Args:
        ends (`torch.Tensor`): [R, T] int64.
        positions (`torch.Tensor`): The `position_ids`, [R, T] int64, in which windows are measured.
        window (`int`, *optional*): A token sees itself and the `window - 1` positions before it.

    Returns:
        `torch.Tensor`: [R, 1, T, T] boolean.
    """
    # Each pass over T x T values counts: 32 bits, no temporary of words, the triangle in place.
    index, ends, positions = (of.to(torch.int32) for of in (torch.arange(ends.shape[1]), ends, positions))
    mask = (index[:, None] < ends[:, None, :]).tril_()
    if window is not None:
        mask &= positions[:, None, :] > positions[:, :, None] - window
    return mask[:, None]


def real_tokens(tree: PrefixTree, length: int) -> torch.Tensor:
    """Return which tokens are no padding, [R, T] boolean."""
    counts = torch.tensor([sum(segment.length for segment in row) for row in tree.rows])
    return torch.arange(length) < counts[:, None]
