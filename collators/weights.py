"""What each token of a batch weighs in the loss."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from deepfabric_trainer.collators.padding import IGNORED, pad_rows
from deepfabric_trainer.errors import ConfigError


def check_loss_weights(loss_weights: Mapping[int, float] | None) -> None:
    """Require weights that are finite and not negative.

    Raises:
        ConfigError: If one is not; it names the region.
    """
    for region, weight in (loss_weights or {}).items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"loss_weights[{region!r}] is {weight!r}", expected="a finite number, 0 or more")


def weights_of_tokens(
    examples: Sequence[Mapping[str, Any]], loss_weights: Mapping[int, float] | None
) -> list[list[float]] | None:
    """Return the weight of each token: that of its region times its own.

    Args:
        examples (`Sequence[Mapping[str, list]]`): B examples with `input_ids` of length T_i, `regions` when any region
            has a weight, and perhaps `weights`; these may be missing, `None` or empty, and are 1 then.
        loss_weights (`Mapping[int, float]`, *optional*): The weights of regions; those not named weigh 1.

    Returns:
        `list[list[float]]`: B lists of length T_i; `None` when neither regions nor tokens have a weight.
    """
    if loss_weights is None and not any(_own_weights(example) for example in examples):
        return None
    rows = []
    for example in examples:
        row = _own_weights(example) or [1.0] * len(example["input_ids"])
        if loss_weights:
            of_regions = (loss_weights.get(int(region), 1.0) for region in example["regions"])
            row = [weight * of_region for weight, of_region in zip(row, of_regions, strict=True)]
        rows.append(row)
    return rows


def pad_weights(rows: Sequence[Sequence[float]], labels: torch.Tensor, multiple: int | None) -> torch.Tensor:
    """Pad weights to the shape of the labels; what is not trained weighs 0.

    Args:
        rows (`Sequence[Sequence[float]]`): R rows.
        labels (`torch.Tensor`): The padded labels, [R, T] int64.
        multiple (`int`, *optional*): What their length was rounded up to.

    Returns:
        `torch.Tensor`: [R, T] float32.
    """
    return pad_rows(rows, 0.0, multiple, dtype=torch.float32).masked_fill_(labels == IGNORED, 0.0)


def _own_weights(example: Mapping[str, Any]) -> list[float]:
    weights = example.get("weights")
    return [] if weights is None else list(weights)
