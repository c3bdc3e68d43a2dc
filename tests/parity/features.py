"""What `SFTTrainer` can do, feature by feature: rows, settings, models and arguments of the trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset, DatasetDict
from packaging.version import Version
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, EarlyStoppingCallback, TrainingArguments
from trl import SFTConfig

from tests.collators.models import make_model
from tests.fixtures.tiny import CHECKPOINTING, tiny_model, tiny_tokenizer
from tests.parity.samples import (
    ASKED_CHATS,
    ASSISTED,
    CHATS,
    LABELLED,
    LONG_CHATS,
    MASKED,
    NUMBERED_CHATS,
    QUESTIONS,
    SAID,
    SHAREGPT,
    TEXTS,
    TOKENS,
    UNREAD_CHATS,
)

FEW_PARTS = ["q_proj", "v_proj"]
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}
NLL = {"loss_type": "nll"}
"""Before trl 1.15 "chunked_nll" is the default there, which gives no logits, and counts virtual tokens otherwise."""


def rows(columns: Any) -> Callable[[], Dataset]:
    """Return what makes a dataset of these rows."""
    return partial(Dataset.from_list, columns)


def stream(columns: Any) -> Any:
    """Return a dataset whose rows come one after the other."""
    return Dataset.from_list(columns).to_iterable_dataset()


def llama(tokenizer: Any, folder: Path) -> Any:
    """Return a tiny Llama."""
    return tiny_model(tokenizer)


def saved_llama(tokenizer: Any, folder: Path) -> str:
    """Return the folder of a tiny Llama and its tokenizer."""
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def adapted_llama(tokenizer: Any, folder: Path) -> Any:
    """Return a tiny Llama that already has its adapters."""
    torch.manual_seed(0)
    return get_peft_model(tiny_model(tokenizer), LoraConfig(r=2, target_modules=FEW_PARTS, task_type="CAUSAL_LM"))


def dropping_llama(tokenizer: Any, folder: Path) -> Any:
    """Return a tiny Llama that draws random numbers in each step."""
    model = tiny_model(tokenizer)
    model.config.attention_dropout = 0.3
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return model


def experts(family: str) -> Callable[[Any, Path], Any]:
    """Return what makes a tiny model with a router."""
    return lambda tokenizer, folder: make_model(
        family, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, router_aux_loss_coef=0.1
    )


def lora(**options: Any) -> Callable[[], dict[str, Any]]:
    """Return what makes the arguments of a trainer with adapters."""
    return lambda: {
        "peft_config": LoraConfig(**{"r": 2, "target_modules": FEW_PARTS, "task_type": "CAUSAL_LM", **options})
    }


def mean_of_squares(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """A loss of the user's own."""
    counted = labels[:, 1:].ne(-100)
    return outputs.logits[:, :-1].square().mean(-1)[counted].sum() / num_items_in_batch


def accuracy(prediction: Any) -> dict[str, float]:
    """Metrics of the user's own, from logits."""
    found, labels = prediction.predictions.argmax(-1), prediction.label_ids
    return {"accuracy": float((found == labels)[labels != -100].mean()), "tokens": float((labels != -100).sum())}


def collate_numbers(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate as a user may: with what else stands in the row."""
    shortest = min(len(example["input_ids"]) for example in examples)
    ids = torch.tensor([example["input_ids"][:shortest] for example in examples])
    numbers = torch.tensor([example["number"] for example in examples])
    labels = ids.where(torch.arange(shortest) > numbers[:, None], -100)
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def batch_accuracy(prediction: Any, compute_result: bool) -> dict[str, float]:
    """Metrics of the user's own, of each batch: those of the last one stand."""
    found, labels = prediction.predictions, prediction.label_ids
    return {"right": float((found == labels)[labels != -100].float().sum())} if compute_result else {}


def as_it_is(batch: Any) -> Any:
    """A transform of the user's own."""
    return batch


def virtual_tokens() -> dict[str, Any]:
    """Return the arguments of a trainer that learns tokens before each row."""
    return {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)}


def nothing() -> dict[str, Any]:
    """No arguments of the trainer beyond the usual."""
    return {}


@dataclass(frozen=True)
class Feature:
    """A way to use `SFTTrainer`.

    Args:
        name (`str`): What it is called in the test's name.
        rows (`Callable`): Makes the training rows.
        options (`Mapping[str, Any]`): Settings.
        trainer (`Callable`): Makes further arguments of the trainer.
        model (`Callable`): Makes the model, given the tokenizer and a folder.
        config (`type`): Of the settings.
    """

    name: str
    rows: Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    trainer: Callable[[], dict[str, Any]] = nothing
    model: Callable[[Any, Path], Any] = llama
    config: Any = SFTConfig


