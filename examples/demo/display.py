"""What the demo shows in the terminal: tables, sample calls, and the progress of the training."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback

from deepfabric_trainer.callbacks.sample_generation import GenerationResult, TurnSample
from deepfabric_trainer.toolcalls import wilson_interval


class ProgressCallback(TrainerCallback):
    """A progress bar with the loss, and a line for each measurement of tool-call accuracy.

    Args:
        console (`Console`): Where to print.
    """

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.console = console

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.task = self.progress.add_task("training", total=state.max_steps, loss="-")
        self.progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        """Show the loss, and what an evaluation found."""
        if "loss" in logs:
            self.progress.update(self.task, loss=f"{logs['loss']:.3f}")
        if "eval_tool_call_exact_match" in logs:
            self.console.print(f"  step {state.global_step:>3}  {accuracy_line(logs)}", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.progress.stop()


def accuracy_line(metrics: Mapping[str, float]) -> str:
    """Return a measurement in one line."""
    count = round(metrics["eval_tool_call_turns"])
    return (
        f"exact match [bold]{metrics['eval_tool_call_exact_match']:.2f}[/]  right name "
        f"{metrics['eval_tool_call_name']:.2f}  parsed {metrics['eval_tool_call_parsed']:.2f}  "
        f"({count} prompts)"
    )


def print_kinds(rows: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print what the rows are: how many turns call one tool, several, or none."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("assistant turns")
    table.add_column("training", justify="right")
    table.add_column("held out", justify="right")
    counts = [Counter(_kind(message) for row in part for message in _answers(row)) for part in (rows, held_out)]
    for kind in ("one call", "several calls", "no call"):
        table.add_row(kind, f"{counts[0][kind]:,}", f"{counts[1][kind]:,}")
    console.print(table)


def print_results(before: GenerationResult, after: GenerationResult, console: Console) -> None:
    """Print accuracy before and after the training, by kind of turn, with 95% intervals."""
    table = Table(title="Tool calls on held-out prompts, exact match", title_justify="left", header_style="bold")
    table.add_column("turn")
    table.add_column("prompts", justify="right")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("95% interval", justify="right")
    for kind in ("one call", "several calls", "no call"):
        _add_result(table, kind, _of_kind(before, kind), _of_kind(after, kind))
    table.add_section()
    _add_result(table, "all with a call", _with_call(before), _with_call(after))
    _add_result(table, "all", before.samples, after.samples, style="bold")
    console.print(table)


def print_samples(result: GenerationResult, console: Console, count: int = 6) -> None:
    """Print expected and generated turns side by side, the wrong ones first, since they say more."""
    ordered = sorted(result.samples, key=lambda sample: sample.score.exact_match)
    wrong = [sample for sample in ordered if not sample.score.exact_match][: count // 2]
    right = [sample for sample in ordered if sample.score.exact_match][: count - len(wrong)]
    table = Table(title="Samples", title_justify="left", header_style="bold", show_lines=True)
    table.add_column("request", ratio=2)
    table.add_column("expected", ratio=3, overflow="fold")
    table.add_column("generated", ratio=3, overflow="fold")
    table.add_column("", width=5)
    for sample in [*right, *wrong]:
        verdict = "[green]right[/]" if sample.score.exact_match else "[red]wrong[/]"
        generated = _calls(sample.parsed.tool_calls) or sample.parsed.content
        table.add_row(
            escape(sample.prompt[-1]["content"]),
            escape(_calls(sample.expected_calls) or sample.expected_text),
            escape(generated if sample.parsed.error is None else sample.predicted_text),
            verdict,
        )
    console.print(table)


def _add_result(
    table: Table, name: str, before: Sequence[TurnSample], after: Sequence[TurnSample], style: str = ""
) -> None:
    if not after:
        return
    right = [sum(sample.score.exact_match for sample in samples) for samples in (before, after)]
    low, high = wilson_interval(right[1], len(after))
    table.add_row(
        name,
        str(len(after)),
        f"{right[0] / len(before):.2f}",
        f"{right[1] / len(after):.2f}",
        f"{low:.2f} to {high:.2f}",
        style=style,
    )


def _of_kind(result: GenerationResult, kind: str) -> list[TurnSample]:
    return [sample for sample in result.samples if _kind({"tool_calls": sample.expected_calls}) == kind]


def _with_call(result: GenerationResult) -> list[TurnSample]:
    return [sample for sample in result.samples if sample.expected_calls]


def _answers(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [message for message in row["messages"] if message["role"] == "assistant"]


def _kind(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls") or []
    return "no call" if not calls else "one call" if len(calls) == 1 else "several calls"


def _calls(calls: Sequence[Mapping[str, Any]]) -> str:
    """Return calls as a person reads them: `name(argument=value)`, one a line."""
    lines = []
    for call in calls:
        arguments = call["function"]["arguments"]
        written = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
        lines.append(f"{call['function']['name']}({written})")
    return "\n".join(lines)
