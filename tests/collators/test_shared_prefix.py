import pickle
import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from deepfabric_trainer.collators import SharedPrefixCollator, ToolCallCollator
from deepfabric_trainer.collators.masks import MaskForm
from deepfabric_trainer.collators.support import find_mask_form
from deepfabric_trainer.errors import ConfigError
from tests.collators.batches import KINDS, make_examples
from tests.collators.models import FAMILIES, WITHOUT_SDPA, assert_same_step, make_model, settings
from tests.fixtures.tiny import enable_checkpointing

CELLS = [
    (family, attention)
    for family in FAMILIES
    for attention in ("prefix_tree", "sdpa", "eager")
    if attention == "eager" or family not in WITHOUT_SDPA
]


def find_form(model: Any, attention: str) -> MaskForm:
    form = find_mask_form(model, without_mask=attention == "prefix_tree")
    assert isinstance(form, MaskForm), form
    assert form.attn_implementation == attention
    return form


@pytest.mark.parametrize(("family", "attention"), CELLS)
def test_loss_and_gradients_are_those_of_the_padded_batch(family: str, attention: str) -> None:
    model = make_model(family, "eager" if attention == "eager" else "sdpa")
    form = find_form(model, attention)
    for kind in KINDS:
        examples = make_examples(kind)
        shared, padded = SharedPrefixCollator(0, **settings(form))(examples), ToolCallCollator(0)(examples)
        if kind != "nothing shared":
            assert shared["input_ids"].numel() < padded["input_ids"].numel()
        assert_same_step(model, shared, padded)


@pytest.mark.parametrize("attention", ["prefix_tree", "sdpa", "eager"])
@pytest.mark.parametrize("adapted", [False, True])
def test_gradient_checkpointing_and_adapters_change_nothing(attention: str, adapted: bool) -> None:
    model = make_model("qwen2, window", "eager" if attention == "eager" else "sdpa")
    form = find_form(model, attention)
    if adapted:
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
        model.enable_input_require_grads()
    enable_checkpointing(model)
    model.train()
    examples = make_examples("two catalogues")
    assert_same_step(model, SharedPrefixCollator(0, **settings(form))(examples), ToolCallCollator(0)(examples))


@pytest.mark.parametrize("attention", ["prefix_tree", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_tokens", [50, 70, 100])
def test_trees_that_are_cut_give_the_same_step(kind: str, max_tokens: int, attention: str) -> None:
    model, examples = make_model("llama"), make_examples(kind)
    collator = SharedPrefixCollator(
        0, **settings(find_form(model, attention)), max_tokens=max_tokens, return_num_tokens=True
    )
    shared = collator(examples)
    longest = max(len(example["input_ids"]) for example in examples)
    assert shared["input_ids"].shape[1] <= max(max_tokens, longest)
    assert int(shared.pop("num_computed")) <= int(shared.pop("num_tokens"))
    assert_same_step(model, shared, ToolCallCollator(0)(examples))


def test_three_catalogues_below_one_system_prompt_are_four_trunks_in_one_tree() -> None:
    examples = make_examples("three catalogues below one system prompt")
    batch = SharedPrefixCollator(0, return_tree=True, return_num_tokens=True)(examples)
    (row,) = batch["prefix_tree"].rows
    parents = {segment.parent for segment in row}
    trunks = sorted(segment.length for number, segment in enumerate(row) if number in parents)
    assert trunks == [20, 24, 31, 39], "all but the last common token of each, with which its branches begin"
    assert int(batch["num_computed"]) == sum(segment.length for segment in row)


def test_as_many_labels_are_trained_as_in_the_padded_batch() -> None:
    for kind in KINDS:
        examples = make_examples(kind)
        counts = [
            int((collator(examples)["labels"][:, 1:] != -100).sum())
            for collator in (SharedPrefixCollator(0), ToolCallCollator(0))
        ]
        assert counts[0] == counts[1], kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_label_has_the_weight_that_it_has_in_the_padded_batch(kind: str) -> None:
    examples: list[dict[str, Any]] = make_examples(kind)
    generator = random.Random(kind)
    for example in examples:
        example["regions"] = [generator.randrange(1, 7) if label != -100 else 0 for label in example["labels"]]
    examples[1]["weights"] = [generator.choice([0.5, 2.0, 3.0]) for _ in examples[1]["labels"]]
    found = []
    for collator in (SharedPrefixCollator, ToolCallCollator):
        batch = collator(0, loss_weights={2: 0.0, 3: 5.0, 4: 0.25})(examples)
        labels, weights = batch["labels"], batch["loss_weights"]
        assert weights.dtype == torch.float32
        assert weights.shape == labels.shape
        assert not weights[labels == -100].any()
        trained = labels[:, 1:] != -100
        found.append(sorted(zip(labels[:, 1:][trained].tolist(), weights[:, 1:][trained].tolist(), strict=True)))
    assert found[0] == found[1]
    assert len({weight for _, weight in found[0]}) > 3


def test_keys_shapes_and_token_counts() -> None:
    examples = make_examples("one catalogue")
    batch = SharedPrefixCollator(0, return_num_tokens=True)(examples)
    rows, length = batch["input_ids"].shape
    keys = {"input_ids", "labels", "position_ids", "attention_mask", "num_tokens", "num_computed"}
    assert set(batch) == keys
    assert set(SharedPrefixCollator(0, return_num_tokens=True, loss_weights={})(examples)) == keys | {"loss_weights"}
    assert batch["attention_mask"].shape == (rows, 1, length, length)
    assert batch["attention_mask"].dtype == torch.bool
    assert int(batch["num_tokens"]) == sum(len(example["input_ids"]) for example in examples)
    assert int(batch["num_computed"]) == rows * length == int(batch["num_tokens"]) - 3 * 39, (
        "all but the last common token"
    )


def test_a_batch_that_shares_nothing_is_padded_like_any_other() -> None:
    examples = make_examples("nothing shared")
    shared, padded = SharedPrefixCollator(0)(examples), ToolCallCollator(0)(examples)
    assert set(shared) == set(padded)
    for name, tensor in padded.items():
        torch.testing.assert_close(shared[name], tensor)


def test_padding_sees_itself_only_so_that_no_softmax_is_empty() -> None:
    batch = SharedPrefixCollator(0)(make_examples("some alone"))
    mask = batch["attention_mask"][:, 0]
    assert mask.any(dim=-1).all()


@pytest.mark.parametrize("options", [{"attn_implementation": "flash_attention_2"}, {"min_shared": 0}])
def test_settings_that_cannot_work_are_config_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        SharedPrefixCollator(0, **options)


def test_collators_cross_process_borders() -> None:
    collator = SharedPrefixCollator(pad_token_id=9)
    assert pickle.loads(pickle.dumps(collator)) == collator
