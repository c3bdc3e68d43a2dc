import pickle
from typing import Any

import pytest
import torch

from deepfabric_trainer.collators import PackingCollator, ToolCallCollator
from deepfabric_trainer.collators.masks import MaskForm
from deepfabric_trainer.collators.support import find_mask_form
from deepfabric_trainer.errors import ConfigError, DataFormatError
from tests.collators.batches import KINDS, make_examples
from tests.collators.models import FAMILIES, WITHOUT_SDPA, assert_same_step, make_model, settings

CELLS = [
    (family, attention)
    for family in FAMILIES
    for attention in ("prefix_tree", "sdpa", "eager")
    if attention == "eager" or family not in WITHOUT_SDPA
]


@pytest.mark.parametrize(("family", "attention"), CELLS)
def test_loss_and_gradients_are_those_of_the_padded_batch(family: str, attention: str) -> None:
    model = make_model(family, "eager" if attention == "eager" else "sdpa")
    form = find_mask_form(model, without_mask=attention == "prefix_tree")
    assert isinstance(form, MaskForm), form
    for kind in ("some alone", "nothing shared", "beginnings of one another"):
        examples = make_examples(kind)
        packed, padded = PackingCollator(0, 120, **settings(form))(examples), ToolCallCollator(0)(examples)
        assert len(packed["input_ids"]) < len(padded["input_ids"])
        assert_same_step(model, packed, padded)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_length", [None, 40, 90, 1000])
def test_rows_hold_whole_examples_and_no_more_than_they_may(kind: str, max_length: int | None) -> None:
    examples = make_examples(kind)
    batch = PackingCollator(0, max_length, return_tree=True, return_num_tokens=True)(examples)
    longest = max(len(example["input_ids"]) for example in examples)
    assert batch["input_ids"].shape[1] <= max(max_length or 0, longest)
    lengths = [segment.length for row in batch["prefix_tree"].rows for segment in row]
    assert sorted(lengths) == sorted(len(example["input_ids"]) for example in examples)
    assert int(batch["num_tokens"]) == int(batch["num_computed"]) == sum(lengths)


def test_weights_go_with_their_labels() -> None:
    examples: list[dict[str, Any]] = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "weights": [1.0, 0.5, 2.0]},
        {"input_ids": [4, 5, 6], "labels": [-100, -100, 6], "weights": []},
    ]
    batch = PackingCollator(0, max_length=6)(examples)
    order = [batch["input_ids"].tolist().index(row) for row in batch["input_ids"].tolist()]
    assert order == [0]
    weights = dict(zip(batch["input_ids"][0].tolist(), batch["loss_weights"][0].tolist(), strict=True))
    assert weights == {1: 0.0, 2: 0.5, 3: 2.0, 4: 0.0, 5: 0.0, 6: 1.0}


def test_keys_and_what_comes_with_options() -> None:
    examples = make_examples("nothing shared")
    keys = {"input_ids", "labels", "position_ids", "attention_mask"}
    assert set(PackingCollator(0)(examples)) == keys
    assert set(PackingCollator(0, return_num_tokens=True, return_tree=True)(examples)) == keys | {
        "num_tokens",
        "num_computed",
        "prefix_tree",
    }
    assert set(PackingCollator(0, attn_implementation="prefix_tree")(examples)) == keys | {"prefix_tree"}
    assert PackingCollator(0, pad_to_multiple_of=64)(examples)["input_ids"].shape[1] == 64


@pytest.mark.parametrize(
    "options", [{"max_length": 0}, {"attn_implementation": "flash_attention_2"}, {"sliding_window": 0}]
)
def test_settings_that_cannot_work_are_config_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        PackingCollator(0, **options)


def test_examples_that_are_not_encoded_are_data_errors() -> None:
    with pytest.raises(DataFormatError, match="no `input_ids`"):
        PackingCollator(0)([{"messages": []}])


def test_collators_cross_process_borders_and_leave_their_input_alone() -> None:
    collator, examples = PackingCollator(9, 40), make_examples("some alone")
    before = pickle.dumps(examples)
    batch = pickle.loads(pickle.dumps(collator))(examples)
    assert torch.equal(batch["input_ids"], collator(examples)["input_ids"])
    assert pickle.dumps(examples) == before
