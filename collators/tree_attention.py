"""Attention that goes over a batch segment by segment, where a mask would have it compute every pair of tokens.

Registered with transformers as `"prefix_tree"`. A segment's queries see the keys of the segments that it continues,
and their own up to themselves; nothing else is computed, and no mask of T x T is made. Without a tree it is `"sdpa"`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from deepfabric_trainer.collators.layout import PrefixTree
from deepfabric_trainer.collators.piecewise import attend_piecewise, is_supported

NAME = "prefix_tree"
_SCORES = ("position_bias", "softcap", "s_aux")
"""What attention functions of transformers do to scores besides masking them."""


def prefix_tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    prefix_tree: PrefixTree | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do.

    Args:
        module (`torch.nn.Module`): The attention layer.
        query (`torch.Tensor`): [R, heads, T, D].
        key (`torch.Tensor`): [R, key heads, T, D].
        value (`torch.Tensor`): [R, key heads, T, D].
        attention_mask (`torch.Tensor`, *optional*): Only heeded without a tree; with one that of the batch.
        dropout (`float`, *optional*, defaults to 0.0): Of the attention weights.
        scaling (`float`, *optional*): Of the scores; 1 / sqrt(D) by default.
        prefix_tree (`PrefixTree`, *optional*): How the tokens hang together. It reaches this function as the model's
            keyword argument of this name.
        sliding_window (`int`, *optional*): How far back the layer sees, in positions.
        **kwargs (`Any`): What else the model hands to its attention; heeded without a tree.

    Returns:
        `tuple[torch.Tensor, None]`: [R, T, heads, D].

    Raises:
        ValueError: If a layer wants a mask of its own, a bias, a soft cap or sinks together with a tree.
    """
    if prefix_tree is None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
        return output
    if _has_own_scores(attention_mask, kwargs):
        raise ValueError("the layer has scores or a mask of its own, and attention by the tree knows none")
    query, key, value = _as_autocast_computes(query, key, value)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    options = {"dropout_p": dropout, "scale": scaling}
    rows = [
        _attend_row(prefix_tree, row, (query[row], key[row], value[row]), sliding_window, options)
        for row in range(query.shape[0])
    ]
    return torch.stack(rows).transpose(1, 2).contiguous(), None


def _has_own_scores(attention_mask: torch.Tensor | None, options: dict[str, Any]) -> bool:
    """Tell whether a layer wants more of its attention than the tree: not the batch's mask, but one of its own."""
    if any(options.get(name) is not None for name in _SCORES):
        return True
    return attention_mask is not None and (attention_mask.dtype != torch.bool or attention_mask.shape[1:3] != (1, 1))


def _as_autocast_computes(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return tensors in the type in which autocast, if it is on, has PyTorch's own attention compute."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def _attend_row(
    tree: PrefixTree,
    row: int,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    window: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attend over one row, [heads, T, D]."""
    paths, lengths = tree.paths(row), [segment.length for segment in tree.rows[row]]
    if window is not None and max(sum(lengths[number] for number in path) for path in paths) <= window:
        window = None
    if window is None and is_supported(tensors[0], options["dropout_p"]):
        ends = list(accumulate(lengths))
        spans = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        return attend_piecewise(*tensors, spans, paths, options["scale"])
    padding = tensors[0].shape[1] - sum(lengths)
    # One `split` and not a slice for each segment: the gradient of a slice is as large as the whole.
    pieces = [tensor.split([*lengths, padding], dim=1) for tensor in tensors]
    attended = []
    for number, path in enumerate(paths):
        query = pieces[0][number][None]
        key, value = (_join([piece[part] for part in path])[None] for piece in pieces[1:])
        attended.append(_attend(query, key, value, window, options))
    return torch.cat([*attended, torch.zeros_like(pieces[0][-1])], dim=1)


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, options: dict[str, Any]
) -> torch.Tensor:
    """Attend from the last tokens of a sequence, [1, heads, Q, D], over all its K tokens; return [heads, Q, D]."""
    before = key.shape[2] - query.shape[2]
    windowed = window is not None and key.shape[2] > window
    if windowed and window is not None:
        unseen = max(before - window + 1, 0)
        key, value, before = key[:, :, unseen:], value[:, :, unseen:], before - unseen
    if before == 0 and not windowed:
        return scaled_dot_product_attention(query, key, value, is_causal=True, **options)[0]
    distance = torch.arange(query.shape[2], device=query.device)[:, None] + before
    distance = distance - torch.arange(key.shape[2], device=query.device)
    mask = distance >= 0
    if windowed and window is not None:
        mask &= distance < window
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)[0]


@contextmanager
def tree_attention(model: torch.nn.Module) -> Iterator[None]:
    """Let a model's `"sdpa"` layers attend by the tree of their batch; afterwards they are as they were.

    Gradient checkpointing computes layers again in the backward pass: that belongs inside too.
    """
    configs = {id(config): config for config in _configs(model) if config._attn_implementation == "sdpa"}
    for config in configs.values():
        config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        for config in configs.values():
            config._attn_implementation_internal = "sdpa"


def _configs(model: torch.nn.Module) -> Iterator[Any]:
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            yield config


AttentionInterface.register(NAME, prefix_tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
