"""`PackingCollator`: examples behind one another in a row, each of them alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from deepfabric_trainer.collators.masks import MaskForm
from deepfabric_trainer.collators.prefix_tree import lone_examples
from deepfabric_trainer.collators.rows import check_row_length, lay_out, read_examples, rows_of
from deepfabric_trainer.collators.weights import check_loss_weights


@dataclass
class PackingCollator:
    """Packs the examples of a batch into rows with hardly any padding, with the loss and gradients of padded rows.

    No example is cut, and none sees another: a token sees the tokens of its own example only, and has the position
    that it has there. That holds for any attention that takes a mask; FlashAttention is not needed.

    Args:
        pad_token_id (`int`): The id to pad `input_ids` with.
        max_length (`int`, *optional*): The length of a row, in tokens; a longer example has a row of its own. `None`:
            that of the longest example of the batch (with `"prefix_tree"`, which has no mask, that of all together).
        attn_implementation (`str`, *optional*, defaults to `"sdpa"`): See [`SharedPrefixCollator`].
        mask_dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Of the additive mask of `"eager"`.
        sliding_window (`int`, *optional*): How far back layers with a window see (`config.sliding_window`).
        by_layer_type (`bool`, *optional*, defaults to `False`): Give a mask for each type of layer.
        pad_to_multiple_of (`int`, *optional*): Round T up to this multiple (tokens).
        return_num_tokens (`bool`, *optional*, defaults to `False`): Also give `num_tokens` and `num_computed`, for
            whoever takes them out of the batch before the forward pass.
        return_tree (`bool`, *optional*, defaults to `False`): Also give `prefix_tree` with a mask, likewise.
        return_regions (`bool`, *optional*, defaults to `False`): Also give `regions`, [R, T] int64, likewise.
        loss_weights (`Mapping[int, float]`, *optional*): See [`SharedPrefixCollator`].

    Raises:
        ConfigError: For an attention implementation that cannot take this mask, a number that makes no sense, or a
            weight that is negative or not finite.

    Example:
    ```python
    >>> from deepfabric_trainer.collators import PackingCollator

    >>> batch = PackingCollator(pad_token_id=0, max_length=5)([
    ...     {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
    ...     {"input_ids": [4, 5], "labels": [4, 5]},
    ... ])
    >>> batch["input_ids"]
    tensor([[1, 2, 3, 4, 5]])
    >>> batch["position_ids"]
    tensor([[0, 1, 2, 0, 1]])
    >>> batch["labels"]
    tensor([[-100,    2,    3, -100,    5]])
    >>> batch["attention_mask"].int()[0, 0]
    tensor([[1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [0, 0, 0, 1, 0],
            [0, 0, 0, 1, 1]], dtype=torch.int32)

    ```
    """

    pad_token_id: int
    max_length: int | None = None
    attn_implementation: str = "sdpa"
    mask_dtype: torch.dtype = torch.float32
    sliding_window: int | None = None
    by_layer_type: bool = False
    pad_to_multiple_of: int | None = None
    return_num_tokens: bool = False
    return_tree: bool = False
    return_regions: bool = False
    loss_weights: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        self.mask_form  # noqa: B018 - it checks what it is made of
        check_row_length(self.max_length, "max_length")
        check_loss_weights(self.loss_weights)

    @property
    def mask_form(self) -> MaskForm:
        """What the model wants to be told of which token sees which."""
        return MaskForm(self.attn_implementation, self.mask_dtype, self.sliding_window, self.by_layer_type)

    def with_rows_of(self, max_tokens: int) -> "PackingCollator":
        """Return the same collator for rows of no more than so many tokens."""
        return replace(self, max_length=max_tokens)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pack the examples of a batch.

        Args:
            examples (`Sequence[Mapping[str, list[int]]]`): B examples with `input_ids` and `labels` of length T_i,
                `regions` when they are weighed or asked for, and perhaps `weights`.

        Returns:
            `dict[str, Any]`: `input_ids`, `labels` and `position_ids` [R, T] int64, and `attention_mask`
            [R, 1, T, T], boolean (or additive, for eager attention; or a dictionary of one for each type of layer);
            with weights also `loss_weights`, [R, T] float32, aligned to `labels` and 0 where they are -100.

        Raises:
            DataFormatError: If the batch is empty, or an example is not encoded.
        """
        read = read_examples(examples, self.loss_weights, return_regions=self.return_regions)
        longest = None if self.attn_implementation == "prefix_tree" else max(map(len, read.ids))
        rows = rows_of(lone_examples(read.ids), read, row_length=self.max_length or longest, max_tokens=None)
        return lay_out(rows, read, self)
