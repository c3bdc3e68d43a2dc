"""Handing laid-out batches to a model under TRL's loss, which wants to count tokens by a two-dimensional mask.

TRL sums `attention_mask` for its number of tokens, and takes the mean of a router's auxiliary loss over it. A mask of
four dimensions, or one for each type of layer, would corrupt the one and break the other. So TRL is shown how many
examples hold each token, which gives both as padded rows do, and the backbone gets the mask itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from deepfabric_trainer.collators.layout import times_held


@contextmanager
def mask_for_backbone(model: Any, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield inputs with which the loss counts tokens right and the backbone sees what it must.

    Args:
        model (`torch.nn.Module`): The model as the trainer holds it, perhaps with adapters, not wrapped.
        inputs (`dict[str, Any]`): A batch; laid out, if it holds `prefix_tree`. It is left as it is.

    Yields:
        `dict[str, Any]`: The batch with an `attention_mask` [R, T] int64; one that is not laid out as it came.
    """
    tree = inputs.get("prefix_tree")
    if tree is None:
        yield inputs
        return
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    shown = {**inputs, "attention_mask": times_held(tree, ids.shape[1]).to(ids.device)}
    if not attends_by_tree(inputs):
        shown.pop("prefix_tree")

    def give_mask(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": mask}

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hook = base.base_model.register_forward_pre_hook(give_mask, with_kwargs=True)
    try:
        yield shown
    finally:
        hook.remove()


def with_tokens_of_examples(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs in which whoever counts tokens finds those of the examples, also where one stands for several.

    Args:
        inputs (`dict[str, Any]`): A batch; laid out, if it holds `prefix_tree`.

    Returns:
        `dict[str, Any]`: `input_ids` and `attention_mask` [N] for N tokens; the batch itself if it is not laid out.
    """
    tree = inputs.get("prefix_tree")
    if tree is None:
        return inputs
    count = int(times_held(tree, inputs["input_ids"].shape[1]).sum())
    tokens = torch.ones(count, dtype=torch.int64, device=inputs["input_ids"].device)
    return {**inputs, "input_ids": tokens, "attention_mask": tokens}


def attends_by_tree(inputs: dict[str, Any]) -> bool:
    """Tell whether the tree itself takes the place of the mask: then the batch's mask is one row high."""
    mask = inputs["attention_mask"]
    return isinstance(mask, torch.Tensor) and mask.shape[-2] == 1
