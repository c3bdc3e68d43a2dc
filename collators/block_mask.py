"""The mask of a laid-out batch for FlexAttention, which computes only the blocks in which somebody sees something."""

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


class _Sees:
    """Tells which token sees which, as FlexAttention asks it: by index, a batch of indices at a time."""

    def __init__(self, ends: torch.Tensor, positions: torch.Tensor, window: int | None) -> None:
        self.ends = ends
        self.positions = positions
        self.window = window

    def __call__(self, row: Any, head: Any, query: Any, key: Any) -> Any:
        sees = (key <= query) & (query < self.ends[row, key])
        if self.window is not None:
            sees = sees & (self.positions[row, query] - self.positions[row, key] < self.window)
        return sees

    def to(self, device: Any) -> "_Sees":
        return _Sees(self.ends.to(device), self.positions.to(device), self.window)


class PrefixBlockMask(BlockMask):
    """A `BlockMask` that takes the tensors of its `mask_mod` along when it is moved to a device."""

    mask_mod: _Sees

    def to(self, device: Any, non_blocking: bool = False) -> "PrefixBlockMask":
        """Return the mask on another device."""
        moved = super().to(device)
        return _as_prefix_block_mask(moved, self.mask_mod.to(device))


def prefix_block_mask(ends: torch.Tensor, positions: torch.Tensor, window: int | None = None) -> PrefixBlockMask:
    """Return the mask of a laid-out batch for FlexAttention.

    Run on the CPU only, uncompiled; on a GPU it is untested.

    Args:
        ends (`torch.Tensor`): What `last_seen_by` gives, [R, T] int64.
        positions (`torch.Tensor`): The `position_ids`, [R, T] int64, in which windows are measured.
        window (`int`, *optional*): A token sees itself and the `window - 1` positions before it.
    """
    rows, length = ends.shape
    sees = _Sees(ends, positions, window)
    mask = create_block_mask(sees, B=rows, H=None, Q_LEN=length, KV_LEN=length, device=str(ends.device))
    return _as_prefix_block_mask(mask, sees)


def _as_prefix_block_mask(mask: BlockMask, sees: Any) -> PrefixBlockMask:
    kinds = ("kv", "full_kv", "q", "full_q")
    names = [f"{kind}_{what}" for kind in kinds for what in ("num_blocks", "indices")]
    tensors: dict[str, Any] = {name: getattr(mask, name) for name in names}
    return PrefixBlockMask(seq_lengths=mask.seq_lengths, BLOCK_SIZE=mask.BLOCK_SIZE, mask_mod=sees, **tensors)
