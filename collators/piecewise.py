"""Attention of the segments of a row piece by piece: each over every segment that it continues, and over itself.

No keys are copied together and no mask is made. The pieces of one query are put together by their log-sum-exps, and in
the backward pass each piece is given the log-sum-exp and the output of the whole, as in ring attention (Liu et al.,
2023, arXiv:2310.01889).
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch

_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
_BACKWARD = f"{_FORWARD}_backward"
_Attended = tuple[torch.Tensor, torch.Tensor]


def is_supported(query: torch.Tensor, dropout: float) -> bool:
    """Tell whether `attend_piecewise` can compute this: PyTorch's CPU kernels, which know no dropout."""
    has_kernels = hasattr(torch.ops.aten, _FORWARD) and hasattr(torch.ops.aten, _BACKWARD)
    return query.device.type == "cpu" and dropout == 0.0 and has_kernels


def attend_piecewise(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Sequence[tuple[int, int]],
    paths: Sequence[Sequence[int]],
    scale: float | None,
) -> torch.Tensor:
    """Attend over one row.

    Args:
        query (`torch.Tensor`): [heads, T, D].
        key (`torch.Tensor`): [heads, T, D].
        value (`torch.Tensor`): [heads, T, D].
        spans (`Sequence[tuple[int, int]]`): Where each segment begins in the row, and where it ends.
        paths (`Sequence[Sequence[int]]`): For each segment those that it continues, from the root on, and itself.
        scale (`float`, *optional*): Of the scores; 1 / sqrt(D) by default.

    Returns:
        `torch.Tensor`: [heads, T, D]; 0 behind the last segment.
    """
    pieces = [(spans[path[-1]], _joined([spans[number] for number in path[:-1]])) for path in paths]
    attended: torch.Tensor = _Piecewise.apply(query[None], key[None], value[None], pieces, scale)
    return attended[0]


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans with those that touch made one."""
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


class _Piecewise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: Any, scale: float | None
    ) -> torch.Tensor:
        output = torch.zeros_like(query)
        sums = query.new_zeros(query.shape[:3], dtype=torch.float64 if query.dtype == torch.float64 else torch.float32)
        for (begin, end), before in pieces:
            own = query[:, :, begin:end]
            parts = [
                _kernel(_FORWARD)(
                    own, key[:, :, first:last], value[:, :, first:last], 0.0, first == begin, scale=scale
                )
                for first, last in [*before, (begin, end)]
            ]
            output[:, :, begin:end], sums[:, :, begin:end] = reduce(_merge, parts)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.pieces, ctx.scale = pieces, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, output, sums = ctx.saved_tensors
        gradient = gradients[0]
        # What many branches give to their trunk is summed up in full precision.
        of_query, of_key, of_value = (torch.zeros_like(tensor, dtype=sums.dtype) for tensor in (query, key, value))
        for (begin, end), before in ctx.pieces:
            own = (slice(None), slice(None), slice(begin, end))
            for first, last in [*before, (begin, end)]:
                seen = (slice(None), slice(None), slice(first, last))
                parts = _kernel(_BACKWARD)(
                    gradient[own],
                    query[own],
                    key[seen],
                    value[seen],
                    output[own],
                    sums[own],
                    0.0,
                    first == begin,
                    scale=ctx.scale,
                )
                of_query[own] += parts[0]
                of_key[seen] += parts[1]
                of_value[seen] += parts[2]
        return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype), None, None


def _kernel(name: str) -> Any:
    return getattr(torch.ops.aten, name)


def _merge(first: _Attended, second: _Attended) -> _Attended:
    """Put the attention over two sets of keys together, each [1, heads, Q, D] with its log-sum-exps [1, heads, Q]."""
    both = torch.logaddexp(first[1], second[1])
    weighted = [part * (part_sum - both).exp()[..., None].to(part.dtype) for part, part_sum in (first, second)]
    return weighted[0] + weighted[1], both
