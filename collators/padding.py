"""Right-padding lists of token ids to tensors."""

from collections.abc import Sequence

import torch

IGNORED = -100
"""The label of a token that is not trained."""


def pad_rows(rows: Sequence[Sequence[int]], value: int, multiple: int | None = None) -> torch.Tensor:
    """Pad rows of different lengths on the right.

    Args:
        rows (`Sequence[Sequence[int]]`): R rows.
        value (`int`): What to pad with.
        multiple (`int`, *optional*): Round the length T up to this multiple.

    Returns:
        `torch.Tensor`: [R, T] int64.
    """
    length = max(len(row) for row in rows)
    if multiple:
        length = -(-length // multiple) * multiple
    padded = torch.full((len(rows), length), value, dtype=torch.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return padded