ROW_FORMS = [
    Feature("text", rows(TEXTS)),
    Feature("text in another column", rows([{"line": row["text"]} for row in TEXTS]), {"dataset_text_field": "line"}),
    Feature("text cut at its end", rows(TEXTS), {"max_length": 12}),
    Feature("text cut at its beginning", rows(TEXTS), {"max_length": 12, "truncation_mode": "keep_end"}),
    Feature("text, shuffled", rows(TEXTS), {"shuffle_dataset": True}),
    Feature("text as torch tensors", lambda: Dataset.from_list(TEXTS).with_format("torch")),
    Feature("prompt-completion", rows(QUESTIONS)),
    Feature("prompt-completion, all trained", rows(QUESTIONS), {"completion_only_loss": False}),
    Feature("prompt-completion, some prompts too long", rows(QUESTIONS), {"max_length": 36}),
    Feature("prompt-completion of messages", rows(ASKED_CHATS)),
    Feature("prompt-completion of messages, all trained", rows(ASKED_CHATS), {"completion_only_loss": False}),
    Feature("messages", rows(CHATS)),
    Feature("messages, shuffled", rows(CHATS), {"shuffle_dataset": True}),
    Feature("messages cut at their end", rows(CHATS), {"max_length": 70}),
    Feature("messages cut at their beginning", rows(CHATS), {"max_length": 70, "truncation_mode": "keep_end"}),
    Feature("messages without an answer", rows([{"messages": row["messages"][:2]} for row in CHATS])),
    Feature("messages beside a text", rows([{**row, "text": "unread"} for row in CHATS])),
    Feature("messages as torch tensors", lambda: Dataset.from_list(CHATS).with_format("torch")),
    Feature("conversations", rows(SHAREGPT)),
    Feature("conversations that TRL does not read, beside a text", rows(UNREAD_CHATS)),
    Feature("input_ids", rows(TOKENS)),
    Feature("input_ids, labels", rows(LABELLED)),
    Feature("input_ids, completion_mask", rows(MASKED), {"completion_only_loss": True}),
    Feature("input_ids, completion_mask, all trained", rows(MASKED)),
    Feature("input_ids, assistant_masks", rows(ASSISTED)),
    Feature("skip_prepare_dataset", rows(LABELLED), {"dataset_kwargs": {"skip_prepare_dataset": True}}),
    Feature(
        "skip_prepare_dataset, behind a transform",
        lambda: Dataset.from_list(LABELLED).with_transform(as_it_is),
        {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False},
    ),
    Feature("formatting_func", rows(SAID), {}, lambda: {"formatting_func": lambda row: row["said"]}),
    Feature("a stream of texts", partial(stream, TEXTS)),
    Feature("a stream of messages", partial(stream, CHATS)),
    Feature("a stream of messages, cut", partial(stream, CHATS), {"max_length": 70}),
    Feature("a stream of messages, shuffled", partial(stream, CHATS), {"shuffle_dataset": True}),
]

PACKS = {"packing": True, "max_length": 160}
PACKED = [
    *(
        Feature(f"packing {strategy}, {kind}", rows(columns), {**PACKS, "packing_strategy": strategy})
        for strategy in ("bfd", "bfd_split", "wrapped")
        for kind, columns in (
            ("text", TEXTS),
            ("messages", CHATS),
        )
    ),
    *(
        Feature(
            f"packing {strategy}, messages over max_length", rows(LONG_CHATS), {**PACKS, "packing_strategy": strategy}
        )
        for strategy in ("bfd", "bfd_split", "wrapped")
    ),
    Feature("packing, shuffled", rows(CHATS), {**PACKS, "shuffle_dataset": True}),
    Feature("packing a stream of messages, shuffled", partial(stream, CHATS), {**PACKS, "shuffle_dataset": True}),
    Feature(
        "packing all but the evaluation, shuffled",
        rows(CHATS),
        {**PACKS, **EVALUATES, "eval_packing": False, "shuffle_dataset": True},
        lambda: {"eval_dataset": Dataset.from_list(CHATS)},
    ),
    Feature("padding_free, text", rows(TEXTS), {"padding_free": True, "max_length": None}),
    Feature("padding_free, messages", rows(CHATS), {"padding_free": True, "max_length": None}),
    Feature("pad_to_multiple_of", rows(CHATS), {"pad_to_multiple_of": 16}),
    Feature("group_by_length", rows(CHATS), {"train_sampling_strategy": "group_by_length"}),
]

LOSSES = [
    Feature("dft", rows(CHATS), {"loss_type": "dft"}),
    Feature("dft, few trained tokens", rows(QUESTIONS), {"loss_type": "dft"}),
    Feature("label smoothing", rows(CHATS), {**NLL, "label_smoothing_factor": 0.1}),
    Feature("NEFTune", rows(CHATS), {"neftune_noise_alpha": 5.0}),
    Feature("dropout", rows(CHATS), EVALUATES, lambda: {"eval_dataset": Dataset.from_list(CHATS)}, dropping_llama),
    Feature("compute_loss_func", rows(CHATS), NLL, lambda: {"compute_loss_func": mean_of_squares}),
    Feature("gradient accumulation", rows(QUESTIONS), {"gradient_accumulation_steps": 2}),
    Feature("Mixtral's auxiliary loss", rows(CHATS), model=experts("mixtral")),
    Feature("Mixtral's auxiliary loss, few trained tokens", rows(QUESTIONS), model=experts("mixtral")),
    Feature(
        "Qwen3-MoE's auxiliary loss over accumulated steps",
        rows(CHATS),
        {"gradient_accumulation_steps": 2},
        model=experts("qwen3-moe"),
    ),
    Feature("no auxiliary loss", rows(CHATS), {"router_aux_loss_coef": 0.0}, model=experts("qwen3-moe")),
]

