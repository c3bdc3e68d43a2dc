"""Applying the language-model head to trained positions only, where TRL applies it to all.

TRL's fused head scores the trained positions on devices with Triton, and every position elsewhere. With 3% of the
tokens trained and a vocabulary of 151,000 that is nearly all of a small model's step on a CPU. Here the hidden states
of the trained positions are taken out between the backbone and the head, and with them their labels, weights and
regions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from deepfabric_trainer.adapters import has_virtual_tokens
from deepfabric_trainer.label_scores import FUSED_HEAD

_DEVICES = ("cpu", "mps") if FUSED_HEAD else ("cpu", "mps", "cuda", "xpu", "npu")
"""Where every position is scored; XLA devices are left out, since they compile anew for each number of positions."""
_MOST = 0.5
"""Above this share of trained positions, taking them out costs more than it saves."""


@contextmanager
def trained_positions_only(model: Any, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield inputs with which the fused head sees the trained positions only; the loss and the gradients stay.

    Args:
        model (`torch.nn.Module`): The model as the trainer holds it, perhaps with adapters, not wrapped.
        inputs (`dict[str, Any]`): A batch with `labels` [R, T], and perhaps `loss_weights` and `regions` [R, T].

    Yields:
        `dict[str, Any]`: The same batch, with `labels`, `loss_weights` and `regions` [1, N + 1] for N trained
        positions, or the batch itself where nothing is gained.
    """
    labels = inputs.get("labels")
    if labels is None or labels.device.type not in _DEVICES or has_virtual_tokens(model):
        yield inputs
        return
    trained = labels[:, 1:] != -100
    count = int(trained.sum())
    if not 0 < count <= _MOST * trained.numel():
        yield inputs
        return

    def take_out(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        # One more position at the end, since the head drops the last of a row, from which nothing is predicted.
        output.last_hidden_state = torch.cat([hidden[:, :-1][trained], hidden[:1, -1]])[None]
        return output

    taken_out = {
        name: torch.cat([inputs[name].new_full((1,), blank), inputs[name][:, 1:][trained]])[None]
        for name, blank in (("labels", -100), ("loss_weights", 0.0), ("regions", 0))
        if name in inputs
    }
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hook = base.base_model.register_forward_hook(take_out)
    try:
        yield {**inputs, **taken_out}
    finally:
        hook.remove()
