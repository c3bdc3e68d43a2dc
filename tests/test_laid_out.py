"""Every layout of a batch trains the same, on models of every kind, and logs the same."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.collators import PackingCollator, SharedPrefixCollator, ToolCallCollator
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.rows import to_dataset
from tests.collators.models import make_model
from tests.fixtures.tiny import CHECKPOINTING, QUIET, tiny_model, tiny_tokenizer, tool_rows

Run = Callable[..., Any]
LOGGED = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm", "aux_loss")


@pytest.fixture
def make_trainer(tmp_path: Path) -> Run:
    def make(model: Any = None, *, trainer_options: Any = None, **args: Any) -> Any:
        tokenizer = tiny_tokenizer()
        options: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "learning_rate": 1e-3,
            **QUIET,
        }
        return DeepFabricTrainer(
            model=tiny_model(tokenizer) if model is None else model,
            args=DeepFabricSFTConfig(**(options | args)),
            processing_class=tokenizer,
            train_dataset=to_dataset(tool_rows()),
            **(trainer_options or {}),
        )

    return make


def logged(trainer: Any) -> list[dict[str, float]]:
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: entry[name] for name in LOGGED if name in entry} for entry in entries]


def fresh_model(family: str, attention: str, **options: Any) -> Any:
    return make_model(family, attention, vocab_size=len(tiny_tokenizer()), max_position_embeddings=4096, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("gemma3", "sdpa"),
        ("gemma3", "eager"),
        ("mistral, window", "sdpa"),
        ("gpt-oss", "eager"),
        ("mixtral", "sdpa"),
        ("qwen3-moe", "eager"),
    ],
)
def test_layouts_give_one_curve(make_trainer: Run, family: str, attention: str) -> None:
    curves = {}
    for batching, kind in (("padded", ToolCallCollator), ("shared_prefix", SharedPrefixCollator)):
        trainer = make_trainer(fresh_model(family, attention), batching=batching)
        assert isinstance(trainer.data_collator, kind)
        curves[batching] = logged(trainer)
    packed = make_trainer(fresh_model(family, attention), batching="packed")
    assert isinstance(packed.data_collator, PackingCollator)
    curves["packed"] = logged(packed)
    for batching in ("shared_prefix", "packed"):
        for found, expected in zip(curves[batching], curves["padded"], strict=True):
            assert found == pytest.approx(expected, rel=1e-4), batching
    assert ("aux_loss" in curves["padded"][0]) == (family in ("gpt-oss", "mixtral", "qwen3-moe"))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_checkpointing_adapters_and_accumulation_give_one_curve(
    make_trainer: Run, checkpointing: bool, adapted: bool
) -> None:
    curves = []
    for batching in ("padded", "shared_prefix"):
        torch.manual_seed(1)
        adapter = LoraConfig(target_modules="all-linear", r=4) if adapted else None
        trainer = make_trainer(
            batching=batching,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
            **{CHECKPOINTING: checkpointing},
            trainer_options={"peft_config": adapter},
        )
        curves.append(logged(trainer))
    for found, expected in zip(curves[1], curves[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_layouts_give_one_curve_in_bfloat16_on_a_cpu(make_trainer: Run) -> None:
    expected = logged(make_trainer(batching="padded", bf16=True))
    for batching in ("shared_prefix", "packed"):
        for found, entry in zip(logged(make_trainer(batching=batching, bf16=True)), expected, strict=True):
            assert found == pytest.approx(entry, rel=5e-3, abs=1e-3)


@pytest.mark.slow
def test_what_is_computed_is_counted_beside_what_is_trained_on(make_trainer: Run) -> None:
    counts = {}
    for batching in ("padded", "packed", "shared_prefix"):
        trainer = make_trainer(batching=batching)
        trainer.train()
        entry = [entry for entry in trainer.state.log_history if "num_tokens" in entry][-1]
        counts[batching] = (entry["num_tokens"], entry["num_computed_tokens"])
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    assert counts["padded"] == counts["packed"]
    assert counts["padded"][0] == counts["padded"][1]
    assert sum(lengths) < counts["padded"][0] < 2 * sum(lengths), "one epoch and a half"
    assert counts["shared_prefix"][0] == counts["padded"][0]
    assert counts["shared_prefix"][1] < counts["padded"][1] * 2 / 3


@pytest.mark.slow
@pytest.mark.parametrize("counts", ["all", "non_padding"])
def test_throughput_counts_the_tokens_of_the_examples(make_trainer: Run, counts: str) -> None:
    trainer = make_trainer(include_num_input_tokens_seen=counts, max_steps=2)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == sum(len(ids) for ids in trainer.train_dataset["input_ids"])


@pytest.mark.parametrize("batching", ["shared_prefix", "packed"])
def test_a_layout_that_the_model_cannot_compute_is_an_error_when_it_is_asked_for(
    make_trainer: Run, batching: str
) -> None:
    adapter = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ConfigError, match="virtual tokens"):
        make_trainer(batching=batching, trainer_options={"peft_config": adapter})


@pytest.mark.parametrize(
    ("collator", "words"),
    [
        (SharedPrefixCollator(0, "prefix_tree"), "logits differ"),
        (PackingCollator(0), "logits differ"),
        (SharedPrefixCollator(0, "eager", sliding_window=60), "not a window of 60"),
    ],
)
def test_a_users_collator_that_the_model_does_not_heed_is_an_error(
    make_trainer: Run, collator: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_trainer(fresh_model("llama", "eager"), trainer_options={"data_collator": collator})


def test_noise_that_depends_on_the_length_of_rows_is_that_of_padded_rows(
    make_trainer: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer = make_trainer(neftune_noise_alpha=5.0)
    assert isinstance(trainer.data_collator, ToolCallCollator)
    assert "`neftune_noise_alpha`" in caplog.text


def test_otherwise_batches_are_padded_and_the_log_says_why_once(
    make_trainer: Run, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer = make_trainer(trainer_options={"peft_config": adapter})
    assert isinstance(trainer.data_collator, ToolCallCollator)
    assert len([message for message in caplog.messages if "virtual tokens" in message]) == 1


def test_the_model_attends_as_before_outside_of_a_step(make_trainer: Run) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert trainer.model.config._attn_implementation == "sdpa"
    assert not trainer.model.model._forward_pre_hooks
    assert not trainer.model.model._forward_hooks


@pytest.mark.parametrize(
    "options",
    [
        {"batching": "packed", "packing": True, "max_length": 500},
        {"max_tokens_per_batch": 100, "padding_free": True},
        {"max_tokens_per_batch": 0},
        {"batching": "stacked"},
        {"preparation": "later"},
        {"preparation": "lazy", "packing": True, "max_length": 500},
    ],
)
def test_settings_that_cannot_work_together_are_config_errors(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        DeepFabricSFTConfig(str(tmp_path), use_cpu=True, **options)
