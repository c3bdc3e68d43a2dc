"""What the callbacks add to a training step: all that do not generate, with a log every 10 steps.

Run `python -m benchmarks.callbacks`. The same model trains the same batches in float32 on the CPU, without callbacks
and with the watch over the run's health, early stopping, the logger with its JSON lines, the report, and the progress
without a terminal, one after the other in turns. Time is taken twice: by the clock around each step, of which the
medians of both are compared, and inside the methods and hooks of each callback, summed up over the steps. The clock of
a machine that does something else sees less than 1% only by chance, so the goal is set for the second.

The first step and the end of the run are counted apart, as what comes once: there the report is written first and
last. Between them it is written at logs, here every 5 seconds, which is six times as often as by default.
"""

import argparse
import io
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from benchmarks.conversations import make_texts
from benchmarks.report import GOALS, Bars, add_output_options, draw_bars, write_result
from benchmarks.training import ModelSize, Run, fitted_tokenizer, our_trainer, quiet, train
from deepfabric_trainer.callbacks import (
    MetricEarlyStoppingCallback,
    MetricsLoggerCallback,
    RunReportCallback,
    TrainingHealthCallback,
    TrainingProgressCallback,
)
from deepfabric_trainer.callbacks._health.probe import StepProbe
from deepfabric_trainer.rows import to_dataset

_REPORT_EVERY = 5.0
_NEVER = 1_000_000


