"""What every exported collator must do; a new one cannot escape it."""

import copy
import pickle
from typing import Any

import pytest
import torch

from deepfabric_trainer import collators
from deepfabric_trainer.errors import ConfigError, DataFormatError
from tests.collators.batches import KINDS, make_examples
from tests.collators.models import assert_same_step, make_model

COLLATORS = [getattr(collators, name) for name in collators.__all__]


def weighted(kind: str) -> list[dict[str, Any]]:
    examples = make_examples(kind)
    for number, example in enumerate(examples):
        example["regions"] = [label % 6 + 1 if label != -100 else 0 for label in example["labels"]]
        if number % 2:
            example["weights"] = [0.5] * len(example["labels"])
    return examples


@pytest.mark.parametrize("collator", COLLATORS)
def test_it_trains_what_the_examples_train_alone(collator: Any) -> None:
    model = make_model("llama")
    for kind in KINDS:
        examples = make_examples(kind)
        assert_same_step(model, collator(0)(examples), collators.ToolCallCollator(0)(examples))


@pytest.mark.parametrize("collator", COLLATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_rows_have_the_shape_of_the_input_and_labels_their_weights(collator: Any, kind: str) -> None:
    examples = weighted(kind)
    batch = collator(0, pad_to_multiple_of=8, loss_weights={1: 2.0})(examples)
    rows, length = batch["input_ids"].shape
    assert length % 8 == 0
    for name, tensor in batch.items():
        assert tensor.shape[0] == rows, name
        assert tensor.shape[-1] == length, name
    trained = batch["labels"] != -100
    assert bool((batch["loss_weights"][trained] > 0).all())
    assert not batch["loss_weights"][~trained].any()
    assert torch.equal(batch["input_ids"][trained], batch["labels"][trained])


@pytest.mark.parametrize("collator", COLLATORS)
def test_it_leaves_its_input_alone_crosses_process_borders_and_gives_the_same_again(collator: Any) -> None:
    examples = weighted("two catalogues")
    before = copy.deepcopy(examples)
    first, second = collator(0)(examples), pickle.loads(pickle.dumps(collator(0)))(examples)
    assert examples == before
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("collator", COLLATORS)
def test_what_is_no_batch_is_a_data_error_and_what_is_no_setting_a_config_error(collator: Any) -> None:
    for examples in ([], [{"input_ids": []}], [{"input_ids": [1, 2], "labels": [1]}], [{"messages": []}]):
        with pytest.raises(DataFormatError):
            collator(0)(examples)
    with pytest.raises(ConfigError, match="loss_weights"):
        collator(0, loss_weights={1: -1.0})
