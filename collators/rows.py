"""What the collators that lay out rows have in common: from trees of examples to the tensors of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from deepfabric_trainer.collators.layout import PrefixTree, Row, fill_rows
from deepfabric_trainer.collators.masks import MaskForm
from deepfabric_trainer.collators.padding import IGNORED, pad_rows
from deepfabric_trainer.collators.prefix_tree import Segment, cut_trees
from deepfabric_trainer.collators.tool_call import check_examples
from deepfabric_trainer.collators.weights import pad_weights, weights_of_tokens
from deepfabric_trainer.errors import ConfigError


def check_row_length(value: int | None, name: str) -> None:
    """Require a positive number of tokens, or none.

    Raises:
        ConfigError: If it is not.
    """
    if value is not None and value < 1:
        raise ConfigError(f"{name} is {value}", expected="a positive number of tokens, or None")


@dataclass(frozen=True)
class Examples:
    """What the examples of a batch give, a list each.

    Args:
        ids (`list[list[int]]`): Their tokens.
        labels (`list[list[int]]`): Their labels.
        weights (`list[list[float]]`, *optional*): What their tokens weigh in the loss, if they are weighed.
        regions (`list[list[int]]`, *optional*): Their regions, if these are asked for.
    """

    ids: list[list[int]]
    labels: list[list[int]]
    weights: list[list[float]] | None
    regions: list[list[int]] | None


def read_examples(
    examples: Sequence[Mapping[str, Any]], loss_weights: Mapping[int, float] | None, *, return_regions: bool
) -> Examples:
    """Read the examples of a batch.

    Raises:
        DataFormatError: If the batch is empty, or an example is not encoded.
    """
    check_examples(examples, ("labels", "regions") if loss_weights or return_regions else ("labels",))
    return Examples(
        ids=[list(example["input_ids"]) for example in examples],
        labels=[list(example["labels"]) for example in examples],
        weights=weights_of_tokens(examples, loss_weights),
        regions=[list(example["regions"]) for example in examples] if return_regions else None,
    )


def rows_of(
    roots: Sequence[Segment], examples: Examples, *, row_length: int | None, max_tokens: int | None
) -> list[Row]:
    """Put trees into rows.

    Args:
        roots (`Sequence[Segment]`): The trees.
        examples (`Examples`): Those of the batch.
        row_length (`int`, *optional*): How many tokens are put into a row, at most; `None`: all.
        max_tokens (`int`, *optional*): The same, and trees with more of them are cut into several.
    """
    if max_tokens is not None:
        roots = cut_trees(roots, max_tokens)
    limits = [limit for limit in (row_length, max_tokens) if limit is not None]
    capacity = min(limits, default=sum(root.tokens() for root in roots))
    return [Row(trees, examples.ids, examples.labels) for trees in fill_rows(roots, capacity)]


class RowOptions(Protocol):
    """What the collators that lay out rows are told alike."""

    pad_token_id: int
    pad_to_multiple_of: int | None
    return_num_tokens: bool
    return_tree: bool

    @property
    def mask_form(self) -> MaskForm:
        """What the model wants to be told of which token sees which."""


def lay_out(rows: Sequence[Row], examples: Examples, options: RowOptions) -> dict[str, Any]:
    """Return the batch of these rows.

    Args:
        rows (`Sequence[Row]`): R rows.
        examples (`Examples`): Those of the batch.
        options (`RowOptions`): The collator.

    Returns:
        `dict[str, Any]`: `input_ids`, `labels`, `position_ids` [R, T] int64, and `attention_mask`; `loss_weights`
        [R, T] float32 and `regions` [R, T] int64 if the examples have them; `prefix_tree` where it is asked for, or
        takes the place of the mask; the counts of tokens where they are asked for.
    """
    multiple, form = options.pad_to_multiple_of, options.mask_form
    positions = pad_rows([row.positions for row in rows], 0, multiple)
    tree = PrefixTree(tuple(tuple(row.placed) for row in rows))
    batch: dict[str, Any] = {
        "input_ids": pad_rows([row.input_ids for row in rows], options.pad_token_id, multiple),
        "labels": pad_rows([row.labels for row in rows], IGNORED, multiple),
        "position_ids": positions,
        "attention_mask": form.of(tree, positions),
    }
    if options.return_tree or form.attn_implementation == "prefix_tree":
        batch["prefix_tree"] = tree
    if examples.regions is not None:
        regions = [row.lay_out(examples.regions) for row in rows]
        batch["regions"] = pad_rows(regions, 0, multiple)
    if examples.weights is not None:
        weights = [row.lay_out(examples.weights) for row in rows]
        batch["loss_weights"] = pad_weights(weights, batch["labels"], multiple)
    computed = sum(len(row.input_ids) for row in rows)
    return batch | (count_tokens(examples.ids, computed) if options.return_num_tokens else {})


def count_tokens(ids: Sequence[list[int]], computed: int) -> dict[str, torch.Tensor]:
    """Return `num_tokens`, which the examples of a batch have, and `num_computed`, which it holds without padding."""
    return {"num_tokens": torch.tensor(sum(len(row) for row in ids)), "num_computed": torch.tensor(computed)}
