"""`SharedPrefixCollator`: what the examples of a batch have in common stands once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deepfabric_trainer.collators.padding import IGNORED, pad_rows
from deepfabric_trainer.collators.prefix_tree import Segment, build_forest
from deepfabric_trainer.collators.tool_call import ToolCallCollator, check_examples
from deepfabric_trainer.collators.weights import check_loss_weights, pad_weights, weights_of_tokens
from deepfabric_trainer.errors import ConfigError

_IMPLEMENTATIONS = ("sdpa", "eager")


@dataclass
class SharedPrefixCollator:
    """Lays out a batch so that common beginnings are computed once, with the same loss and gradients.

    The examples of a batch become trees: a trunk (a tool catalogue, say) with a branch for each example. A token sees
    the tokens of its own example only, and has the position that it has there. A batch whose examples have nothing in
    common is padded like any other.

    Args:
        pad_token_id (`int`): The id to pad `input_ids` with.
        attn_implementation (`str`, *optional*, defaults to `"sdpa"`): The model's attention. `"sdpa"` gets a boolean
            mask; `"eager"` gets an additive one, since it adds whatever it is given.
        mask_dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Of the additive mask.
        pad_to_multiple_of (`int`, *optional*): Round T up to this multiple (tokens).
        min_shared (`int`, *optional*, defaults to 16): Beginnings shorter than this (tokens) are repeated.
        return_num_tokens (`bool`, *optional*, defaults to `False`): Also give `num_tokens` and `num_computed`, for
            whoever takes them out of the batch before the forward pass.
        loss_weights (`Mapping[int, float]`, *optional*): The weight of each [`Region`] in the loss; those not named
            weigh 1. With it, or with examples that have `weights`, the batch holds `loss_weights`, for whoever takes
            them out of it: [`DeepFabricTrainer`] does.

    Raises:
        ConfigError: For another attention implementation, which cannot take this mask, or a weight that is negative
            or not finite.

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

    def __post_init__(self) -> None:
        if self.attn_implementation not in _IMPLEMENTATIONS:
            raise ConfigError(
                f"attn_implementation is {self.attn_implementation!r}, which takes no mask of this form",
                expected=f"one of {', '.join(_IMPLEMENTATIONS)}",
                fix="load the model with `attn_implementation='sdpa'`, or pad with `ToolCallCollator`",
            )
        if self.min_shared < 1:
            raise ConfigError(f"min_shared is {self.min_shared}", expected="at least 1 token")
        check_loss_weights(self.loss_weights)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Lay out the examples of a batch.

        Args:
            examples (`Sequence[Mapping[str, list[int]]]`): B examples with `input_ids` and `labels` of length T_i,
                `regions` when they are weighed, and perhaps `weights`.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `labels` and `position_ids` [R, T] int64, and `attention_mask`
            [R, 1, T, T], boolean (or additive, for eager attention); with weights also `loss_weights`, [R, T] float32,
            aligned to `labels` and 0 where they are -100. When nothing is shared: what `ToolCallCollator` gives, with
            `attention_mask` [B, T].

        Raises:
            DataFormatError: If the batch is empty, or an example is not encoded.
        """
        check_examples(examples, ("labels", "regions") if self.loss_weights else ("labels",))
        ids = [list(example["input_ids"]) for example in examples]
        labels = [list(example["labels"]) for example in examples]
        roots = build_forest(ids, labels, self.min_shared)
        if len(roots) == len(examples):
            batch = ToolCallCollator(self.pad_token_id, self.pad_to_multiple_of, loss_weights=self.loss_weights)(
                examples
            )
        else:
            batch = self._lay_out(_fill_rows(roots), ids, labels, weights_of_tokens(examples, self.loss_weights))
        if self.return_num_tokens:
            batch["num_tokens"] = torch.tensor(sum(len(row) for row in ids))
            batch["num_computed"] = torch.tensor(sum(root.tokens() for root in roots))
        return batch

    def _lay_out(
        self,
        rows: list[list[Segment]],
        ids: list[list[int]],
        labels: list[list[int]],
        weights: list[list[float]] | None,
    ) -> dict[str, torch.Tensor]:
        laid_out = [_Row(roots, ids, labels) for roots in rows]
        input_ids = pad_rows([row.input_ids for row in laid_out], self.pad_token_id, self.pad_to_multiple_of)
        length = input_ids.shape[1]
        mask = torch.stack([row.attention(length) for row in laid_out])[:, None]
        batch = {
            "input_ids": input_ids,
            "labels": pad_rows([row.labels for row in laid_out], IGNORED, self.pad_to_multiple_of),
            "position_ids": pad_rows([row.positions for row in laid_out], 0, self.pad_to_multiple_of),
            "attention_mask": mask if self.attn_implementation == "sdpa" else _additive(mask, self.mask_dtype),
        }
        if weights is not None:
            rows_of_weights = [row.lay_out(weights) for row in laid_out]
            batch["loss_weights"] = pad_weights(rows_of_weights, batch["labels"], self.pad_to_multiple_of)
        return batch


class _Row:
    """One row of the batch: trees written out from the root down, each segment before what continues it."""

    def __init__(self, roots: Sequence[Segment], ids: list[list[int]], labels: list[list[int]]) -> None:
        self.input_ids: list[int] = []
        self.labels: list[int] = []
        self.positions: list[int] = []
        self._ancestors: list[list[int]] = []
        self._segments: list[Segment] = []
        for root in roots:
            self._write(root, ids, labels, ancestors=[])

    def attention(self, length: int) -> torch.Tensor:
        """Return which token sees which, [length, length] boolean; padding sees itself only."""
        lengths = torch.tensor([segment.end - segment.start for segment in self._segments])
        sees = torch.zeros(len(lengths), len(lengths), dtype=torch.bool)
        for number, ancestors in enumerate(self._ancestors):
            sees[number, [*ancestors, number]] = True
        of_token = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        size = len(of_token)
        mask = torch.eye(length, dtype=torch.bool)
        mask[:size, :size] = sees[of_token][:, of_token].tril_()
        return mask

    def lay_out(self, values: list[list[float]]) -> list[float]:
        """Return the values of the row's tokens, from those of the examples."""
        return [value for part in self._segments for value in values[part.example][part.start : part.end]]

    def _write(self, segment: Segment, ids: list[list[int]], labels: list[list[int]], ancestors: list[int]) -> None:
        number = len(self._segments)
        self._ancestors.append(ancestors)
        self._segments.append(segment)
        begin = len(self.labels)
        self.input_ids += ids[segment.example][segment.start : segment.end]
        self.labels += labels[segment.example][segment.start : segment.end]
        self.positions += range(segment.start, segment.end)
        if segment.start == 0:
            self.labels[begin] = IGNORED  # the first token of an example is predicted from nothing
        for child in segment.children:
            self._write(child, ids, labels, [*ancestors, number])


def _fill_rows(roots: list[Segment]) -> list[list[Segment]]:
    """Put trees into rows no longer than the longest tree, best fit first."""
    longest = max(root.tokens() for root in roots)
    rows: list[tuple[int, list[Segment]]] = []
    for root in sorted(roots, key=Segment.tokens, reverse=True):
        free = [row for row in range(len(rows)) if rows[row][0] + root.tokens() <= longest]
        if free:
            best = max(free, key=lambda row: rows[row][0])
            rows[best] = (rows[best][0] + root.tokens(), [*rows[best][1], root])
        else:
            rows.append((root.tokens(), [root]))
    return [trees for _, trees in rows]


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
