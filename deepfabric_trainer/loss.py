"""The weighted loss: sum(weight * nll) / sum(weight) over the tokens of an optimizer step.

Collators give `loss_weights` beside the labels. TRL divides the summed negative log-likelihoods by
`num_items_in_batch`, but by no less than 1: so the trainer hands it the sum of the weights under that name
(`mean_weight`), and the log-probabilities come out of the model weighted, and mended where that sum is below 1
(`weigh`). Entropy and token accuracy stay unweighted. What goes round these two, `loss_settings` refuses.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from deepfabric_trainer.errors import ConfigError


def mean_weight(
    batches: Sequence[Mapping[str, Any]], device: torch.device, gather: Callable[[torch.Tensor], torch.Tensor] | None
) -> torch.Tensor:
    """Return the mean weight of the labels of an optimizer step: what makes their number the sum of their weights.

    Args:
        batches (`Sequence[Mapping[str, torch.Tensor]]`): With `labels` and perhaps `loss_weights`, [R, T] each.
        device (`torch.device`): Where processes exchange tensors.
        gather (`Callable`, *optional*): Joins the tensors of all processes; every process calls it, with weights or
            without. `None`: a process goes by its own.

    Returns:
        `torch.Tensor`: A scalar, 0 where there is no label.
    """
    sums = torch.zeros(1, 2, device=device)
    for batch in batches:
        count = batch["labels"][..., 1:].ne(-100).sum()
        weights = batch.get("loss_weights")
        sums += torch.stack([count if weights is None else weights[..., 1:].sum(), count]).to(sums)
    total, count = (sums if gather is None else gather(sums)).sum(0).unbind()
    return total / count.clamp(min=1)


def weigh(model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None) -> Any:
    """Take `loss_weights` out of a batch and return the model, with log-probabilities weighted by them.

    Args:
        model (`Callable`): With TRL's fused head; other outputs than its own go through as they are.
        inputs (`dict[str, Any]`): The batch; `loss_weights` is removed from it.
        num_items_in_batch (`torch.Tensor`, *optional*): The sum of the weights of the optimizer step. `None`: the
            batch goes by its own.

    Returns:
        `Callable`: To be called as the model would be; the model itself when there are no weights.

    Raises:
        ConfigError: If the batch was split over processes, and its weights were not.
    """
    weights = inputs.pop("loss_weights", None)
    if weights is None:
        return model
    if "shift_labels" in inputs:
        raise ConfigError(
            "the loss is weighted, and context or sequence parallelism splits the rows without their weights",
            expected="whole rows on each process",
            fix="turn the parallelism off, or leave out `loss_weights` and the messages' `weight`",
        )

    def weighted(**batch: Any) -> Any:
        outputs = model(**batch)
        if getattr(outputs, "log_probs", None) is not None:
            outputs.log_probs = outputs.log_probs * _factors(weights, outputs.label_mask, num_items_in_batch)
        return outputs

    return weighted


def _factors(weights: torch.Tensor, label_mask: torch.Tensor, num_items_in_batch: torch.Tensor | None) -> torch.Tensor:
    """Return the weights of the predictions, [R, T - 1], so that TRL's division leaves a weighted mean."""
    # The first token is predicted from nothing, unless an adapter has put virtual ones before it.
    before = label_mask.shape[-1] - weights.shape[-1] + 1
    aligned = torch.nn.functional.pad(weights.to(label_mask.device), (before, 0))[:, 1:]
    if num_items_in_batch is None:
        total, divisor = aligned.sum(), label_mask.sum()
    else:
        total = divisor = torch.as_tensor(num_items_in_batch, device=label_mask.device)
    divisor = divisor.clamp(min=1)
    return aligned * torch.where(total > 0, divisor / total, 0.0)
