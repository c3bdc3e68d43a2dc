import doctest
import pickle
from typing import Any

import pytest
import torch

from deepfabric_trainer.collators import SharedPrefixCollator, ToolCallCollator, shared_prefix, tool_call
from deepfabric_trainer.errors import ConfigError, DataFormatError

EXAMPLES: list[dict[str, Any]] = [
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "regions": [0, 2, 6]},
    {"input_ids": [4, 5], "labels": [-100, 5], "regions": [0, 6]},
]


def test_examples_are_padded_on_the_right() -> None:
    batch = ToolCallCollator(pad_token_id=9)(EXAMPLES)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    torch.testing.assert_close(batch["input_ids"], torch.tensor([[1, 2, 3], [4, 5, 9]]))
    torch.testing.assert_close(batch["attention_mask"], torch.tensor([[1, 1, 1], [1, 1, 0]]))
    torch.testing.assert_close(batch["labels"], torch.tensor([[-100, 2, 3], [-100, 5, -100]]))


def test_the_length_is_rounded_up_and_regions_come_when_asked_for() -> None:
    batch = ToolCallCollator(pad_token_id=9, pad_to_multiple_of=4, return_regions=True)(EXAMPLES)
    assert {tensor.shape for tensor in batch.values()} == {(2, 4)}
    torch.testing.assert_close(batch["regions"], torch.tensor([[0, 2, 6, 0], [0, 6, 0, 0]]))


def test_regions_and_tokens_have_weights_and_what_is_not_trained_weighs_nothing() -> None:
    weights = {3: 5.0, 6: 0.5}
    examples: list[dict[str, Any]] = [
        {"input_ids": [1, 2, 3, 4], "labels": [1, -100, 3, 4], "regions": [2, 3, 3, 6], "weights": [2.0, 2, 2, 1]},
        {"input_ids": [4, 5], "labels": [-100, 5], "regions": [0, 6]},
    ]
    batch = ToolCallCollator(9, pad_to_multiple_of=5, loss_weights=weights)(examples)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "loss_weights"}
    expected = torch.tensor([[2.0, 0, 10, 0.5, 0], [0, 0.5, 0, 0, 0]])
    torch.testing.assert_close(batch["loss_weights"], expected)
    own = ToolCallCollator(9)([{**examples[0], "regions": None}, examples[1]])
    torch.testing.assert_close(own["loss_weights"], torch.tensor([[2.0, 0, 2, 1], [0, 1, 0, 0]]))
    by_region = ToolCallCollator(9, loss_weights=weights)([{**examples[0], "weights": []}, examples[1]])
    torch.testing.assert_close(by_region["loss_weights"], torch.tensor([[1.0, 0, 5, 0.5], [0, 0.5, 0, 0]]))


@pytest.mark.parametrize("more", [{}, {"weights": None}, {"weights": []}])
@pytest.mark.parametrize("collator", [ToolCallCollator(9), SharedPrefixCollator(9)])
def test_without_weights_the_batch_has_none(collator: Any, more: dict[str, Any]) -> None:
    batch = collator([{**example, **more} for example in EXAMPLES])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("collator", [ToolCallCollator, SharedPrefixCollator])
def test_weights_that_cannot_be_used_are_named(collator: Any) -> None:
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"loss_weights\[3\] is"):
            collator(0, loss_weights={3: weight})
    with pytest.raises(DataFormatError, match="example 1 of the batch, `weights`: 1 entries, `input_ids` has 2"):
        collator(0)([EXAMPLES[0], {**EXAMPLES[1], "weights": [1.0]}])
    with pytest.raises(DataFormatError, match="example 0 of the batch, `regions`: missing"):
        collator(0, loss_weights={3: 2.0})([{"input_ids": [1], "labels": [1]}])


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ([], "the batch is empty"),
        ([{"messages": []}], "no `input_ids`"),
        ([{"input_ids": [1]}], "`labels`: missing"),
        ([EXAMPLES[0], {"input_ids": [1, 2], "labels": [1]}], "example 1 of the batch, `labels`: 1 entries"),
    ],
)
def test_what_is_no_example_is_named(examples: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DataFormatError, match=words):
        ToolCallCollator(pad_token_id=0)(examples)


@pytest.mark.parametrize("module", [tool_call, shared_prefix])
def test_the_examples_of_the_docstrings_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 3
    assert result.failed == 0


def test_collators_cross_process_borders() -> None:
    collator = ToolCallCollator(pad_token_id=9, loss_weights={3: 2.0})
    assert pickle.loads(pickle.dumps(collator)) == collator
