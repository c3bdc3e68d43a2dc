import logging
import time
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DiffLlamaConfig,
    DogeConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    HrmTextConfig,
    JetMoeConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    OpenAIGPTConfig,
    Qwen3MoeConfig,
    RobertaConfig,
)

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.generate import BatchGenerator, batches, generate_with_shared_prefix, generation_mode
from deepfabric_trainer.generate.plain import generate_plain
from deepfabric_trainer.generate.trial import find_sharing

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
    """Counts the positions that a model computes, but for those of the trial."""

    def __init__(self, model: Any) -> None:
        with generation_mode(model) as ready:
            find_sharing(ready)
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
    own = [len(prompt) - len(PREFIX) - 1 for prompt in PROMPTS]
    # The last token of each gives the answer.
    assert counter.total == len(PREFIX) + sum(own) + len(PROMPTS)


def test_where_rows_are_padded_the_prefix_is_computed_once_too(tiny_model):
    tiny_model.set_attn_implementation("eager")
    counter = CountTokens(tiny_model)
    generate_with_shared_prefix(tiny_model, PROMPTS, **OPTIONS | {"max_new_tokens": 1})
    own = sorted((len(prompt) - len(PREFIX) - 1 for prompt in PROMPTS), reverse=True)
    # Own tokens but for the last are padded to the longest of a batch of 3.
    assert counter.total == len(PREFIX) + 3 * own[0] + 2 * own[3] + len(PROMPTS)


def test_each_of_several_prefixes_is_computed_once(tiny_model):
    """A system prompt, below it two catalogues, below each three conversations, in no order."""
    catalogues = [[*PREFIX, *range(start, start + 80)] for start in (20, 130)]
    prompts = [[*catalogues[number % 2], number, 7] for number in range(6)]
    assert generate_with_shared_prefix(tiny_model, prompts, **OPTIONS) == expected(tiny_model, prompts)
    counter = CountTokens(tiny_model)
    generate_with_shared_prefix(tiny_model, prompts, **OPTIONS | {"max_new_tokens": 1, "batch_size": 4})
    assert counter.total == len(PREFIX) + 2 * 80 + 2 * len(prompts)


def test_rows_that_have_ended_are_not_computed_any_more(tiny_model):
    stops = [30, 55, 139]
    ended = [greedy(tiny_model, prompt, 24, stops) for prompt in PROMPTS[:4]]
    assert [len(row) for row in ended] == [8, 6, 2, 24]
    counter = CountTokens(tiny_model)
    options = OPTIONS | {"stop_token_ids": stops, "batch_size": 4}
    assert generate_with_shared_prefix(tiny_model, PROMPTS[:4], **options) == ended
    own = sum(len(prompt) - len(PREFIX) - 1 for prompt in PROMPTS[:4])
    # Four rows until two have ended, two until one more has, and the last.
    assert counter.total == len(PREFIX) + own + 6 * 4 + 2 * 2 + 16


def test_rows_of_several_beginnings_leave_when_they_have_ended(tiny_model):
    """Beginnings of different lengths, rows in no order, one that shares nothing, one without a token of its own."""
    one, other = PREFIX, [*range(100, 140)]
    prompts = [[*one, 5], [*other, 1, 2], [*one, *range(9)], [77, 3], [*other, 9], [*one, 4], other, [*one, 8, 8, 8]]
    endless = [greedy(tiny_model, prompt, 24, []) for prompt in prompts]
    stops = [endless[1][2], endless[3][1], endless[0][4], endless[7][3]]
    rows = [greedy(tiny_model, prompt, 24, stops) for prompt in prompts]
    assert len({len(row) for row in rows}) > 2, "rows must leave at different times for this test to say something"
    options = OPTIONS | {"stop_token_ids": stops, "batch_size": 8}
    assert generate_with_shared_prefix(tiny_model, prompts, **options) == rows


def test_what_rows_share_is_not_copied_to_them(tiny_model):
    lengths = set()

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["hidden_states"].shape[:2] == (7, 1):
            (layer, *_) = kwargs["past_key_values"].layers
            lengths.add(layer.keys.shape[2])

    find_sharing(tiny_model)
    tiny_model.model.layers[0].self_attn.register_forward_pre_hook(note, with_kwargs=True)
    generate_with_shared_prefix(tiny_model, PROMPTS, **OPTIONS | {"batch_size": 7})
    longest = max(map(len, PROMPTS)) - len(PREFIX)
    assert lengths == {longest - 1 + OPTIONS["max_new_tokens"]}


def test_the_models_attention_is_as_before(tiny_model):
    def fail(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] == 1:
            assert tiny_model.config._attn_implementation != "sdpa"
            raise RuntimeError("out of something")

    find_sharing(tiny_model)
    tiny_model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="out of something"):
        generate_with_shared_prefix(tiny_model, PROMPTS, **OPTIONS)
    assert tiny_model.config._attn_implementation == "sdpa"


def test_a_continuation_that_several_tokens_end(tiny_model):
    endless = [greedy(tiny_model, prompt, 24, []) for prompt in PROMPTS]
    ends = {tuple(endless[0][4:6]), tuple(endless[3][9:11])}

    def has_ended(tokens: Any) -> bool:
        return tuple(tokens[-2:]) in ends

    rows = [row[: next((end for end in range(2, 24) if has_ended(row[:end])), 24)] for row in endless]
    assert len({len(row) for row in rows}) > 1, "some rows must stop early for this test to say something"
    counter = CountTokens(tiny_model)
    options = OPTIONS | {"stop_token_ids": [], "has_ended": has_ended}
    assert generate_with_shared_prefix(tiny_model, PROMPTS, **options) == rows
    assert counter.total < len(PREFIX) + sum(map(len, PROMPTS)) - len(PREFIX) * len(PROMPTS) + 24 * len(PROMPTS)
    plain = {name: value for name, value in options.items() if name != "batch_size"}
    with generation_mode(tiny_model) as ready:
        assert generate_plain(ready, PROMPTS, **plain) == rows


