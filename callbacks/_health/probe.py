"""`StepProbe`: the numbers of an optimizer step, by hooks that are on the model while it computes and no longer."""

import logging
import math
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from deepfabric_trainer.callbacks._health.monitor import StepNumbers

logger = logging.getLogger("deepfabric_trainer.callbacks.training_health")

_IGNORED = -100
_WITNESSES = 4
"""How many parameters tell by how much the gradients were clipped; they are the smallest."""


@dataclass(frozen=True)
class Forward:
    """What a forward pass in training was given, and its loss, on the device.

    Args:
        batch (`int`): The micro-batch that it belongs to.
        inputs (`dict[str, torch.Tensor]`): `input_ids`, and what tells how they lie: references, not copies.
        loss (`torch.Tensor`, *optional*): The sum of the losses of its labels, or their mean if it has no count.
        labels (`torch.Tensor`, *optional*): How many labels it trains.
    """

    batch: int
    inputs: dict[str, Any]
    loss: torch.Tensor | None
    labels: torch.Tensor | None


class StepProbe:
    """Measures optimizer steps: from `open` on forward passes are noted, `read` gives the numbers and closes.

    Args:
        model (`torch.nn.Module`): The model, not wrapped.
        sees_forward (`bool`): Whether hooks on its forward pass work: not in a compiled model, nor in replicas.
        sees_gradients (`bool`): Whether gradients tell that something is wrong: not when they are scaled, since then
            they overflow now and then, and that does no harm.
        sees_norm (`bool`): Whether the norm before clipping can be told from gradients: not when they are scaled, or
            joined over processes after they were made.
    """

    def __init__(self, model: Any, *, sees_forward: bool, sees_gradients: bool, sees_norm: bool) -> None:
        self.sees_norm = sees_norm
        self.forwards: list[Forward] = []
        self._model = model if sees_forward else None
        watched = model.parameters() if sees_gradients else ()
        self._parameters = [parameter for parameter in watched if parameter.requires_grad]
        self._witnesses = sorted(self._parameters, key=torch.Tensor.numel)[:_WITNESSES] if sees_norm else []
        self._before: dict[int, torch.Tensor] = {}
        self._batch = 0
        self._removers: list[Callable[[], None]] = []

    def open(self) -> None:
        """Begin a step."""
        self.close()
        self.forwards, self._before, self._batch = [], {}, 0
        if self._model is not None:
            hook = _ForwardHook(self)
            handle = self._model.register_forward_hook(hook, with_kwargs=True, always_call=True)
            self._removers.append(handle.remove)
        for number, witness in enumerate(self._witnesses):
            self._removers.append(witness.register_post_accumulate_grad_hook(_GradientHook(self, number)).remove)

    def next_batch(self) -> None:
        """Say that the next forward pass belongs to another micro-batch."""
        self._batch += 1

    def close(self) -> None:
        """Take the hooks off."""
        for remove in self._removers:
            remove()
        self._removers = []

    def forget(self) -> None:
        """Let go of the batches."""
        self.forwards, self._before = [], {}

    def stop_noting(self) -> None:
        """Note no forward passes any more."""
        self.close()
        self.forget()
        self._model = None

    def read(self) -> StepNumbers:
        """Take the hooks off and return the step's numbers; waits for the device once."""
        self.close()
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        is_whole = bool(gradients) and all(type(gradient) is torch.Tensor for gradient in gradients)
        scalars: list[torch.Tensor] = []
        if is_whole:
            norm = torch.nn.utils.get_total_norm(gradients)
            before, after = self._norm_of_witnesses(norm)
            scalars += [norm, before, after]
        for forward in self.forwards:
            scalars += [value for value in (forward.loss, forward.labels) if value is not None]
        values = iter(_to_floats(scalars))
        norm_before, finite = None, None
        if is_whole:
            clipped, before_clip, after_clip = next(values), next(values), next(values)
            # A norm that is infinite clips finite gradients to 0.
            finite = math.isfinite(clipped) and not (before_clip > 0 and after_clip == 0)
            if self.sees_norm and finite:
                norm_before = clipped * before_clip / after_clip if after_clip > 0 else clipped
        losses, labels = self._by_batch(values)
        seen = tuple(dict.fromkeys(forward.batch for forward in self.forwards))
        return StepNumbers(losses, labels, norm_before, finite, seen)

    def inputs_of(self, batches: tuple[int, ...]) -> list[dict[str, Any]]:
        """Return what the forward passes of these micro-batches were given."""
        return [forward.inputs for forward in self.forwards if forward.batch in batches]

    def note_gradient(self, number: int, parameter: torch.Tensor) -> None:
        """Note the norm of a witness's gradient, as long as it has not been clipped."""
        if parameter.grad is not None:
            self._before[number] = torch.linalg.vector_norm(parameter.grad)

    def note_forward(self, module: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Note a forward pass; one that failed, or is no training, ends the step.

        What came before one that failed is forgotten: where memory ran out the whole step is done anew.
        """
        if output is None:
            self.forget()
        if output is None or not module.training:
            self.close()
            return
        if not torch.is_grad_enabled():  # for metrics, beside the one that is trained
            return
        labels, ids = kwargs.get("labels"), kwargs.get("input_ids")
        if labels is not None:
            is_shifted = ids is not None and labels.shape == ids.shape
            count = (labels[..., 1:] if is_shifted else labels).ne(_IGNORED).sum()
        else:
            count = None
        log_probs, loss = getattr(output, "log_probs", None), getattr(output, "loss", None)
        if log_probs is not None:
            count = output.label_mask.sum()
            loss = -log_probs.detach().float().sum()
        elif loss is not None:
            items = kwargs.get("num_items_in_batch")
            loss = loss.detach() if count is None else loss.detach() * (count if items is None else items)
        inputs = {name: kwargs.get(name) for name in ("input_ids", "attention_mask", "position_ids")}
        self.forwards.append(Forward(self._batch, inputs, loss, count))

    def _norm_of_witnesses(self, norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of the witnesses' gradients before clipping and after; 0 where there is nothing to tell."""
        if not self._before:
            return torch.zeros_like(norm), torch.zeros_like(norm)
        after = [
            torch.linalg.vector_norm(witness.grad)
            for number, witness in enumerate(self._witnesses)
            if number in self._before and witness.grad is not None
        ]
        return _total(list(self._before.values()), norm), _total(after, norm)

    def _by_batch(self, values: Any) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Return the mean loss and the number of labels of each micro-batch."""
        losses: dict[int, float] = {}
        labels: dict[int, int] = {}
        for forward in self.forwards:
            if forward.loss is not None:
                losses[forward.batch] = losses.get(forward.batch, 0.0) + next(values)
            if forward.labels is not None:
                labels[forward.batch] = labels.get(forward.batch, 0) + int(next(values))
        means = tuple(_mean(loss, labels.get(batch, 1)) for batch, loss in losses.items())
        return means, tuple(labels.values())


class _ForwardHook:
    """Tells a probe of forward passes. A copy of it, in a copied or pickled model, tells nobody anything."""

    def __init__(self, probe: StepProbe | None = None) -> None:
        self._probe = (lambda: None) if probe is None else weakref.ref(probe)

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        probe = self._probe()
        if probe is not None:
            try:
                probe.note_forward(module, kwargs, output)
            except Exception:  # it must not come out of the model
                probe.stop_noting()
                logger.warning("losses are not watched, since they cannot be read\n%s", traceback.format_exc())

    def __deepcopy__(self, memo: Any) -> "_ForwardHook":
        return _ForwardHook()

    def __reduce__(self) -> tuple[Any, ...]:
        return _ForwardHook, ()


class _GradientHook:
    """Tells a probe of a gradient that has been added up."""

    def __init__(self, probe: StepProbe, number: int) -> None:
        self._probe = weakref.ref(probe)
        self._number = number

    def __call__(self, parameter: torch.Tensor) -> None:
        probe = self._probe()
        if probe is not None:
            probe.note_gradient(self._number, parameter)


def _mean(loss: float, labels: int) -> float:
    """Return the mean of a summed loss; without labels a finite one is 0, and NaN stays."""
    return loss / labels if labels else loss * 0.0


def _total(norms: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    moved = [norm.to(like.device, torch.float32) for norm in norms]
    return torch.linalg.vector_norm(torch.stack(moved)) if moved else torch.zeros_like(like)


def _to_floats(scalars: list[torch.Tensor]) -> list[float]:
    if not scalars:
        return []
    device = scalars[0].device
    values: list[float] = torch.stack([scalar.to(device, torch.float32).reshape(()) for scalar in scalars]).tolist()
    return values
