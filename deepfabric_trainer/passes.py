"""A budget of tokens: larger batches go through the model in several passes, with the gradients of the whole."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import should_reduce_batch_size

from deepfabric_trainer.collators.layout import PrefixTree, unroll
from deepfabric_trainer.collators.packing import PackingCollator
from deepfabric_trainer.collators.shared_prefix import SharedPrefixCollator
from deepfabric_trainer.loss import mean_weight

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


class TokenBudget:
    """How many tokens, with padding, go through the model at a time.

    Args:
        max_tokens (`int`, *optional*): The budget. `None`: whole batches, until one does not fit into memory.
    """

    def __init__(self, max_tokens: int | None) -> None:
        self.max_tokens = max_tokens

    def split(self, batch: Batch, collator: Any) -> list[Batch]:
        """Return the parts of a batch that go through the model one after the other.

        Args:
            batch (`dict[str, Any]`): Of R rows of T tokens.
            collator (`Callable`): What laid it out, if it holds `prefix_tree`.

        Returns:
            `list[dict[str, Any]]`: Each within the budget, or a single example.
        """
        if self.max_tokens is None or batch["input_ids"].numel() <= self.max_tokens:
            return [batch]
        if batch["input_ids"].shape[1] > self.max_tokens and "prefix_tree" in batch:
            batch = lay_out_again(batch, collator, self.max_tokens)
        rows, length = batch["input_ids"].shape
        height = max(1, self.max_tokens // length)
        return [slice_rows(batch, start, min(start + height, rows), collator) for start in range(0, rows, height)]

    def halve(self, batches: Sequence[Batch], collator: Any) -> bool:
        """Halve the budget after memory ran out, and say so.

        Args:
            batches (`Sequence[dict[str, Any]]`): Those of the optimizer step.
            collator (`Callable`): What laid them out.

        Returns:
            `bool`: Whether any pass becomes smaller by it; otherwise single examples do not fit.
        """
        largest = max(_size(part) for batch in batches for part in self.split(batch, collator))
        smaller = TokenBudget(math.ceil(largest / 2))
        if max(_size(part) for batch in batches for part in smaller.split(batch, collator)) >= largest:
            return False
        self.max_tokens = smaller.max_tokens
        logger.warning(
            "out of memory with %d tokens in a pass: this step is done anew, and from here on batches go through the "
            "model in passes of at most %d, with the same gradients (`max_tokens_per_batch=%d` does so at once)",
            largest,
            self.max_tokens,
            self.max_tokens,
        )
        return True


def slice_rows(batch: Batch, start: int, end: int, collator: Any) -> Batch:
    """Return rows `start` to `end` (not included) of a batch, without the padding that none of them needs."""
    rows, length = batch["input_ids"].shape
    tree = batch.get("prefix_tree")
    if tree is not None:
        tree = PrefixTree(tree.rows[start:end])
        needed = max(sum(segment.length for segment in row) for row in tree.rows)
    else:
        needed = _last_real_token(batch.get("attention_mask"), start, end, length)
    multiple = getattr(collator, "pad_to_multiple_of", None) or 1
    needed = min(length, -(-needed // multiple) * multiple)

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: cut(item) for name, item in value.items()}
        if not isinstance(value, torch.Tensor) or value.shape[:1] != (rows,):
            return value
        # The last two dimensions of a mask are queries and keys, the last one of all else is tokens.
        sizes = [slice(needed) if size == length else slice(None) for size in value.shape[1:]]
        return value[(slice(start, end), *sizes)]

    part = {name: cut(value) for name, value in batch.items()}
    if tree is not None:
        part["prefix_tree"] = tree
        if not isinstance(batch["attention_mask"], torch.Tensor | Mapping):  # a `BlockMask` knows its rows by number
            mask = collator.mask_form.of(tree, part["position_ids"].cpu())
            part["attention_mask"] = send_to_device(mask, part["input_ids"].device)
    return part


def _last_real_token(mask: Any, start: int, end: int, length: int) -> int:
    """Return the position behind the last token of these rows that is no padding; `length` where no mask tells."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return length
    seen = mask[start:end].ne(0).any(0).nonzero()
    return int(seen[-1]) + 1 if len(seen) else length


def lay_out_again(batch: Batch, collator: SharedPrefixCollator | PackingCollator, max_tokens: int) -> Batch:
    """Return the examples of a laid-out batch in shorter rows."""
    names = {"input_ids": "input_ids", "labels": "labels", "loss_weights": "weights", "regions": "regions"}
    examples: list[dict[str, Any]] = []
    for row in range(len(batch["prefix_tree"].rows)):
        columns = {
            column: unroll(batch["prefix_tree"], row, batch[name][row].tolist())
            for name, column in names.items()
            if name in batch
        }
        examples += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    # The weights are those of regions and tokens together.
    plain = replace(
        collator,
        loss_weights=None,
        return_num_tokens=False,
        return_tree=True,
        return_regions="regions" in batch,
    )
    laid_out: Batch = send_to_device(plain.with_rows_of(max_tokens)(examples), batch["input_ids"].device)
    return laid_out


def without_labels(batch: Batch) -> Batch:
    """Return a pass that trains nothing, for a process that has fewer passes than another."""
    return {**batch, "labels": torch.full_like(batch["labels"], -100)}


def trained_weight(batch: Batch, device: torch.device) -> torch.Tensor:
    """Return the sum of the weights of a batch's labels; without weights their number."""
    labels: torch.Tensor = batch["labels"]
    return labels[..., 1:].ne(-100).sum().to(device) * mean_weight([batch], device, None)


def fold(values: list[float], passes: int, labels: Sequence[int]) -> None:
    """Put the mean over the labels of the last passes in place of what each of them logged."""
    logged = values[-passes:]
    mean = sum(value * count for value, count in zip(logged, labels, strict=True)) / max(sum(labels), 1)
    values[-passes:] = [mean]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that there is no memory left, on any device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _size(batch: Batch) -> int:
    return int(batch["input_ids"].numel())
