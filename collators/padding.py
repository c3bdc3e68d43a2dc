"""Right-padding lists, of token ids and the like, to tensors."""

from collections.abc import Sequence

import torch

IGNORED = -100
"""The label of a token that is not trained."""


def pad_rows(
    rows: Sequence[Sequence[float]], value: float, multiple: int | None = None, *, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """Pad rows of different lengths on the right.

    Args:
        rows (`Sequence[Sequence[float]]`): R rows.
        value (`float`): What to pad with.
        multiple (`int`, *optional*): Round the length T up to this multiple.
        dtype (`torch.dtype`, *optional*, defaults to `torch.int64`): Of the result.

    Returns:
        `torch.Tensor`: [R, T].
    """
    length = max(len(row) for row in rows)
    if multiple:
        length = -(-length // multiple) * multiple
    padded = torch.full((len(rows), length), value, dtype=dtype)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.as_tensor(row, dtype=dtype)
    return padded
