"""The demo from data to trained model: check, measure, train, measure again, and say where everything is."""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from deepfabric_trainer import ConversationEncoder, DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.callbacks import MetricEarlyStoppingCallback, SampleGenerationCallback
from deepfabric_trainer.callbacks.sample_generation import GenerationResult
from deepfabric_trainer.cli.check import print_report
from deepfabric_trainer.collators import SharedPrefixCollator
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.preview import print_example
from deepfabric_trainer.rows import load_rows, to_dataset
from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.validate import validate_dataset
from examples.demo.data import held_out_rows, training_rows
from examples.demo.display import ProgressCallback, print_kinds, print_results, print_samples
from examples.demo.model import Precision, demo_model, probe_precision

Rows = list[dict[str, Any]]

CACHE = Path(".cache")
FIRST_TRAINED_LAYER = 8
"""Of the demo's model, which has 30."""
UNTRAINED_TOKENS = 32
"""Longest turn of the model before the training: it goes on and on, and a call shows in its first tokens."""
SLOW_SECONDS = 600
"""Above this the demo warns before it starts."""
SECONDS_PER_PROMPT = 0.6
"""What generating and scoring one prompt takes on two cores, about; a slow machine takes longer."""
REFERENCE_TOKENS_PER_SECOND = 280.0
"""What `probe_precision` found on the machine on which `SECONDS_PER_PROMPT` was measured."""


@dataclass(frozen=True)
class Settings:
    """How the demo runs.

    Args:
        model (`str`, *optional*): A path or hub id; `None` for the demo's own model.
        data (`str`, *optional*): Rows to train on; `None` for generated ones.
        output (`Path`): The folder of the run.
        max_steps (`int`): The most training steps; an early stop may come first.
        batch_size (`int`): Examples a step.
        learning_rate (`float`): The highest.
        prompts (`int`): Held-out turns that are generated before and after the training.
        prompts_during (`int`): Held-out turns that are generated at each evaluation.
        eval_steps (`int`): Steps between evaluations.
        target (`float`): Exact match at which the training stops.
        patience (`int`): Evaluations without improvement after which it stops.
        max_new_tokens (`int`): Longest generated turn.
        seed (`int`): Of the data and of the training.
    """

    model: str | None = None
    data: str | None = None
    output: Path = Path("runs/demo")
    max_steps: int = 72
    batch_size: int = 8
    learning_rate: float = 3e-3
    prompts: int = 60
    prompts_during: int = 30
    eval_steps: int = 15
    target: float = 0.8
    patience: int = 3
    max_new_tokens: int = 104
    seed: int = 0

    def shortened(self) -> "Settings":
        """Return the same in a few steps and prompts."""
        return replace(self, max_steps=2, batch_size=4, prompts=8, prompts_during=4, eval_steps=1, max_new_tokens=16)


def run_demo(settings: Settings) -> None:
    """Run the demo, and print it.

    Raises:
        ConfigError: If model or data cannot be loaded, or the data are too few.
        DataFormatError: If rows of the user's cannot be trained on.
    """
    started = time.monotonic()
    console = Console()
    _be_quiet()
    console.rule("[bold]Data[/]")
    train, held_out = _rows(settings)
    settings.output.mkdir(parents=True, exist_ok=True)
    files = {name: settings.output / f"{name}.jsonl" for name in ("train", "held_out")}
    for name, rows in (("train", train), ("held_out", held_out)):
        _write_rows(files[name], rows)
    print_kinds(train, held_out, console)

    precision = probe_precision()
    model, tokenizer = _load_model(settings, precision)
    print_report(validate_dataset([*train, *held_out]), console, most=10)
    encoder = ConversationEncoder(tokenizer)
    console.print("\nWhat is trained, in the first row that makes a call:")
    print_example(encoder.encode(_first_with_call(train))[0], tokenizer, console)

    console.rule("[bold]Training[/]")
    console.print(_forecast(settings, precision, encoder, train, len(held_out)))
    measure = SampleGenerationCallback(
        held_out,
        num_samples=settings.prompts,
        batch_size=64,
        max_new_tokens=settings.max_new_tokens,
        raise_on_error=True,
    )
    trainer = _trainer(settings, model, tokenizer, train, held_out, console)
    console.print(f"Before the training, on {len(held_out)} held-out prompts:")
    before = _measure_untrained(measure, trainer, console)
    trainer.train()
    _say_why_it_ended(trainer, settings, console)
    after = _measure(measure, trainer, console)

    console.rule("[bold]Results[/]")
    print_samples(after, console)
    print_results(before, after, console)
    trainer.save_model(str(settings.output / "model"))
    _write_results(settings, trainer, before, after)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"\nDone in {minutes} min {seconds} s. Everything is in [bold]{settings.output}/[/]:")
    console.print("  model/         the LoRA adapter and the tokenizer")
    console.print("  report.html    [bold]what the run has shown[/]: open it in a browser")
    console.print("  results.json   metrics of every measurement, settings, and the samples")
    console.print("  train.jsonl, held_out.jsonl   the rows; look at them with")
    console.print(f"    .venv/bin/deepfabric-trainer check {files['train']}", highlight=False)


