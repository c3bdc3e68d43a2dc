import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from deepfabric_trainer.collators import SharedPrefixCollator
from deepfabric_trainer.collators.block_mask import PrefixBlockMask
from deepfabric_trainer.collators.layout import PlacedSegment, PrefixTree
from deepfabric_trainer.collators.masks import MaskForm, boolean_mask
from deepfabric_trainer.collators.support import find_mask_form
from deepfabric_trainer.errors import ConfigError
from tests.collators.batches import KINDS, make_examples
from tests.collators.models import make_model, settings

# A trunk of two tokens with branches of one and two, and one token of padding.
TREE = PrefixTree(((PlacedSegment(2, -1), PlacedSegment(1, 0), PlacedSegment(2, 0)),))
POSITIONS = torch.tensor([[0, 1, 2, 2, 3, 0]])
SEES = [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0],
    [1, 1, 0, 1, 0, 0],
    [1, 1, 0, 1, 1, 0],
    [0, 0, 0, 0, 0, 1],
]
SEES_NEAR = [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [0, 1, 1, 0, 0, 0],
    [0, 1, 0, 1, 0, 0],
    [0, 0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0, 1],
]


def test_masks_in_each_form() -> None:
    mask = MaskForm("sdpa").of(TREE, POSITIONS)
    assert isinstance(mask, torch.Tensor)
    assert mask.dtype == torch.bool
    assert mask.int()[0, 0].tolist() == SEES
    additive = MaskForm("eager", torch.bfloat16).of(TREE, POSITIONS)
    assert isinstance(additive, torch.Tensor)
    assert additive.dtype == torch.bfloat16
    assert torch.equal(additive == 0, mask)
    assert additive.min() == torch.finfo(torch.bfloat16).min
    real = MaskForm("prefix_tree").of(TREE, POSITIONS)
    assert isinstance(real, torch.Tensor)
    assert real.int().tolist() == [[[[1, 1, 1, 1, 1, 0]]]]


def test_a_window_goes_by_positions_and_stands_in_the_mask() -> None:
    mask = MaskForm("sdpa", sliding_window=2).of(TREE, POSITIONS)
    assert isinstance(mask, torch.Tensor)
    assert mask.int()[0, 0].tolist() == SEES_NEAR
    both = MaskForm("sdpa", sliding_window=2, by_layer_type=True).of(TREE, POSITIONS)
    assert isinstance(both, dict)
    assert {name: mask.int()[0, 0].tolist() for name, mask in both.items()} == {
        "full_attention": SEES,
        "sliding_attention": SEES_NEAR,
    }


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("kind", KINDS[:-2])
def test_block_masks_say_what_boolean_masks_say(kind: str, window: int | None) -> None:
    options = {"sliding_window": window, "min_shared": 4}
    examples = make_examples("one catalogue" if kind == "nothing shared" else kind)
    batch = SharedPrefixCollator(0, "flex_attention", **options)(examples)
    expected = SharedPrefixCollator(0, "sdpa", **options)(examples)["attention_mask"]
    mask = pickle.loads(pickle.dumps(batch["attention_mask"])).to("cpu")
    assert isinstance(mask, PrefixBlockMask), "with its tensors on the same device"
    rows, length = batch["input_ids"].shape
    torch.manual_seed(0)
    query, key, value = torch.randn(3, rows, 2, length, 16)
    attended = flex_attention(query, key, value, block_mask=mask)
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=expected)
    torch.testing.assert_close(attended, dense)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers run FlexAttention as it is, which takes no compiler."""

    def attend(query: Any, key: Any, value: Any, training: bool = False, **options: Any) -> Any:
        return flex_attention(query, key, value, **options)

    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", attend)


def make_flex_model(family: str, attention: str) -> Any:
    return make_model(family, attention, head_dim=16, num_attention_heads=2)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral, window", "gemma3"])
def test_models_compute_with_block_masks_what_they_compute_with_boolean_ones(family: str) -> None:
    model, expected = (make_flex_model(family, attention) for attention in ("flex_attention", "sdpa"))
    masked = find_mask_form(expected)
    assert isinstance(masked, MaskForm), masked
    form = replace(masked, attn_implementation="flex_attention")
    for kind in ("two catalogues", "three catalogues below one system prompt"):
        examples = make_examples(kind)
        logits = []
        for of_model, form_of_model in ((model, form), (expected, masked)):
            batch = SharedPrefixCollator(0, **settings(form_of_model))(examples)
            batch.pop("labels")
            with torch.no_grad():
                logits.append(of_model(**batch, use_cache=False).logits)
        torch.testing.assert_close(logits[0], logits[1])


@pytest.mark.slow  # transformers compiles the mask of the padded rows
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")
def test_models_with_flex_attention_are_recognised() -> None:
    form = find_mask_form(make_flex_model("mistral, window", "flex_attention"), without_mask=True)
    assert form == MaskForm("flex_attention", sliding_window=9)


def test_a_block_mask_takes_its_tensors_to_the_device() -> None:
    batch = SharedPrefixCollator(0, "flex_attention")(make_examples("one catalogue"))
    moved = batch["attention_mask"].to("meta")
    assert moved.kv_indices.device.type == "meta"
    assert moved.mask_mod.ends.device.type == "meta"


@pytest.mark.parametrize("options", [{"attn_implementation": "flash_attention_2"}, {"sliding_window": 0}])
def test_forms_that_do_not_exist_are_config_errors(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        MaskForm(**options)  # type: ignore[arg-type]


def test_rows_of_a_boolean_mask_are_independent() -> None:
    ends = torch.tensor([[2, 2, 3], [1, 3, 3]])
    mask = boolean_mask(ends, torch.tensor([[0, 1, 0], [0, 0, 1]]))
    assert mask.int()[:, 0].tolist() == [[[1, 0, 0], [1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0], [0, 1, 1]]]
