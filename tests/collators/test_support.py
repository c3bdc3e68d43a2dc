from typing import Any

import pytest
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model

from deepfabric_trainer.collators import SharedPrefixCollator, ToolCallCollator
from deepfabric_trainer.collators.masks import MaskForm
from deepfabric_trainer.collators.support import find_mask_form
from tests.collators.models import FAMILIES, SIZES, WITHOUT_SDPA, assert_same_step, make_model, settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_compute_it_right_are_recognised(family: str, attention: str, dtype: torch.dtype) -> None:
    if attention == "sdpa" and family in WITHOUT_SDPA:
        pytest.skip("transformers runs this family with eager attention")
    model = make_model(family, attention).to(dtype).train()
    state = torch.get_rng_state()
    form = find_mask_form(model)
    assert isinstance(form, MaskForm), form
    assert (form.attn_implementation, form.dtype) == (attention, dtype)
    assert form.sliding_window == (9 if "window" in family or family in ("gemma2", "gemma3", "gpt-oss") else None)
    assert form.by_layer_type == (form.sliding_window is not None and not family.startswith("mistral"))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_tree_is_preferred_where_it_is_asked_for_and_the_model_stays_as_it_was() -> None:
    model = make_model("gemma3")
    form = find_mask_form(model, without_mask=True)
    assert isinstance(form, MaskForm)
    assert form.attn_implementation == "prefix_tree"
    assert model.config._attn_implementation == "sdpa"
    eager = find_mask_form(make_model("gemma3", "eager"), without_mask=True)
    assert isinstance(eager, MaskForm)
    assert eager.attn_implementation == "eager"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_windows_are_tried_out_also_when_they_are_larger_than_the_trial(attention: str) -> None:
    # PhiMoE has its window in the mask only; its layers do not tell the attention function.
    config = transformers.PhimoeConfig(**SIZES, num_local_experts=2, sliding_window=60)
    torch.manual_seed(0)
    model = transformers.PhimoeForCausalLM._from_config(config, attn_implementation=attention).eval()
    form = find_mask_form(model, without_mask=True)
    assert form == MaskForm(attention, sliding_window=60)
    assert model.config.sliding_window == 60
    examples = [{"input_ids": [*range(1, 81), number, 5], "labels": [-100] * 81 + [5]} for number in (82, 83)]
    assert_same_step(model, SharedPrefixCollator(0, **settings(form))(examples), ToolCallCollator(0)(examples))


@pytest.mark.parametrize("family", ["mistral, window", "gemma3", "qwen2, window"])
def test_windows_are_as_they_were_after_the_trial(family: str) -> None:
    model = make_model(family, sliding_window=60)
    form = find_mask_form(model, without_mask=True)
    assert isinstance(form, MaskForm)
    assert form.attn_implementation == "prefix_tree"
    kept = {module.sliding_window for module in model.modules() if getattr(module, "sliding_window", None)}
    assert kept | {model.config.sliding_window} == {60}


def recurrent(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=97, hidden_size=32, num_hidden_layers=2, **options)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Mamba", {"state_size": 4}),
        ("Bloom", {"n_head": 4}),
        (
            "Qwen3Next",
            {
                "layer_types": ["linear_attention", "full_attention"],
                "intermediate_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "linear_num_value_heads": 2,
                "linear_num_key_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "num_experts": 2,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
            },
        ),
    ],
)
def test_models_that_no_mask_can_keep_apart_are_recognised(name: str, options: dict[str, Any]) -> None:
    reason = find_mask_form(recurrent(name, **options), without_mask=True)
    assert isinstance(reason, str), "positions, states or convolutions that go on from one example to the next"


def test_a_model_that_does_not_heed_the_mask_is_recognised() -> None:
    model = make_model("llama", "eager")
    model.config._attn_implementation = "sdpa"  # as a model of strangers might: told one thing, computing another
    for layer in model.model.layers:
        layer.self_attn.config = model.config
    forward = model.forward
    model.forward = lambda attention_mask=None, prefix_tree=None, **inputs: forward(**inputs)
    for without_mask in (False, True):
        assert "logits differ" in str(find_mask_form(model, without_mask=without_mask))


def test_a_model_that_refuses_the_mask_is_recognised() -> None:
    model = make_model("llama", "sdpa")

    def refuse(**inputs: Any) -> Any:
        raise ValueError("no such mask")

    model.forward = refuse
    assert "refuses the mask (ValueError: no such mask)" in str(find_mask_form(model))


def test_a_model_that_takes_no_tree_gets_a_mask() -> None:
    model = make_model("llama", "sdpa")
    forward = model.forward
    model.forward = lambda input_ids, attention_mask, position_ids=None, use_cache=None: forward(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids
    )
    form = find_mask_form(model, without_mask=True)
    assert isinstance(form, MaskForm)
    assert form.attn_implementation == "sdpa"


def test_a_model_with_an_auxiliary_loss_is_asked_for_its_logits_only() -> None:
    model = make_model("mixtral", output_router_logits=True)
    assert isinstance(find_mask_form(model), MaskForm)


def test_what_a_config_rules_out_is_said_in_words() -> None:
    model = make_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    assert "'flash_attention_2'" in str(find_mask_form(model))
    prompted = get_peft_model(make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert "virtual tokens" in str(find_mask_form(prompted))
