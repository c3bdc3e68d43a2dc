"""`SharedPrefixCollator`: what the examples of a batch have in common stands once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from deepfabric_trainer.collators.masks import MaskForm
from deepfabric_trainer.collators.prefix_tree import build_forest
from deepfabric_trainer.collators.rows import check_row_length, count_tokens, lay_out, read_examples, rows_of
from deepfabric_trainer.collators.tool_call import ToolCallCollator
from deepfabric_trainer.collators.weights import check_loss_weights
from deepfabric_trainer.errors import ConfigError


@dataclass
class SharedPrefixCollator:
    """Lays out a batch so that common beginnings are computed once, with the same loss and gradients.

    The examples of a batch become trees: a trunk (a tool catalogue, say) with a branch for each example. A token sees
    the tokens of its own example only, and has the position that it has there. A batch whose examples have nothing in
    common is padded like any other.

    Args:
        pad_token_id (`int`): The id to pad `input_ids` with.
        attn_implementation (`str`, *optional*, defaults to `"sdpa"`): The model's attention. `"sdpa"` gets a boolean
            mask; `"eager"` gets an additive one, since it adds whatever it is given; `"flex_attention"` a `BlockMask`
            (on a GPU untested). `"prefix_tree"`, which this library registers with transformers, gets no mask but
            `prefix_tree`, and computes only what is seen. A model that was not loaded with that attention computes
            such batches wrong, and no error says so, except in [`DeepFabricTrainer`].
        mask_dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Of the additive mask.
        sliding_window (`int`, *optional*): How far back layers with a window see (`config.sliding_window`).
        by_layer_type (`bool`, *optional*, defaults to `False`): Give a mask for each type of layer, for models that
            have layers with a window and layers without (Gemma 3, gpt-oss; not Mistral).
        pad_to_multiple_of (`int`, *optional*): Round T up to this multiple (tokens).
        min_shared (`int`, *optional*, defaults to 16): Beginnings shorter than this (tokens) are repeated.
        max_tokens (`int`, *optional*): The longest row, in tokens: a tree that is larger is cut into several, which
            repeat their trunk. An example that is longer has a row of its own.
        return_num_tokens (`bool`, *optional*, defaults to `False`): Also give `num_tokens` and `num_computed`, for
            whoever takes them out of the batch before the forward pass.
        return_tree (`bool`, *optional*, defaults to `False`): Also give `prefix_tree` with a mask, likewise.
        return_regions (`bool`, *optional*, defaults to `False`): Also give `regions`, [R, T] int64, likewise.
        loss_weights (`Mapping[int, float]`, *optional*): The weight of each [`Region`] in the loss; those not named
            weigh 1. With it, or with examples that have `weights`, the batch holds `loss_weights`, for whoever takes
            them out of it: [`DeepFabricTrainer`] does.

    Raises:
        ConfigError: For another attention implementation, which cannot take this mask, a number that makes no sense,
            or a weight that is negative or not finite.

    Example:
    ```python
    >>> from deepfabric_trainer.collators import SharedPrefixCollator

    >>> collator = SharedPrefixCollator(pad_token_id=0, min_shared=2)
    >>> batch = collator([
    ...     {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, -100, -100, 5]},
    ...     {"input_ids": [1, 2, 3, 6, 7], "labels": [-100, -100, -100, -100, 7]},
    ... ])
    >>> batch["input_ids"]
    tensor([[1, 2, 3, 4, 5, 3, 6, 7]])
    >>> batch["position_ids"]
    tensor([[0, 1, 2, 3, 4, 2, 3, 4]])
    >>> batch["labels"]
    tensor([[-100, -100, -100, -100,    5, -100, -100,    7]])
    >>> batch["attention_mask"].int()[0, 0]
    tensor([[1, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0, 1, 0, 0],
            [1, 1, 0, 0, 0, 1, 1, 0],
            [1, 1, 0, 0, 0, 1, 1, 1]], dtype=torch.int32)

    ```
    """

    pad_token_id: int
    attn_implementation: str = "sdpa"
    mask_dtype: torch.dtype = torch.float32
    pad_to_multiple_of: int | None = None
    min_shared: int = 16
    return_num_tokens: bool = False
    loss_weights: Mapping[int, float] | None = None
    sliding_window: int | None = None
    by_layer_type: bool = False
    max_tokens: int | None = None
    return_tree: bool = False
    return_regions: bool = False

    def __post_init__(self) -> None:
        self.mask_form  # noqa: B018 - it checks what it is made of
        if self.min_shared < 1:
            raise ConfigError(f"min_shared is {self.min_shared}", expected="at least 1 token")
        check_row_length(self.max_tokens, "max_tokens")
        check_loss_weights(self.loss_weights)

    @property
    def mask_form(self) -> MaskForm:
        """What the model wants to be told of which token sees which."""
        return MaskForm(self.attn_implementation, self.mask_dtype, self.sliding_window, self.by_layer_type)

    def with_rows_of(self, max_tokens: int) -> "SharedPrefixCollator":
        """Return the same collator for rows of no more than so many tokens."""
        return replace(self, max_tokens=max_tokens)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Lay out the examples of a batch.

        Args:
            examples (`Sequence[Mapping[str, list[int]]]`): B examples with `input_ids` and `labels` of length T_i,
                `regions` when they are weighed or asked for, and perhaps `weights`.

        Returns:
            `dict[str, Any]`: `input_ids`, `labels` and `position_ids` [R, T] int64, and `attention_mask`
            [R, 1, T, T], boolean (or additive, for eager attention; or a dictionary of one for each type of layer);
            with weights also `loss_weights`, [R, T] float32, aligned to `labels` and 0 where they are -100. When
            nothing is shared: what `ToolCallCollator` gives, with `attention_mask` [B, T].

        Raises:
            DataFormatError: If the batch is empty, or an example is not encoded.
        """
        read = read_examples(examples, self.loss_weights, return_regions=self.return_regions)
        roots = build_forest(read.ids, read.labels, self.min_shared)
        without_mask = self.attn_implementation == "prefix_tree"
        if len(roots) == len(examples) and not without_mask:
            padding = ToolCallCollator(
                self.pad_token_id, self.pad_to_multiple_of, self.return_regions, loss_weights=self.loss_weights
            )
            batch: dict[str, Any] = padding(examples)
            return batch | (count_tokens(read.ids, sum(map(len, read.ids))) if self.return_num_tokens else {})
        # A mask grows with the square of a row; without one, a single row has no padding.
        row_length = None if without_mask else max(root.tokens() for root in roots)
        rows = rows_of(roots, read, row_length=row_length, max_tokens=self.max_tokens)
        return lay_out(rows, read, self)