MODELS = [
    Feature("LoRA", rows(CHATS), {}, lora()),
    Feature("LoRA, few trained tokens", rows(QUESTIONS), {}, lora()),
    Feature("LoRA and gradient checkpointing", rows(CHATS), {CHECKPOINTING: True}, lora()),
    Feature("DoRA", rows(CHATS), {}, lora(use_dora=True)),
    Feature("modules_to_save", rows(CHATS), {}, lora(modules_to_save=["embed_tokens", "lm_head"])),
    Feature("adapters of the model's own", rows(CHATS), model=adapted_llama),
    Feature("prompt tuning", rows(CHATS), NLL, virtual_tokens),
    Feature("prompt tuning, few trained tokens", rows(QUESTIONS), {}, virtual_tokens),
    Feature("a model by its folder", rows(CHATS), model=saved_llama),
    Feature(
        "model_init_kwargs",
        rows(CHATS),
        {"model_init_kwargs": {"attn_implementation": "eager", "dtype": "float32"}},
        model=saved_llama,
    ),
    Feature("eos_token", rows(TEXTS), {"eos_token": "<|im_start|>"}),
    Feature("pad_token", rows(CHATS), {"pad_token": "<|im_start|>"}),
    Feature("gradient checkpointing", rows(CHATS), {CHECKPOINTING: True}),
    pytest.param(
        Feature(
            "selective checkpointing",
            rows(CHATS),
            {CHECKPOINTING: True, "gradient_checkpointing_kwargs": {"selective": True}},
        ),
        marks=pytest.mark.skipif(Version(trl.__version__) < Version("1.15"), reason="trl has it since 1.15"),
    ),
    Feature("auto_find_batch_size", rows(CHATS), {"auto_find_batch_size": True}),
    Feature("torch_compile", rows(CHATS), {"torch_compile": True, "torch_compile_backend": "eager"}),
    Feature("a name on the hub that nothing is pushed to", rows(CHATS), {"hub_model_id": "me/mine"}),
    Feature("plain TrainingArguments", rows(CHATS), config=TrainingArguments),
]

ARGUMENTS = [
    Feature("data_collator", rows(LABELLED), {}, lambda: {"data_collator": DataCollatorForSeq2Seq(tiny_tokenizer())}),
    Feature(
        "data_collator that reads other columns",
        rows(NUMBERED_CHATS),
        {"remove_unused_columns": False},
        lambda: {"data_collator": collate_numbers},
    ),
    Feature(
        "optimizer_cls_and_kwargs",
        rows(CHATS),
        {},
        lambda: {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5})},
    ),
    Feature(
        "a stream, and a data_collator that reads other columns",
        partial(stream, NUMBERED_CHATS),
        {"remove_unused_columns": False},
        lambda: {"data_collator": collate_numbers},
    ),
    Feature("num_input_tokens_seen", rows(CHATS), {"include_num_input_tokens_seen": "non_padding"}),
    Feature("eval_dataset", rows(CHATS), EVALUATES, lambda: {"eval_dataset": Dataset.from_list(CHATS[:3])}),
    Feature("a stream to evaluate", rows(CHATS), EVALUATES, lambda: {"eval_dataset": stream(CHATS[:3])}),
    Feature(
        "several eval_datasets",
        rows(TEXTS),
        {**EVALUATES, "eval_on_start": True},
        lambda: {"eval_dataset": {"short": Dataset.from_list(TEXTS[:2]), "long": Dataset.from_list(TEXTS[2:5])}},
    ),
    Feature(
        "a DatasetDict to evaluate",
        rows(CHATS),
        EVALUATES,
        lambda: {"eval_dataset": DatasetDict(a=Dataset.from_list(CHATS[:2]), b=Dataset.from_list(CHATS[2:5]))},
    ),
    Feature(
        "compute_metrics",
        rows(CHATS),
        {**NLL, **EVALUATES},
        lambda: {"eval_dataset": Dataset.from_list(CHATS[:3]), "compute_metrics": accuracy},
    ),
    Feature(
        "compute_metrics and preprocess_logits_for_metrics",
        rows(QUESTIONS),
        {**NLL, **EVALUATES, "batch_eval_metrics": True, "eval_accumulation_steps": 1},
        lambda: {
            "eval_dataset": Dataset.from_list(QUESTIONS[:3]),
            "compute_metrics": batch_accuracy,
            "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
        },
    ),
    Feature(
        "callbacks that stop the run",
        rows(CHATS),
        {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "max_steps": 4,
            "greater_is_better": True,  # so that no evaluation is better than the first
        },
        lambda: {
            "eval_dataset": Dataset.from_list(CHATS[:3]),
            "callbacks": [EarlyStoppingCallback(early_stopping_patience=1)],
        },
    ),
]

FEATURES = [*ROW_FORMS, *PACKED, *LOSSES, *MODELS, *ARGUMENTS]
