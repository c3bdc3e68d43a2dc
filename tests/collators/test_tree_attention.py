from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch

from deepfabric_trainer.collators import SharedPrefixCollator
from deepfabric_trainer.collators.layout import PlacedSegment, PrefixTree, last_seen_by
from deepfabric_trainer.collators.masks import boolean_mask, real_tokens
from deepfabric_trainer.collators.piecewise import attend_piecewise, is_supported
from deepfabric_trainer.collators.tree_attention import NAME, prefix_tree_attention, tree_attention
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


# Trunks in a trunk, a chain whose segments touch, an example of its own, and two tokens of padding.
TREE = PrefixTree(
    (
        (
            *(PlacedSegment(7, -1), PlacedSegment(3, 0), PlacedSegment(2, 1), PlacedSegment(4, 1)),
            *(PlacedSegment(5, 0), PlacedSegment(6, -1)),
        ),
    )
)
LENGTH = 29


def run(attend: Callable[[Any], torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the output for random queries, keys and values of four heads, and their gradients."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 4, LENGTH, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    output = attend(inputs)
    output[:, :, :-2].backward(torch.randn(1, 4, LENGTH - 2, 16, generator=generator).to(dtype))
    return [output[:, :, :-2].detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("piecewise", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_attention_by_the_tree_is_attention_by_the_mask(
    window: int | None, piecewise: bool, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = torch.tensor(
        [[*range(7), *range(7, 10), *range(10, 12), *range(10, 14), *range(7, 12), *range(6), 0, 0]]
    )
    mask = boolean_mask(last_seen_by(TREE, LENGTH), positions, window)
    if not piecewise:
        monkeypatch.setattr("deepfabric_trainer.collators.tree_attention.is_supported", lambda *unused: False)

    def by_tree(inputs: Any) -> torch.Tensor:
        attended, _ = prefix_tree_attention(
            torch.nn.Module(), *inputs, None, prefix_tree=TREE, sliding_window=window, scaling=0.3
        )
        return attended.transpose(1, 2)

    def by_mask(inputs: Any) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.3)

    for found, expected in zip(run(by_tree, dtype), run(by_mask, dtype), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_pieces_are_only_for_kernels_that_there_are() -> None:
    query = torch.zeros(2, 3, 8)
    assert is_supported(query, 0.0)
    assert not is_supported(query, 0.1), "which would be dropped out of the attention otherwise"
    assert not is_supported(query.to("meta"), 0.0)
    spans = [(end - 3, end) for end in accumulate([3])]
    assert attend_piecewise(query, query, query, spans, [[0]], None).shape == (2, 3, 8)


def test_autocast_computes_the_tree_in_the_type_in_which_it_computes_masks() -> None:
    # Rotary positions leave queries and keys in float32, and a linear layer the values in bfloat16.
    query, key, value = (torch.randn(1, 4, LENGTH, 16) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        attended, _ = prefix_tree_attention(
            torch.nn.Module(), query, key, value.bfloat16(), real_tokens(TREE, LENGTH)[:, None, None], prefix_tree=TREE
        )
    assert attended.dtype == torch.bfloat16
    expected, _ = prefix_tree_attention(torch.nn.Module(), query, key, value, None, prefix_tree=TREE)
    torch.testing.assert_close(attended.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "own",
    [
        {"attention_mask": torch.zeros(1, 4, 1, LENGTH)},
        {"attention_mask": torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)},
        {"attention_mask": None, "position_bias": torch.zeros(1, 4, LENGTH, LENGTH)},
        {"attention_mask": None, "softcap": 30.0},
    ],
)
def test_layers_with_scores_of_their_own_are_refused_and_not_ignored(own: dict[str, Any]) -> None:
    tensors = {name: torch.zeros(1, 4, LENGTH, 16) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match="mask of its own"):
        prefix_tree_attention(torch.nn.Module(), **tensors, **own, prefix_tree=TREE)


def test_what_many_branches_give_to_their_trunk_is_not_rounded_branch_by_branch() -> None:
    branches, trunk = 400, 8
    spans = [(0, trunk), *((trunk + number, trunk + number + 1) for number in range(branches))]
    paths = [[0], *([0, number + 1] for number in range(branches))]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, trunk + branches, 8, generator=generator).bfloat16() for _ in range(2)]
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        value = torch.ones(1, trunk + branches, 8, dtype=dtype, requires_grad=True)
        query, key = (tensor.to(dtype) for tensor in tensors)
        attend_piecewise(query, key, value, spans, paths, None).sum().backward()
        assert value.grad is not None
        gradients.append(value.grad[:, :trunk].double())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.01, atol=0.01)