def _be_quiet() -> None:
    """Leave the terminal to the demo."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")


def _rows(settings: Settings) -> tuple[Rows, Rows]:
    """Return the rows to train on and those held out."""
    if settings.data is None:
        train = training_rows(settings.max_steps * settings.batch_size, settings.seed)
        return train, held_out_rows(settings.prompts, settings.seed)
    loaded = load_rows(settings.data).shuffle(seed=settings.seed)
    conversations = [normalize_row(row) for row in loaded]
    rows: Rows = [{"messages": conversation.messages, "tools": conversation.tools} for conversation in conversations]
    held_out = min(settings.prompts, len(rows) // 5)
    if not held_out:
        raise ConfigError(f"{settings.data} has {len(rows)} rows", expected="at least 5, of which a fifth is held out")
    return rows[held_out:], rows[:held_out]


def _load_model(settings: Settings, precision: Precision) -> tuple[Any, Any]:
    name = settings.model
    if name is None:
        if not CACHE.is_dir() or not any(CACHE.iterdir()):
            print("Unpacking SmolLM2-135M-Instruct, once ...", flush=True)
        name = str(demo_model(CACHE))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=precision.dtype)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"cannot load the model {name!r}: {reason}", expected="a folder or a hub id") from error
    return model, tokenizer


def _forecast(
    settings: Settings, precision: Precision, encoder: ConversationEncoder, train: Rows, held_out: int
) -> str:
    """Say what the training will take on this machine, before it starts."""
    examples = [vars(example) for row in train[: settings.batch_size] for example in encoder.encode(row)]
    batch = SharedPrefixCollator(0, return_num_tokens=True)(examples)
    total, computed = int(batch["num_tokens"]), int(batch["num_computed"])
    evaluations = settings.max_steps // settings.eval_steps
    prompts = 2 * held_out + evaluations * min(settings.prompts_during, held_out)
    per_prompt = SECONDS_PER_PROMPT * max(1.0, REFERENCE_TOKENS_PER_SECOND / precision.tokens_per_second)
    seconds = settings.max_steps * computed / precision.tokens_per_second + prompts * per_prompt
    minutes = max(1, round(seconds / 60))
    kind = str(precision.dtype).removeprefix("torch.")
    lines = [
        f"{kind} is the faster precision here, about {precision.tokens_per_second:,.0f} tokens a second.",
        f"A batch of {settings.batch_size} rows has {total:,} tokens; {total - computed:,} of them are shared "
        "beginnings and are not computed again.",
        f"At most {settings.max_steps} steps and {prompts} generated turns: about {minutes} min, less if the accuracy "
        f"reaches {settings.target} before.",
    ]
    if settings.model is not None:
        lines[-1] += " (That is for the demo's 135M parameters; yours takes in proportion.)"
    if seconds > SLOW_SECONDS:
        lines.append('[yellow]This machine is slow: `make demo DEMO_FLAGS="--short"` shows everything in short.[/]')
    return "\n".join(lines)


def _trainer(
    settings: Settings, model: Any, tokenizer: Any, train: Rows, held_out: Rows, console: Console
) -> DeepFabricTrainer:
    args = DeepFabricSFTConfig(
        output_dir=str(settings.output),
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=32,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=2,
        adam_beta2=0.95,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        seed=settings.seed,
    )
    during = held_out[: max(1, settings.prompts_during)]
    trainer = DeepFabricTrainer(
        model=model,
        processing_class=tokenizer,
        args=args,
        train_dataset=to_dataset(train),
        eval_dataset=to_dataset(during),
        peft_config=_lora(settings),
        callbacks=[
            SampleGenerationCallback(
                num_samples=settings.prompts_during,
                batch_size=32,
                max_new_tokens=settings.max_new_tokens,
            ),
            MetricEarlyStoppingCallback(
                "eval_tool_call_exact_match", patience=settings.patience, target=settings.target
            ),
            ProgressCallback(console),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _lora(settings: Settings) -> LoraConfig:
    # Adapters in the upper layers only: the backward pass ends where they begin.
    layers = list(range(FIRST_TRAINED_LAYER, 30)) if settings.model is None else None
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] if layers else "all-linear"
    return LoraConfig(r=16, lora_alpha=32, target_modules=modules, layers_to_transform=layers, task_type="CAUSAL_LM")


def _measure(callback: SampleGenerationCallback, trainer: DeepFabricTrainer, console: Console) -> GenerationResult:
    metrics = callback.compute_metrics(
        model=trainer.model, processing_class=trainer.processing_class, state=trainer.state
    )
    console.print(f"  exact match [bold]{metrics['eval_tool_call_exact_match']:.2f}[/]", highlight=False)
    return callback.results[-1]


def _measure_untrained(
    callback: SampleGenerationCallback, trainer: DeepFabricTrainer, console: Console
) -> GenerationResult:
    """Measure a model that may never stop: in full only when a turn was cut inside a call."""
    full, callback.max_new_tokens = callback.max_new_tokens, min(callback.max_new_tokens, UNTRAINED_TOKENS)
    try:
        result = _measure(callback, trainer, console)
    finally:
        callback.max_new_tokens = full
    if result.metrics["eval_tool_call_parsed"] < 1:
        console.print("  Some calls were cut; once more, in full:")
        result = _measure(callback, trainer, console)
    return result


def _say_why_it_ended(trainer: DeepFabricTrainer, settings: Settings, console: Console) -> None:
    step = trainer.state.global_step
    if step < settings.max_steps:
        console.print(f"[bold green]Stopped early[/] at step {step} of {settings.max_steps}.")
    else:
        console.print(f"All {step} steps are done.")


def _first_with_call(rows: Rows) -> dict[str, Any]:
    return next((row for row in rows if any(message.get("tool_calls") for message in row["messages"])), rows[0])


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write_results(
    settings: Settings, trainer: DeepFabricTrainer, before: GenerationResult, after: GenerationResult
) -> None:
    results = {
        "settings": {name: str(value) for name, value in asdict(settings).items()},
        "before": before.metrics,
        "after": after.metrics,
        "history": trainer.state.log_history,
        "samples": [asdict(sample) for sample in after.samples],
    }
    text = json.dumps(results, ensure_ascii=False, indent=2, default=str)
    (settings.output / "results.json").write_text(text + "\n", encoding="utf-8")
