"""How much memory a training step takes at its peak: TRL's `SFTTrainer` and this library, on the same examples.

Run `python -m benchmarks.memory` (Linux only). Each trainer trains the same batch of 8 rows of one catalogue
in a process of its own, in float32 on the CPU. What counts is the peak of the resident memory, without what was
resident before the step: the libraries, the rows and the model. Gradient checkpointing is on, the default of both, and
then off. Ours runs once more with `max_tokens_per_batch` set to little more than the longest example. The benchmark
fails unless all have the same loss.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from benchmarks.catalogue import as_text, make_rows, make_tools
from benchmarks.report import GOALS, Bars, add_output_options, draw_bars, write_result
from benchmarks.training import (
    SAME_LOSS,
    ModelSize,
    difference,
    fitted_tokenizer,
    our_trainer,
    quiet,
    train,
    trls_trainer,
)
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.prepare import prepare_dataset
from deepfabric_trainer.rows import to_dataset

_WHO = ("TRL", "ours", "ours, with a budget")
_SHAPE = ("tools", "batch", "layers", "hidden", "seed")
_ROOM = 1.05
"""The budget, in lengths of the longest example: less than the examples of a batch have together."""


@dataclass(frozen=True)
class Peak:
    """What one process took.

    Args:
        before_mib (`float`): Resident before the step.
        peak_mib (`float`): Resident at the peak, beyond that.
        losses (`list[float]`): Of the step.
        tokens (`int`): In the examples.
        laid_out_tokens (`int`): In the batch, with padding.
        budget (`int`, *optional*): What `max_tokens_per_batch` was.
    """

    before_mib: float
    peak_mib: float
    losses: list[float]
    tokens: int
    laid_out_tokens: int
    budget: int | None


@dataclass(frozen=True)
class Figure:
    """What a step took with and without gradient checkpointing.

    Args:
        checkpointing (`bool`): Whether activations are computed again in the backward pass.
        trl (`Peak`): Of TRL.
        ours (`Peak`): Of this library.
        ours_with_budget (`Peak`): The same with `max_tokens_per_batch`.
        ratio (`float`): Our peak to TRL's.
        ratio_with_budget (`float`): The same with `max_tokens_per_batch`.
        goal (`float`): The ratio to stay below.
        loss_difference (`float`): The largest to TRL's, relative.
    """

    checkpointing: bool
    trl: Peak
    ours: Peak
    ours_with_budget: Peak
    ratio: float
    ratio_with_budget: float
    goal: float
    loss_difference: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--tools", type=int, default=20, help="tools of the catalogue (default: 20)")
    parser.add_argument("--batch", type=int, default=8, help="examples of the step (default: 8)")
    parser.add_argument("--layers", type=int, default=2, help="of the model (default: 2)")
    parser.add_argument("--hidden", type=int, default=256, help="width of the model (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="makes the rows and the model (default: 0)")
    parser.add_argument("--alone", choices=_WHO, help=argparse.SUPPRESS)
    parser.add_argument("--no-checkpointing", action="store_true", help=argparse.SUPPRESS)
    add_output_options(parser)
    options = parser.parse_args(argv)

    if options.alone:
        print(json.dumps(asdict(_measure_here(options.alone, options, not options.no_checkpointing))))
        return
    figures = [measure(options, checkpointing) for checkpointing in (True, False)]
    print_figures(figures, Console())
    del options.alone, options.no_checkpointing
    if options.output:
        write_result(options.output, "memory", options, [asdict(figure) for figure in figures])
    if options.plot:
        plot(figures, options.plot)


def measure(options: argparse.Namespace, checkpointing: bool) -> Figure:
    """Train the step in three processes, one after the other.

    Raises:
        RuntimeError: If the losses are not the same.
    """
    trl, ours, with_budget = (_measure_alone(who, options, checkpointing) for who in _WHO)
    apart = max(difference(trl.losses, other.losses) for other in (ours, with_budget))
    if apart > SAME_LOSS:
        raise RuntimeError(f"the losses differ by {apart:.1e}")
    return Figure(
        checkpointing=checkpointing,
        trl=trl,
        ours=ours,
        ours_with_budget=with_budget,
        ratio=round(ours.peak_mib / trl.peak_mib, 3),
        ratio_with_budget=round(with_budget.peak_mib / trl.peak_mib, 3),
        goal=GOALS["memory"],
        loss_difference=apart,
    )


def print_figures(figures: Sequence[Figure], console: Console) -> None:
    table = Table(title="peak memory of a training step on the CPU, beyond what was there before")
    for heading in ("checkpoints", "", "MiB", "ratio", "goal", "tokens"):
        table.add_column(heading, justify="right" if heading not in ("checkpoints", "") else "left", no_wrap=True)
    for figure in figures:
        for who, peak in zip(_WHO, (figure.trl, figure.ours, figure.ours_with_budget), strict=True):
            is_trl = who == "TRL"
            table.add_row(
                ("on" if figure.checkpointing else "off") if is_trl else "",
                who if peak.budget is None else f"ours, passes of {peak.budget:,}",
                f"{peak.peak_mib:,.0f}",
                "" if is_trl else f"{peak.peak_mib / figure.trl.peak_mib:.2f}x",
                "" if is_trl else f"{figure.goal:g}x",
                f"{peak.laid_out_tokens:,}",
            )
    console.print(
        table,
        f"tokens: in the rows of all passes, with padding; the losses differ by {_largest_difference(figures):.0e}",
        sep="\n",
    )


def _largest_difference(figures: Sequence[Figure]) -> float:
    return max(figure.loss_difference for figure in figures)


def plot(figures: Sequence[Figure], path: Path) -> None:
    """Draw the peaks."""
    groups = []
    for figure in figures:
        label = f"gradient checkpointing {'on (the default)' if figure.checkpointing else 'off'}"
        values = {"TRL": figure.trl.peak_mib, "deepfabric-trainer": figure.ours.peak_mib}
        values["with max_tokens_per_batch"] = figure.ours_with_budget.peak_mib
        notes = {"deepfabric-trainer": f"{figure.ratio:.2f}x"}
        notes["with max_tokens_per_batch"] = f"{figure.ratio_with_budget:.2f}x"
        groups.append(Bars(label, values, notes))
    draw_bars(path, groups, "peak memory of a training step of 8 examples, MiB", "{:,.0f}")


def _measure_alone(who: str, options: argparse.Namespace, checkpointing: bool) -> Peak:
    shape = [text for name in _SHAPE for text in (f"--{name}", str(getattr(options, name)))]
    command = [sys.executable, "-m", "benchmarks.memory", *shape, "--alone", who]
    command += [] if checkpointing else ["--no-checkpointing"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Peak(**json.loads(output.splitlines()[-1]))


def _measure_here(who: str, options: argparse.Namespace, checkpointing: bool) -> Peak:
    """Train the step in this process."""
    catalogue = make_tools(options.tools, options.seed)
    made = as_text(make_rows(options.batch, catalogue=catalogue, tools_per_row=options.tools, seed=options.seed))
    tokenizer, rows = fitted_tokenizer(made), to_dataset(made)
    model = ModelSize(options.layers, options.hidden, len(tokenizer)).build(tokenizer, options.seed)
    given = {
        "per_device_train_batch_size": options.batch,
        "seed": options.seed,
        "max_steps": 1,
        "gradient_checkpointing": checkpointing,
    }
    gauge = _Gauge()
    with quiet():
        # All processes do the same before the step.
        prepared = prepare_dataset(rows, ConversationEncoder(tokenizer))
        budget = int(_ROOM * max(map(len, prepared["input_ids"]))) if who == "ours, with a budget" else None
        if who == "TRL":
            context = trls_trainer(model, tokenizer, prepared, **given)
        else:
            context = our_trainer(model, tokenizer, rows, max_tokens_per_batch=budget, **given)
        with context as trainer:
            trainer.add_callback(gauge)
            run = train(trainer)
    return Peak(
        before_mib=round(gauge.before, 1),
        peak_mib=round(gauge.peak - gauge.before, 1),
        losses=run.losses,
        tokens=run.tokens,
        laid_out_tokens=run.laid_out_tokens,
        budget=budget,
    )


class _Gauge(TrainerCallback):
    """Reads the resident memory before training, and its peak after the step."""

    def __init__(self) -> None:
        self.before = self.peak = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what the step takes
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self.before = _resident("VmRSS")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.peak = _resident("VmHWM")


def _resident(name: str) -> float:
    """Return a field of the process's status in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


if __name__ == "__main__":
    main()
