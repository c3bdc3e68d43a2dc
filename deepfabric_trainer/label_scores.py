"""What a forward pass says of each label, where TRL's own head does not tell it.

Since 1.15 TRL gives models a fused head, whose outputs hold the log-probability of each label, and whether it is the
most likely token; region metrics and weights of tokens live on these. Before, a model gave its logits and its loss:
then the same is read from the logits, and the loss is made of it.
"""

from collections.abc import Callable
from typing import Any

import torch
from trl.trainer import utils as trl_utils

from deepfabric_trainer.loss import weigh

FUSED_HEAD = hasattr(trl_utils, "add_fused_lm_head")
"""Whether TRL's outputs tell it."""
_IGNORED = -100


def give_up_chunks(args: Any, *, are_scored: bool) -> None:
    """Have an older TRL compute the loss from logits, and not in chunks, of which it tells the sums only.

    The logits are those of trained positions, where these are few: see `trained_positions_only`.

    Args:
        args (`TrainingArguments`): Of the trainer; its `loss_type` is changed.
        are_scored (`bool`): Whether the labels have regions or weights.
    """
    if not FUSED_HEAD and are_scored and getattr(args, "loss_type", None) == "chunked_nll":
        args.loss_type = "nll"


def wants_logits(trainer: Any, inputs: dict[str, Any], return_outputs: bool) -> bool:
    """Tell whether the logits of all positions are read, by the loss or by who asks for it.

    An older TRL asks for outputs in every evaluation, and says in the inputs when it does not read them.
    """
    if trainer.compute_loss_func is not None or trainer.label_smoother is not None:
        return True
    return return_outputs and not inputs.get("_prediction_loss_only", False)


def measured_and_weighed(trainer: Any, model: Any, batch: dict[str, Any], mode: str, num_items: Any) -> Any:
    """Return what TRL's loss can call as the model, with region metrics and weights around it.

    Args:
        trainer (`DeepFabricTrainer`): Whose region metrics these are.
        model (`torch.nn.Module`): As the trainer calls it.
        batch (`dict[str, Any]`): Its `regions` and `loss_weights` are removed from it.
        mode (`str`): What the metrics are summed under.
        num_items (`torch.Tensor`, *optional*): The sum of the weights of the optimizer step.
    """

    def read(called: Any) -> Any:
        return weigh(trainer.region_metrics.measured(called, batch, mode), batch, num_items)

    return as_scored(model, batch, read, num_items, passes=trainer._step.passes)


def as_scored(
    model: Any, batch: dict[str, Any], read: Callable[[Any], Any], num_items: Any, *, passes: int = 1
) -> Any:
    """Return what TRL's loss can call as the model, so that somebody reads, and perhaps weighs, each label's score.

    Args:
        model (`torch.nn.Module`): As the trainer calls it.
        batch (`dict[str, Any]`): With `labels` [R, T].
        read (`Callable`): Given what is called as the model, returns the same with the reading around it; the outputs
            hold `log_probs`, `is_top1` and `label_mask` [R, T - 1].
        num_items (`torch.Tensor`, *optional*): What the loss is divided by; `None`: the labels of the batch.
        passes (`int`, *optional*, defaults to 1): Of how many passes a router's auxiliary loss is to be the mean.

    Returns:
        `Callable`: With TRL's fused head, what `read` makes of the model.
    """
    labels = batch.get("labels")
    if FUSED_HEAD or labels is None or "shift_labels" in batch:
        return read(model)

    def scoring(**inputs: Any) -> Any:
        outputs = model(**inputs)
        if outputs.logits is not None:
            outputs.log_probs, outputs.is_top1, outputs.label_mask = score_labels(outputs.logits, labels)
        return outputs

    reading = read(scoring)

    def called(**inputs: Any) -> Any:
        outputs = reading(**inputs)
        if outputs.loss is not None and outputs.logits is not None:
            outputs["loss"] = _loss_of(outputs, num_items, _aux_weight(model) / passes)
        return outputs

    return _Standing(model, called)


def score_labels(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return of each label the log-probability, whether it is the most likely token, and whether it is trained.

    Args:
        logits (`torch.Tensor`): [R, V + T, vocabulary], for V virtual tokens that an adapter puts before each row.
        labels (`torch.Tensor`): [R, T].

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: Each [R, V + T - 1]; 0 where nothing is trained.
    """
    virtual = logits.shape[1] - labels.shape[1]
    shifted = torch.nn.functional.pad(labels.to(logits.device), (virtual, 0), value=_IGNORED)[:, 1:]
    mask = shifted.ne(_IGNORED)
    predicting = logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        predicting.flatten(0, 1).float(), shifted.flatten(), ignore_index=_IGNORED, reduction="none"
    )
    is_top1 = predicting.detach().argmax(-1).eq(shifted) & mask
    return -losses.view_as(shifted), is_top1, mask


def _loss_of(outputs: Any, num_items: Any, aux_weight: float) -> torch.Tensor:
    """Return the loss that TRL's fused head would give."""
    divisor = torch.as_tensor(outputs.label_mask.sum() if num_items is None else num_items).clamp(min=1)
    loss: torch.Tensor = -outputs.log_probs.sum() / divisor.to(outputs.log_probs.device)
    aux_loss = getattr(outputs, "aux_loss", None)
    return loss if aux_loss is None else loss + aux_weight * aux_loss


def _aux_weight(model: Any) -> float:
    config = getattr(model, "module", model).config.get_text_config()
    return float(getattr(config, "router_aux_loss_coef", 0.0))


class _Standing:
    """Called instead of a model, and in all else the model."""

    def __init__(self, model: Any, call: Callable[..., Any]) -> None:
        self._model = model
        self._call = call

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # Asked by `isinstance`.
        return type(self._model)

    def __call__(self, **inputs: Any) -> Any:
        return self._call(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
