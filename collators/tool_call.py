"""`ToolCallCollator`: encoded examples, padded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deepfabric_trainer.collators.padding import IGNORED, pad_rows
from deepfabric_trainer.collators.weights import check_loss_weights, pad_weights, weights_of_tokens
from deepfabric_trainer.errors import DataFormatError


@dataclass
class ToolCallCollator:
    """Pads encoded examples on the right; every row is one example.

    Args:
        pad_token_id (`int`): The id to pad `input_ids` with.
        pad_to_multiple_of (`int`, *optional*): Round T up to this multiple (tokens).
        return_regions (`bool`, *optional*, defaults to `False`): Also give `regions`. Models do not take them: whoever
            asks for them takes them out of the batch before the forward pass.
        loss_weights (`Mapping[int, float]`, *optional*): The weight of each [`Region`] in the loss; those not named
            weigh 1. With it, or with examples that have `weights`, the batch holds `loss_weights`, for whoever takes
            them out of it: [`DeepFabricTrainer`] does.

    Raises:
        ConfigError: For a weight that is negative or not finite.

    Example:
    ```python
    >>> from deepfabric_trainer.collators import ToolCallCollator

    >>> collator = ToolCallCollator(pad_token_id=0)
    >>> examples = [
    ...     {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "regions": [0, 2, 6]},
    ...     {"input_ids": [4, 5], "labels": [-100, 5], "regions": [0, 6]},
    ... ]
    >>> collator(examples)
    {'input_ids': tensor([[1, 2, 3],
            [4, 5, 0]]), 'attention_mask': tensor([[1, 1, 1],
            [1, 1, 0]]), 'labels': tensor([[-100,    2,    3],
            [-100,    5, -100]])}

    >>> ToolCallCollator(pad_token_id=0, pad_to_multiple_of=4, return_regions=True)(examples)["regions"]
    tensor([[0, 2, 6, 0],
            [0, 6, 0, 0]])

    >>> ToolCallCollator(pad_token_id=0, loss_weights={6: 0.5})(examples)["loss_weights"]
    tensor([[0.0000, 1.0000, 0.5000],
            [0.0000, 0.5000, 0.0000]])

    ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_regions: bool = False
    loss_weights: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        check_loss_weights(self.loss_weights)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad the examples of a batch.

        Args:
            examples (`Sequence[Mapping[str, list[int]]]`): B examples, each with `input_ids` and `labels` of length
                T_i, `regions` when they are asked for or weighed, and perhaps `weights`.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `attention_mask` and `labels`, and `regions` when asked for, each
            [B, T] int64; with weights also `loss_weights`, [B, T] float32, aligned to `labels` and 0 where they are
            -100.

        Raises:
            DataFormatError: If the batch is empty, a key is missing, or the lengths of an example differ.
        """
        needs_regions = self.return_regions or bool(self.loss_weights)
        check_examples(examples, ("labels", "regions") if needs_regions else ("labels",))
        multiple = self.pad_to_multiple_of
        batch = {
            "input_ids": pad_rows([example["input_ids"] for example in examples], self.pad_token_id, multiple),
            "attention_mask": pad_rows([[1] * len(example["input_ids"]) for example in examples], 0, multiple),
            "labels": pad_rows([example["labels"] for example in examples], IGNORED, multiple),
        }
        if self.return_regions:
            batch["regions"] = pad_rows([example["regions"] for example in examples], 0, multiple)
        weights = weights_of_tokens(examples, self.loss_weights)
        if weights is not None:
            batch["loss_weights"] = pad_weights(weights, batch["labels"], multiple)
        return batch


def check_examples(examples: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Require `input_ids` that are not empty, the keys with as many entries, and `weights` likewise if there are any.

    Raises:
        DataFormatError: If they are not there; it names the example and the key.
    """
    if not examples:
        raise DataFormatError("the batch is empty", expected="at least one example")
    for number, example in enumerate(examples):
        if not len(example.get("input_ids", ())):
            raise DataFormatError(
                f"the example has no `input_ids`, only {sorted(example)}",
                expected="encoded examples",
                fix="prepare the rows with `prepare_dataset`, or give them to `DeepFabricTrainer` as they are",
                where=f"example {number} of the batch",
            )
        weighed = example.get("weights") is not None and len(example["weights"])
        for key in (*keys, "weights") if weighed else keys:
            if key not in example or len(example[key]) != len(example["input_ids"]):
                found = f"{len(example[key])} entries" if key in example else "missing"
                raise DataFormatError(
                    f"{found}, `input_ids` has {len(example['input_ids'])}",
                    expected="one entry a token",
                    where=f"example {number} of the batch",
                    path=key,
                )
