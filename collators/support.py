"""In which form a model takes masks of laid-out batches, if it does: asked of its config, then of the model."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from deepfabric_trainer.adapters import has_virtual_tokens
from deepfabric_trainer.collators.masks import LAYER_TYPES, MASKED, MaskForm
from deepfabric_trainer.collators.shared_prefix import SharedPrefixCollator
from deepfabric_trainer.collators.tool_call import ToolCallCollator
from deepfabric_trainer.collators.tree_attention import NAME as PREFIX_TREE
from deepfabric_trainer.collators.tree_attention import tree_attention

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_TOLERANCE_LOW_PRECISION = 5e-2
"""Largest difference of the logits, relative to the largest logit. A mask that is not heeded gives 0.2 and more."""

_WINDOW = 8
"""Tokens: larger windows are made so small for the trial, whose examples are short."""


def find_mask_form(model: Any, *, without_mask: bool = False) -> MaskForm | str:
    """Find how a model is told which token sees which, so that it computes laid-out rows as it does padded ones.

    A small random batch is computed both ways, without gradients; the model's state and the random numbers stay as
    they were.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Not yet wrapped for several processes.
        without_mask (`bool`, *optional*, defaults to `False`): Prefer `"prefix_tree"` for a model with `"sdpa"`; its
            passes then belong inside `tree_attention`.

    Returns:
        `MaskForm` or `str`: The form; or why there is none, in words for the log.
    """
    config = model.config.get_text_config()
    reason = _why_not(model, config)
    if reason is not None:
        return reason
    reasons = []
    for form in _candidates(model, config, without_mask):
        reason = _why_different(model, config, form)
        if reason is None:
            return form
        reasons.append(reason)
    return reasons[-1]


def why_not(model: Any, form: MaskForm) -> str | None:
    """Return why a model does not compute laid-out rows with masks of this form as it does padded ones.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Not yet wrapped for several processes; see `find_mask_form`.
        form (`MaskForm`): That of a collator; `"prefix_tree"` inside `tree_attention`, as a trainer has it.

    Returns:
        `str`, *optional*: The reason, in words for the log; `None` if it does.
    """
    config = model.config.get_text_config()
    window = _window(config)
    if form.sliding_window not in (None, window):
        return f"its layers see {'everything' if window is None else window}, not a window of {form.sliding_window}"
    return _why_not(model, config) or _why_different(model, config, form)


def _why_not(model: Any, config: Any) -> str | None:
    """Return what in a model's config rules laid-out rows out."""
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in (*MASKED, PREFIX_TREE):
        return f"its attention implementation is {implementation!r}, and only {', '.join(MASKED)} take the mask"
    others = set(getattr(config, "layer_types", None) or []) - set(LAYER_TYPES)
    if others:
        return f"it has layers of type {', '.join(sorted(others))}"
    if has_virtual_tokens(model):
        return "its adapter puts virtual tokens before each row"
    return None


def _candidates(model: Any, config: Any, without_mask: bool) -> Iterator[MaskForm]:
    """Go over the forms that a model may take, the best first."""
    implementation = config._attn_implementation
    if without_mask and implementation == "sdpa":
        yield MaskForm(PREFIX_TREE)
    window = _window(config)
    kinds = set(getattr(config, "layer_types", None) or [])
    if window is None or kinds == {"full_attention"}:
        yield MaskForm(implementation, model.dtype)
        return
    # Families with both kinds of layers take a mask for each; Mistral and its kin, with one kind, refuse that.
    yield MaskForm(implementation, model.dtype, window, by_layer_type=True)
    if "full_attention" not in kinds:
        yield MaskForm(implementation, model.dtype, window)


def _window(config: Any) -> int | None:
    """Return how far back layers with a window see; `None` if there are none."""
    window: int | None = getattr(config, "sliding_window", None)
    return window if getattr(config, "use_sliding_window", True) else None


@contextmanager
def _small_window(model: Any, window: int | None) -> Iterator[int | None]:
    """Make a window, wherever the model keeps it, smaller than the examples, so that it counts; yield its size."""
    if window is None or window <= _WINDOW:
        yield window
        return
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    keepers = [
        keeper for keeper in (*model.modules(), *configs.values()) if getattr(keeper, "sliding_window", None) == window
    ]
    try:
        for keeper in keepers:
            keeper.sliding_window = _WINDOW
        yield _WINDOW
    finally:
        for keeper in keepers:
            keeper.sliding_window = window


def _why_different(model: Any, config: Any, form: MaskForm) -> str | None:
    """Return what a model does wrong with a shared batch in this form; `None` when it computes it right."""
    examples = _examples(config.vocab_size)
    try:
        with _small_window(model, _window(config)) as window:
            collator = SharedPrefixCollator(
                0,
                form.attn_implementation,
                form.dtype,
                sliding_window=None if form.sliding_window is None else window,
                by_layer_type=form.by_layer_type,
            )
            with tree_attention(model) if form.attn_implementation == PREFIX_TREE else nullcontext():
                shared = _trained_logits(model, collator(examples))
            padded = _trained_logits(model, ToolCallCollator(0)(examples))
    except Exception as error:  # whatever a model of strangers does with an unusual mask, padding is the answer
        return f"it refuses the mask ({type(error).__name__}: {error})"
    difference = float((shared - padded).abs().max() / padded.abs().max())
    if not difference <= _TOLERANCE.get(model.dtype, _TOLERANCE_LOW_PRECISION):
        return f"its logits differ by {difference:.2g} of the largest between a shared batch and the rows alone"
    return None


def _examples(vocab_size: int) -> list[dict[str, list[int]]]:
    """Return three examples that begin alike, and one of its own.

    The labels only number the trained positions, so that both results can be put in the same order.
    """
    generator = torch.Generator().manual_seed(0)
    trunk, *branches = torch.randint(0, vocab_size, (5, 24), generator=generator).tolist()
    beginnings = [trunk, trunk, trunk, []]
    return [
        {
            "input_ids": beginning + branch[:own],
            "labels": [-100] * (len(beginning) + 1) + list(range(100 * number, 100 * number + own - 1)),
        }
        for number, (beginning, branch, own) in enumerate(zip(beginnings, branches, (24, 9, 16, 21), strict=True))
    ]


@torch.no_grad()
def _trained_logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return the logits that the labels are predicted from, in the order of the labels, [N, V] float32."""
    batch = _to_device(batch, model.device)
    labels = batch.pop("labels")
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        batch["output_router_logits"] = False  # the router's loss, which is not looked at, wants another mask
    training = model.training
    model.eval()
    try:
        logits = model(**batch, use_cache=False).logits.float()[:, :-1]
    finally:
        model.train(training)
    trained = labels[:, 1:] != -100
    order = labels[:, 1:][trained].argsort(stable=True)
    return torch.as_tensor(logits[trained][order])


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _to_device(item, device) for name, item in value.items()}
    return value.to(device) if hasattr(value, "to") else value
