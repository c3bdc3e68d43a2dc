import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from deepfabric_trainer import generate
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.generate import generate_with_shared_prefix, generation_mode

PREFIX = [(7 * index) % 250 for index in range(60)]
PROMPTS = [
    PREFIX + own
    for own in ([5], list(range(30)), [9, 9], [200, 3, 17, 4], list(range(100, 140)), [1, 2, 3, 4, 5, 6, 7], [8])
]
OPTIONS: dict[str, Any] = {"max_new_tokens": 24, "stop_token_ids": [3, 77, 150], "pad_token_id": 256, "batch_size": 3}


@torch.no_grad()
def greedy(model: Any, prompt: list[int], max_new_tokens: int, stops: list[int]) -> list[int]:
    """The plainest greedy loop: no cache, no batch, no padding."""
    ids, new = list(prompt), []
    while len(new) < max_new_tokens and (not new or new[-1] not in stops):
        new.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        ids.append(new[-1])
    return new


def expected(model: Any, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    return [greedy(model, prompt, OPTIONS["max_new_tokens"], OPTIONS["stop_token_ids"]) for prompt in prompts]


class CountTokens:
    """Counts the positions that a model computes."""

    def __init__(self, model: Any) -> None:
        self.total = 0
        model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self.total += output.shape[0] * output.shape[1]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_row_by_row(make_tiny_model, family, attention):
    model = make_tiny_model(family=family)
    model.set_attn_implementation(attention)
    endless = [greedy(model, prompt, 24, []) for prompt in PROMPTS]
    stops = [endless[0][5], endless[3][9]]
    rows = [greedy(model, prompt, 24, stops) for prompt in PROMPTS]
    assert len({len(row) for row in rows}) > 1, "some rows must stop early for this test to say something"
    assert generate_with_shared_prefix(model, PROMPTS, **OPTIONS | {"stop_token_ids": stops}) == rows


def test_the_prefix_is_computed_once(tiny_model):
    counter = CountTokens(tiny_model)
    generate_with_shared_prefix(tiny_model, PROMPTS, **OPTIONS | {"max_new_tokens": 1})
    longest = sorted((len(prompt) - len(PREFIX) for prompt in PROMPTS), reverse=True)
    assert counter.total == len(PREFIX) + 3 * longest[0] + 3 * longest[3] + longest[6]


def test_prompts_that_share_nothing(tiny_model):
    prompts = [[index, *prompt] for index, prompt in enumerate(PROMPTS)]
    assert generate_with_shared_prefix(tiny_model, prompts, **OPTIONS) == expected(tiny_model, prompts)


def test_equal_prompts_and_a_prompt_that_is_the_prefix(tiny_model):
    prompts = [PREFIX, PREFIX, PROMPTS[1]]
    assert generate_with_shared_prefix(tiny_model, prompts, **OPTIONS) == expected(tiny_model, prompts)


def test_one_prompt_and_none(tiny_model):
    assert generate_with_shared_prefix(tiny_model, PROMPTS[:1], **OPTIONS) == expected(tiny_model, PROMPTS[:1])
    assert generate_with_shared_prefix(tiny_model, [], **OPTIONS) == []


def test_empty_prompt(tiny_model):
    with pytest.raises(DataFormatError, match=r"prompts\[1\]"):
        generate_with_shared_prefix(tiny_model, [[1], []], **OPTIONS)


def test_no_stop_tokens(tiny_model):
    rows = generate_with_shared_prefix(tiny_model, PROMPTS, **OPTIONS | {"stop_token_ids": []})
    assert [len(row) for row in rows] == [24] * len(PROMPTS)


def test_the_models_own_generation_config_does_not_leak_in(tiny_model):
    rows = expected(tiny_model)
    tiny_model.generation_config.update(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, num_beams=3, min_new_tokens=20, use_cache=False
    )
    assert generate_with_shared_prefix(tiny_model, PROMPTS, **OPTIONS) == rows
    assert tiny_model.generation_config.repetition_penalty == 9.0


def small(config_class: Any, **options: Any) -> Any:
    return config_class(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=256,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
        **options,
    )


@pytest.mark.parametrize(
    ("config_class", "model_class", "options"),
    [
        (MistralConfig, MistralForCausalLM, {"sliding_window": 16}),
        (Gemma2Config, Gemma2ForCausalLM, {"sliding_window": 16, "head_dim": 8}),
    ],
)
def test_sliding_windows_fall_back_and_say_so_once(caplog, config_class, model_class, options):
    generate._warn_once.cache_clear()
    torch.manual_seed(0)
    model = model_class(small(config_class, **options)).eval()
    with caplog.at_level(logging.WARNING, logger="deepfabric_trainer"):
        for _ in range(2):
            assert generate_with_shared_prefix(model, PROMPTS, **OPTIONS) == expected(model)
    assert [record.message for record in caplog.records if "plain padded batches" in record.message] == [
        f"{model_class.__name__} does not keep all past tokens in its cache (sliding windows or recurrent layers): "
        "its prompts are generated in plain padded batches"
    ]


def randomized(model: Any) -> Any:
    """Give the adapter weights that change what the model says."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_lora(tiny_model):
    without = expected(tiny_model)
    model = randomized(
        get_peft_model(tiny_model, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    )
    rows = expected(model)
    assert rows != without
    counter = CountTokens(model)
    firsts = generate_with_shared_prefix(model, PROMPTS, **OPTIONS | {"max_new_tokens": 1})
    assert firsts == [row[:1] for row in rows]
    assert counter.total < sum(map(len, PROMPTS)) / 2
    assert generate_with_shared_prefix(model, PROMPTS, **OPTIONS) == rows


def test_prefix_tuning_falls_back(tiny_model, caplog):
    generate._warn_once.cache_clear()
    model = randomized(get_peft_model(tiny_model, PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")))
    together = generate_with_shared_prefix(model, PROMPTS, **OPTIONS)
    alone = [generate_with_shared_prefix(model, [prompt], **OPTIONS)[0] for prompt in PROMPTS]
    assert together == alone
    assert "prompt-learning adapter" in caplog.text


class TestGenerationMode:
    @pytest.fixture
    def training_model(self, tiny_model):
        tiny_model.train()
        tiny_model.lm_head.eval()
        tiny_model.config.use_cache = False
        tiny_model.activation_checkpointing_enable({"use_reentrant": False})
        return tiny_model

    @staticmethod
    def snapshot(model: Any) -> Any:
        return (
            [
                (name, module.training, getattr(module, "gradient_checkpointing", None))
                for name, module in model.named_modules()
            ],
            model.config.to_dict(),
            id(model.generation_config),
            model.generation_config.to_dict(),
            torch.get_rng_state().tolist(),
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        )

    def test_inside(self, training_model):
        with generation_mode(training_model) as model:
            assert model is training_model
            assert not any(module.training for module in model.modules())
            assert not model.is_activation_checkpointing
            assert model.config.use_cache
        assert training_model.is_activation_checkpointing

    def test_training_model_generates_the_same(self, training_model):
        rows = expected(training_model)
        before = self.snapshot(training_model)
        assert generate_with_shared_prefix(training_model, PROMPTS, **OPTIONS) == rows
        assert self.snapshot(training_model) == before

    def test_restores_after_a_failure(self, training_model):
        before = self.snapshot(training_model)
        with pytest.raises(ZeroDivisionError), generation_mode(training_model):
            torch.rand(3) / (1 // 0)
        assert self.snapshot(training_model) == before

    def test_unwraps(self, tiny_model):
        with generation_mode(torch.nn.DataParallel(tiny_model)) as model:
            assert model is tiny_model

    def test_gradients_still_flow_afterwards(self, training_model):
        generate_with_shared_prefix(training_model, PROMPTS, **OPTIONS)
        ids = torch.tensor([PREFIX])
        training_model(ids, labels=ids).loss.backward()
        assert all(parameter.grad is not None for parameter in training_model.parameters())