def test_a_generator_goes_on_from_what_it_has_computed(tiny_model):
    """Turn by turn, as conversations are replayed: each prompt begins with the one before."""
    turns = [[*PREFIX, *range(100, 100 + 20 * number)] for number in range(1, 4)]
    options = {name: value for name, value in OPTIONS.items() if name != "batch_size"}
    rows = expected(tiny_model, turns)
    counter = CountTokens(tiny_model)
    generator = BatchGenerator(tiny_model.eval(), turns, **options | {"max_new_tokens": 1})
    assert [generator.generate([turn])[0] for turn in range(3)] == [row[:1] for row in rows]
    assert counter.total == len(turns[-1]) - 1 + 3
    assert not len(generator._pasts)


def test_what_is_forgotten_is_let_go(tiny_model):
    options = {name: value for name, value in OPTIONS.items() if name != "batch_size"}
    generator = BatchGenerator(tiny_model.eval(), PROMPTS[:3], **options)
    generator.generate([0])
    assert generator._pasts
    generator.forget([1, 2])
    assert not generator._pasts


class TestDeadline:
    def test_one_batch_is_always_done(self, tiny_model):
        rows = generate_with_shared_prefix(tiny_model, PROMPTS, **OPTIONS, deadline=0.0)
        assert rows == expected(tiny_model)[:3]

    def test_all_are_done_in_time(self, tiny_model):
        rows = generate_with_shared_prefix(tiny_model, PROMPTS, **OPTIONS, deadline=time.monotonic() + 600)
        assert rows == expected(tiny_model)


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


LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
causal_doge = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="tokens of Doge see those after them where nothing is padded, before transformers 5.18",
)
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def small(config_class: Any, **options: Any) -> Any:
    return config_class(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        pad_token_id=256,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
        **{"num_key_value_heads": 2, **options},
    )


@pytest.mark.parametrize(
    ("config_class", "attention", "options"),
    [
        (MistralConfig, "sdpa", {"sliding_window": 16}),
        (MistralConfig, "eager", {"sliding_window": 16}),
        (Gemma2Config, "eager", {"sliding_window": 16, "head_dim": 8}),
        (Gemma3TextConfig, "sdpa", {"sliding_window": 16, "head_dim": 8}),
        (GptOssConfig, "eager", {"sliding_window": 16, "head_dim": 8, "num_local_experts": 4}),
        (
            Qwen3MoeConfig,
            "sdpa",
            {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "output_router_logits": True},
        ),
        (DeepseekV3Config, "sdpa", LATENT),
        (DiffLlamaConfig, "sdpa", {}),
        pytest.param(DogeConfig, "sdpa", {}, marks=causal_doge),
        (HrmTextConfig, "sdpa", {}),
        (JetMoeConfig, "sdpa", {"num_local_experts": 4, "kv_channels": 8}),
    ],
)
def test_other_families_share_too(config_class, attention, options):
    """A window shorter than the prompts is measured in the tokens of each row, whatever stands beside it.

    What layers do with the keys and values that attention is given, and the router's loss of a run, does not matter.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small(config_class, **options), attn_implementation=attention).eval()
    rows, settings = expected(model), model.config.to_dict()
    counter = CountTokens(model)
    assert generate_with_shared_prefix(model, PROMPTS, **OPTIONS | {"max_new_tokens": 1}) == [row[:1] for row in rows]
    assert counter.total < sum(map(len, PROMPTS)) / 2
    assert generate_with_shared_prefix(model, PROMPTS, **OPTIONS) == rows
    assert model.config.to_dict() == settings


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: small(Lfm2Config, layer_types=["conv", "full_attention"]), "does not keep its past"),
        (
            lambda: small(LlamaConfig, rope_parameters=DYNAMIC),
            "scales its positions",
        ),
        (
            lambda: small(
                Gemma3TextConfig,
                rope_parameters={"full_attention": DYNAMIC, "sliding_attention": DYNAMIC | {"rope_type": "default"}},
            ),
            "scales its positions",
        ),
        (lambda: small(RobertaConfig, is_decoder=True), "gives logits behind a shared past that differ"),
        (lambda: small(OpenAIGPTConfig, n_embd=32, n_layer=2, n_head=4), "cannot go on from a past"),
    ],
)
def test_other_models_fall_back_and_say_so_once(caplog, config, reason):
    batches._warn_once.cache_clear()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config()).eval()
    alone = [generate_with_shared_prefix(model, [prompt], **OPTIONS)[0] for prompt in PROMPTS]
    with caplog.at_level(logging.WARNING, logger="deepfabric_trainer"):
        assert generate_with_shared_prefix(model, PROMPTS, **OPTIONS) == alone
    messages = [record.message for record in caplog.records if "plain batches" in record.message]
    assert len(messages) == 1
    assert reason in messages[0]


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


# PEFT leaves out the positions that `generate` gives it, and says so of prompts that are not padded too.
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize("adapter", [PrefixTuningConfig, PromptTuningConfig])
def test_behind_virtual_tokens_prompts_are_continued_as_alone(tiny_model, caplog, adapter):
    batches._warn_once.cache_clear()
    model = randomized(get_peft_model(tiny_model, adapter(num_virtual_tokens=4, task_type="CAUSAL_LM")))
    assert generate_with_shared_prefix(model, PROMPTS, **OPTIONS) == expected(model)
    assert "prompt-learning adapter" in caplog.text
