import pickle
import random
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from deepfabric_trainer.collators import SharedPrefixCollator, ToolCallCollator
from deepfabric_trainer.collators.support import why_not_shared
from deepfabric_trainer.errors import ConfigError

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, Any] = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}


def make_model(family: str, attention: str, **options: Any) -> Any:
    model_class, config_class = FAMILIES[family]
    torch.manual_seed(0)
    return model_class._from_config(config_class(**SIZES, **options), attn_implementation=attention).eval()


def make_examples(kind: str) -> list[dict[str, list[int]]]:
    """Return a batch in which examples begin alike in the way that `kind` says."""
    generator = random.Random(kind)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(1, 97) for _ in range(count)]

    trunk, other = tokens(40), tokens(30)
    contexts = {
        "one catalogue": [trunk] * 4,
        "two catalogues": [trunk, other, trunk, other, trunk],
        "a catalogue in a catalogue": [trunk, trunk + other, trunk, trunk + other],
        "some alone": [trunk, trunk, tokens(35), tokens(5)],
        "nothing shared": [tokens(20), tokens(25), tokens(3)],
    }
    examples = []
    for context in contexts.get(kind, []):
        own = tokens(generator.randrange(2, 12))
        labels = [-100] * (len(context) + 1) + [token if generator.random() < 0.7 else -100 for token in own[1:]]
        examples.append({"input_ids": context + own, "labels": [*labels[:-1], own[-1]]})
    if kind == "beginnings of one another":
        row = trunk + tokens(20)
        cuts = [45, 52, 60, 60]
        examples = [{"input_ids": row[:cut], "labels": [-100] * (cut - 3) + row[cut - 3 : cut]} for cut in cuts]
    return examples


KINDS = [
    "one catalogue",
    "two catalogues",
    "a catalogue in a catalogue",
    "some alone",
    "nothing shared",
    "beginnings of one another",
]


def loss_and_gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_padded_batch(family: str, attention: str, kind: str) -> None:
    model, examples = make_model(family, attention), make_examples(kind)
    shared = SharedPrefixCollator(0, attn_implementation=attention)(examples)
    if kind != "nothing shared":
        assert shared["input_ids"].numel() < ToolCallCollator(0)(examples)["input_ids"].numel()
    loss, gradients = loss_and_gradients(model, shared)
    expected, expected_gradients = loss_and_gradients(model, ToolCallCollator(0)(examples))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-5 * largest, msg=name)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_compute_it_right_are_recognised(family: str, attention: str, dtype: torch.dtype) -> None:
    model = make_model(family, attention).to(dtype).train()
    state = torch.get_rng_state()
    assert why_not_shared(model) is None
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_windows_and_other_layers_are_recognised() -> None:
    mistral = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16))
    gemma = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8))
    assert "sliding window" in str(why_not_shared(mistral))
    assert "sliding_attention" in str(why_not_shared(gemma))


def test_a_model_that_does_not_heed_the_mask_is_recognised() -> None:
    model = make_model("llama", "eager")
    model.config._attn_implementation = "sdpa"  # as a model of strangers might: told one thing, computing another
    for layer in model.model.layers:
        layer.self_attn.config = model.config
    forward = model.forward
    model.forward = lambda attention_mask=None, **inputs: forward(**inputs)
    assert "logits differ" in str(why_not_shared(model))


def test_a_model_that_refuses_the_mask_is_recognised() -> None:
    model = make_model("llama", "sdpa")

    def refuse(**inputs: Any) -> Any:
        raise ValueError("no such mask")

    model.forward = refuse
    assert "refuses the mask (ValueError: no such mask)" in str(why_not_shared(model))
