import torch

from deepfabric_trainer.collators import SharedPrefixCollator
from deepfabric_trainer.collators.tree_attention import NAME, tree_attention
from tests.collators.batches import make_examples
from tests.collators.models import make_model


def test_the_model_attends_by_the_tree_inside_only() -> None:
    model, examples = make_model("llama"), make_examples("one catalogue")
    batch, masked = SharedPrefixCollator(0, NAME)(examples), SharedPrefixCollator(0)(examples)
    assert torch.equal(batch.pop("labels"), masked.pop("labels")), "one tree is one row, with a mask or without"
    with torch.no_grad():
        expected = model(**masked, use_cache=False).logits
        with tree_attention(model):
            assert model.config._attn_implementation == NAME
            inside = model(**batch, use_cache=False).logits
        assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(inside, expected)


def test_the_models_attention_is_restored_when_a_step_fails() -> None:
    model = make_model("gemma3")
    try:
        with tree_attention(model):
            raise RuntimeError("a step that fails")
    except RuntimeError:
        pass
    assert model.config._attn_implementation == "sdpa"


def test_models_with_other_attention_are_left_alone() -> None:
    model = make_model("llama", "eager")
    with tree_attention(model):
        assert model.config._attn_implementation == "eager"


def test_without_a_tree_it_is_sdpa_also_in_generation() -> None:
    model = make_model("qwen3")
    prompts = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    options = {"attention_mask": (prompts != 0).long(), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompts, **options)
    with tree_attention(model):
        assert torch.equal(model.generate(prompts, **options), expected)


def test_padding_attends_to_nothing_and_no_number_is_lost() -> None:
    model = make_model("llama")
    batch = SharedPrefixCollator(0, NAME, max_tokens=60, pad_to_multiple_of=32)(make_examples("some alone"))
    batch.pop("labels")
    with tree_attention(model):
        assert model(**batch, use_cache=False).logits.isfinite().all()
