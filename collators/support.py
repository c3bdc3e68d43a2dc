"""Whether a model computes a shared batch as it computes the rows alone: asked of its config, then of the model."""

from typing import Any

import torch

from deepfabric_trainer.collators.shared_prefix import SharedPrefixCollator
from deepfabric_trainer.collators.tool_call import ToolCallCollator

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_TOLERANCE_LOW_PRECISION = 5e-2
"""Largest difference of the logits, relative to the largest logit. A mask that is not heeded gives 0.2 and more."""


def why_not_shared(model: Any) -> str | None:
    """Return why a model cannot share prefixes, in words for the log; `None` when it can.

    A small random batch is computed both ways, without gradients; the model's state and the random numbers stay as
    they were.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Not yet wrapped for several processes.
    """
    config = model.config.get_text_config()
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in ("sdpa", "eager"):
        return f"its attention implementation is {implementation!r}, and only sdpa and eager take the mask"
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention"}:
        return f"it has layers of type {', '.join(sorted(kinds - {'full_attention'}))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True) and not kinds:
        return "its attention has a sliding window"
    if getattr(config, "output_router_logits", False):
        return "its router's auxiliary loss counts every token of the batch"
    try:
        difference = _difference(model, config.vocab_size, implementation)
    except Exception as error:  # whatever a model of strangers does with an unusual mask, padding is the answer
        return f"it refuses the mask ({type(error).__name__}: {error})"
    tolerance = _TOLERANCE.get(model.dtype, _TOLERANCE_LOW_PRECISION)
    if not difference <= tolerance:
        return f"its logits differ by {difference:.2g} of the largest between a shared batch and the rows alone"
    return None


@torch.no_grad()
def _difference(model: Any, vocab_size: int, implementation: str) -> float:
    """Return the largest difference of the logits between a shared batch and the same rows padded, relative."""
    generator = torch.Generator().manual_seed(0)
    trunk, *branches = torch.randint(0, vocab_size, (4, 24), generator=generator).tolist()
    # The labels only number the trained positions, so that both results can be put in the same order.
    examples = [
        {
            "input_ids": trunk + branch[:own],
            "labels": [-100] * (len(trunk) + 1) + list(range(100 * number, 100 * number + own - 1)),
        }
        for number, (branch, own) in enumerate(zip(branches, (24, 9, 16), strict=True))
    ]
    collator = SharedPrefixCollator(0, implementation, mask_dtype=model.dtype)
    training = model.training
    model.eval()
    try:
        shared = _trained_logits(model, collator(examples))
        padded = _trained_logits(model, ToolCallCollator(0)(examples))
    finally:
        model.train(training)
    return float((shared - padded).abs().max() / padded.abs().max())


def _trained_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits that the labels are predicted from, in the order of the labels, [N, V] float32."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits.float()[:, :-1]
    trained = labels[:, 1:] != -100
    order = labels[:, 1:][trained].argsort(stable=True)
    return torch.as_tensor(logits[trained][order])
