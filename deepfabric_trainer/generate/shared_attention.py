"""Attention of rows that go on from beginnings which they share: the keys of a beginning are read once for all rows.

The scores of all rows with one beginning against its keys are one product of matrices; the keys that a row has of its
own are joined to it in the softmax (Hydragen: Juravsky et al., 2024, arXiv:2402.05099). Nothing is copied to the rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from deepfabric_trainer.generate.cache import BranchesCache

NAME = "shared_beginnings"
_cache: ContextVar[BranchesCache] = ContextVar(NAME)


def can_attend(base: Any) -> bool:
    """Tell whether a model's attention can be this one: it takes any function, and looks at all tokens before.

    Args:
        base (`PreTrainedModel`): One whose past can be shared, without adapters.
    """
    has_window = getattr(base.config, "sliding_window", None) is not None
    return base._supports_attention_backend and base.config._attn_implementation == "sdpa" and not has_window


@contextmanager
def attending_to(cache: BranchesCache, base: Any) -> Iterator[None]:
    """Let a model attend to the beginnings of a cache, too; afterwards it is as it was.

    Args:
        cache (`BranchesCache`): What the model is given as `past_key_values`, for one token a row at a time.
        base (`PreTrainedModel`): One of which `can_attend` is true.
    """
    token, before = _cache.set(cache), base.config._attn_implementation
    base.config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        base.config._attn_implementation_internal = before
        _cache.reset(token)


def shared_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do, from one token of each row.

    Args:
        module (`torch.nn.Module`): The attention layer.
        query (`torch.Tensor`): [B, heads, 1, D].
        key (`torch.Tensor`): [B, key heads, T, D], of the tokens behind the beginnings.
        value (`torch.Tensor`): [B, key heads, T, W].
        attention_mask (`torch.Tensor`, *optional*): [B, 1, 1, T] bool, false where there is padding.
        scaling (`float`, *optional*): Of the scores; 1 / sqrt(D) by default.
        **kwargs (`Any`): What else models hand to their attention, which has no meaning here.

    Returns:
        `tuple[torch.Tensor, None]`: [B, 1, heads, W].
    """
    rows, heads, _, width = query.shape
    key_heads = key.shape[1]
    query = query.reshape(rows, key_heads, -1, width) * (width**-0.5 if scaling is None else scaling)
    own = query @ key.transpose(2, 3)
    if attention_mask is not None:
        own = own.masked_fill(~attention_mask, -torch.inf)
    attended = [
        _attend(query[one.rows], own[one.rows], value[one.rows], *one.past[module.layer_idx])
        for one in _cache.get().beginnings
    ]
    return torch.cat(attended).reshape(rows, 1, heads, -1), None


def _attend(
    query: torch.Tensor, own: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Attend to one beginning, and to what each row has behind it.

    Args:
        query (`torch.Tensor`): [N, key heads, G, D], for the N rows of the beginning.
        own (`torch.Tensor`): [N, key heads, G, T], their scores against their own keys.
        value (`torch.Tensor`): [N, key heads, T, W], their own.
        keys (`torch.Tensor`): [1, key heads, S, D], of the beginning.
        values (`torch.Tensor`): [1, key heads, S, W].

    Returns:
        `torch.Tensor`: [N, key heads, G, W].
    """
    rows, key_heads, groups, _ = query.shape
    # One product for each head of keys, with the queries of all rows.
    together = query.transpose(0, 1).reshape(key_heads, rows * groups, -1)
    shared = (together @ keys[0].transpose(1, 2)).view(key_heads, rows, groups, -1).transpose(0, 1)
    weights = torch.cat([shared, own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    of_shared, of_own = weights.split([keys.shape[2], own.shape[3]], dim=-1)
    together = of_shared.transpose(0, 1).reshape(key_heads, rows * groups, -1)
    from_shared = (together @ values[0]).view(key_heads, rows, groups, -1).transpose(0, 1)
    attended: torch.Tensor = from_shared + of_own @ value
    return attended


AttentionInterface.register(NAME, shared_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
