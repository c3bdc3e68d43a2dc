"""What the training benchmarks share: rows, a tokenizer, small models, both trainers, and a clock for their steps."""

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from benchmarks.tokenizer import small_tokenizer, template_of_trl
from deepfabric_trainer.config import DeepFabricSFTConfig
from deepfabric_trainer.trainer import DeepFabricTrainer

Json = dict[str, Any]

QWENS_VOCABULARY = 151_936
SAME_LOSS = 1e-4
"""How far losses may be apart, relative: rounding in float32, which each update carries on."""
_TEMPLATE = "qwen3"
_LONGEST = 65_536


@dataclass(frozen=True)
class ModelSize:
    """The shape of a random Llama, in float32.

    Args:
        layers (`int`): Of the backbone.
        hidden (`int`): Width; the feed-forward layers are twice as wide, and a head has 32 dimensions.
        vocabulary (`int`): Rows of the embedding, and of the head.
    """

    layers: int
    hidden: int
    vocabulary: int

    def build(self, tokenizer: Any, seed: int = 0) -> LlamaForCausalLM:
        """Return a model with the weights that the seed gives."""
        heads = max(self.hidden // 32, 1)
        config = LlamaConfig(
            vocab_size=max(self.vocabulary, len(tokenizer)),
            hidden_size=self.hidden,
            intermediate_size=2 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(heads // 2, 1),
            max_position_embeddings=_LONGEST,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Run:
    """What a trainer did.

    Args:
        seconds (`list[float]`): Of the clock, for each optimizer step: from the end of the one before, so that reading
            and laying out the batch count, to the end of its update.
        cpu_seconds (`float`): Of the processor, for all steps: what other programs take does not count.
        losses (`list[float]`): Of the steps.
        tokens (`int`): In the examples of all steps.
        computed_tokens (`int`): Of them sent through the model; TRL sends all.
        laid_out_tokens (`int`): The same with the padding.
        examples (`list[int]`): The hash of each example that a batch was made of, in order.
    """

    seconds: list[float]
    cpu_seconds: float
    losses: list[float]
    tokens: int
    computed_tokens: int
    laid_out_tokens: int
    examples: list[int]


def fitted_tokenizer(rows: Sequence[Json], vocab_size: int = 1024) -> Any:
    """Return a tokenizer whose vocabulary is small, and yet makes rows no longer than a large one would."""
    texts = (json.dumps(row, ensure_ascii=False) for row in rows)
    tokenizer = small_tokenizer().train_new_from_iterator(texts, vocab_size=vocab_size, show_progress=False)
    tokenizer.chat_template = template_of_trl(_TEMPLATE)
    return tokenizer


@contextmanager
def our_trainer(model: Any, tokenizer: Any, rows: Dataset, **options: Any) -> Iterator[DeepFabricTrainer]:
    """Yield `DeepFabricTrainer` on rows of conversations."""
    with tempfile.TemporaryDirectory() as folder:
        args = DeepFabricSFTConfig(folder, **COMMON | options)
        trainer = DeepFabricTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        yield trainer


@contextmanager
def trls_trainer(model: Any, tokenizer: Any, prepared: Dataset, **options: Any) -> Iterator[SFTTrainer]:
    """Yield `SFTTrainer` on the examples that ours made of the same rows: it takes `input_ids` and `labels` as is."""
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(folder, **COMMON | {"max_length": None} | options)
        columns = prepared.select_columns(["input_ids", "labels"])
        trainer = SFTTrainer(model=model, args=args, train_dataset=columns, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        yield trainer


def train(trainer: Any) -> Run:
    """Train, and return what was done."""
    clock = _StepClock()
    trainer.add_callback(clock)
    batches = _record_batches(trainer)
    started = time.process_time()
    trainer.train()
    cpu_seconds = time.process_time() - started
    history = trainer.state.log_history
    last = {name: value for entry in history for name, value in entry.items()}
    return Run(
        seconds=clock.seconds,
        cpu_seconds=cpu_seconds,
        losses=[entry["loss"] for entry in history if "loss" in entry],
        tokens=int(last["num_tokens"]),
        computed_tokens=int(last.get("num_computed_tokens", last["num_tokens"])),
        laid_out_tokens=batches.tokens,
        examples=batches.examples,
    )


def check_same_steps(ours: Run, trls: Run) -> None:
    """Fail unless two runs trained the same examples in the same steps, with the same losses.

    Raises:
        RuntimeError: If they did not: their seconds cannot be compared.
    """
    if ours.examples != trls.examples:
        raise RuntimeError("the trainers were given different examples, or in another order")
    apart = difference(ours.losses, trls.losses)
    if apart > SAME_LOSS:
        raise RuntimeError(f"the losses differ by {apart:.1e}: {ours.losses} and, of TRL, {trls.losses}")


def difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """Return the largest difference between the losses of two runs, relative to the larger."""
    return max(abs(one - other) / max(abs(one), abs(other)) for one, other in zip(losses, others, strict=True))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the trainers from talking: their logs, their bars, and what they warn of each time."""
    loggers = [logging.getLogger(name) for name in ("deepfabric_trainer", "trl", "datasets", "accelerate")]
    levels = [logger.level for logger in loggers]
    verbosity, bars = transformers_logging.get_verbosity(), datasets.is_progress_bar_enabled()
    caches = datasets.is_caching_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        transformers_logging.set_verbosity_error()
        datasets.disable_progress_bars()
        datasets.disable_caching()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
        if caches:
            datasets.enable_caching()


COMMON: Json = {
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-4,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 0,
}
"""The rest is the default of both, gradient checkpointing for one."""


class _StepClock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


@dataclass
class _Batches:
    """What a collator was given, and how large it made it."""

    examples: list[int] = field(default_factory=list)
    tokens: int = 0


def _record_batches(trainer: Any) -> _Batches:
    """Let a trainer's collator write its batches down; it stays of its class, which others look at."""
    batches = _Batches()

    class Recording(type(trainer.data_collator)):  # type: ignore[misc]
        def __call__(self, examples: Any, *args: Any, **kwargs: Any) -> Any:
            batch = super().__call__(examples, *args, **kwargs)
            batches.examples.extend(hash(tuple(example["input_ids"])) for example in examples)
            batches.tokens += batch["input_ids"].numel()
            return batch

    trainer.data_collator.__class__ = Recording
    return batches