@dataclass(frozen=True)
class Figure:
    """What the callbacks took.

    Args:
        layers (`int`): Of the model.
        hidden (`int`): The model's width.
        batch (`int`): Examples of a step.
        tokens (`float`): The mean length of an example.
        steps (`int`): That were measured with callbacks, in all runs.
        milliseconds (`dict[str, float]`): Of a step, inside the methods and hooks of each callback.
        share (`float`): Of the step, all of them together.
        goal (`float`): The share to stay below.
        once_seconds (`dict[str, float]`): Of a run, inside its first step, before it, and after the last.
        seconds_without (`float`): Of a step by the clock, the median without callbacks.
        seconds_with (`float`): The median with them.
        all_seconds_without (`list[float]`): Of every step.
        all_seconds_with (`list[float]`): Of every step.
    """

    layers: int
    hidden: int
    batch: int
    tokens: float
    steps: int
    milliseconds: dict[str, float]
    share: float
    goal: float
    once_seconds: dict[str, float]
    seconds_without: float
    seconds_with: float
    all_seconds_without: list[float]
    all_seconds_with: list[float]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.callbacks", description=__doc__.split("\n")[0])
    parser.add_argument("--words", type=int, default=200, help="words of a row (default: 200)")
    parser.add_argument("--batch", type=int, default=8, help="examples of a step (default: 8)")
    parser.add_argument("--steps", type=int, default=21, help="steps of a run, the first apart (default: 21)")
    parser.add_argument("--repeats", type=int, default=2, help="runs with and without, in turns (default: 2)")
    parser.add_argument("--layers", type=int, default=2, help="of the model (default: 2)")
    parser.add_argument("--hidden", type=int, default=256, help="width of the model (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="makes the rows and the model (default: 0)")
    add_output_options(parser)
    options = parser.parse_args(argv)

    with quiet():
        figure = measure(options)
    print_figure(figure, Console())
    if options.output:
        write_result(options.output, "callbacks", options, [asdict(figure)])
    if options.plot:
        plot(figure, options.plot)


def measure(options: argparse.Namespace) -> Figure:
    """Train with and without callbacks in turns."""
    made = make_texts(options.batch * 4, options.words, options.seed)
    tokenizer, rows = fitted_tokenizer(made), to_dataset(made)
    size = ModelSize(options.layers, options.hidden, len(tokenizer))
    watch = _Stopwatch()
    without: list[Run] = []
    watched: list[Run] = []
    _train(size, tokenizer, rows, options, None, steps=1)  # nobody pays for what is loaded and allocated once
    for _ in range(options.repeats):
        without.append(_train(size, tokenizer, rows, options, None, options.steps))
        watched.append(_train(size, tokenizer, rows, options, watch, options.steps))
    seconds_without, seconds_with = ([each for run in runs for each in run.seconds[1:]] for runs in (without, watched))
    return Figure(
        layers=size.layers,
        hidden=size.hidden,
        batch=options.batch,
        tokens=round(watched[0].tokens / len(watched[0].examples), 1),
        steps=len(seconds_with),
        milliseconds={name: round(1000 * watch.in_steps[name] / len(seconds_with), 3) for name in _callbacks()},
        share=round(watch.in_steps.total() / sum(seconds_with), 5),
        goal=GOALS["callbacks"],
        once_seconds={name: round(watch.once[name] / options.repeats, 3) for name in _callbacks()},
        seconds_without=round(median(seconds_without), 4),
        seconds_with=round(median(seconds_with), 4),
        all_seconds_without=[round(seconds, 4) for seconds in seconds_without],
        all_seconds_with=[round(seconds, 4) for seconds in seconds_with],
    )


def print_figure(figure: Figure, console: Console) -> None:
    table = Table(title="what callbacks add to a training step on the CPU")
    for heading in ("", "a step (ms)", "share", "once (s)"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    milliseconds = 1000 * sum(figure.all_seconds_with) / figure.steps
    for name, taken in figure.milliseconds.items():
        table.add_row(name, f"{taken:.2f}", f"{taken / milliseconds:.2%}", f"{figure.once_seconds[name]:.2f}")
    taken, once = sum(figure.milliseconds.values()), sum(figure.once_seconds.values())
    table.add_row("all", f"{taken:.2f}", f"{figure.share:.2%}", f"{once:.2f}")
    clock = (
        f"by the clock a step takes {figure.seconds_without:.3f} s without and {figure.seconds_with:.3f} s with them"
    )
    console.print(table, f"goal: under {figure.goal:.0%}; {clock}", sep="\n")


def plot(figure: Figure, path: Path) -> None:
    """Draw the seconds of a step."""
    values = {"without callbacks": figure.seconds_without, "with callbacks": figure.seconds_with}
    notes = {"with callbacks": f"{figure.share:.2%} in their methods"}
    draw_bars(path, [Bars("a log every 10 steps", values, notes)], "seconds a training step, median", "{:.3f}")


def _train(
    size: ModelSize, tokenizer: Any, rows: Dataset, options: argparse.Namespace, watch: "_Stopwatch | None", steps: int
) -> Run:
    """Train from the same weights, with callbacks where there is a stopwatch for them."""
    given = {
        "per_device_train_batch_size": options.batch,
        "seed": options.seed,
        "max_steps": steps,
        "logging_steps": 10,
        "health_checks": False,
        "run_report": False,
    }
    model = size.build(tokenizer, options.seed)
    with ExitStack() as stack:
        trainer = stack.enter_context(our_trainer(model, tokenizer, rows, **given))
        if watch is not None:
            stack.enter_context(redirect_stdout(io.StringIO()))
            watch.steps = 0
            for name, callback in _callbacks().items():
                watch.take_time_of(name, callback)
                trainer.add_callback(callback)
            trainer.add_callback(watch)
            for hook in ("note_forward", "note_gradient"):
                stack.enter_context(patch.object(StepProbe, hook, watch.timed("health", getattr(StepProbe, hook))))
        return train(trainer)


def _callbacks() -> dict[str, TrainerCallback]:
    return {
        "health": TrainingHealthCallback(),
        "early stopping": MetricEarlyStoppingCallback("loss", mode="min", patience_steps=_NEVER),
        "logger": MetricsLoggerCallback(),
        "progress": TrainingProgressCallback(),
        "report": RunReportCallback(every_seconds=_REPORT_EVERY),
    }


class _Stopwatch(TrainerCallback):
    """Takes the time inside the methods of callbacks."""

    def __init__(self) -> None:
        self.steps = 0
        self.in_steps: Counter[str] = Counter()
        self.once: Counter[str] = Counter()

    def take_time_of(self, name: str, callback: TrainerCallback) -> None:
        """From now on take the time inside its methods."""
        for event in (event for event in dir(callback) if event.startswith("on_")):
            setattr(callback, event, self.timed(name, getattr(callback, event), is_end=event == "on_train_end"))

    def timed(self, name: str, method: Callable[..., Any], *, is_end: bool = False) -> Callable[..., Any]:
        """Return a method that does the same, and takes its time."""

        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = method(*args, **kwargs)
            counter = self.in_steps if self.steps and not is_end else self.once
            counter[name] += time.perf_counter() - started  # type: ignore[assignment]
            return result

        return run

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Know that the first step is over."""
        self.steps += 1


if __name__ == "__main__":
    main()
