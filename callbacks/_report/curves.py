"""Which curves the logs of a run make."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deepfabric_trainer.callbacks._report.chart import Chart, Line, Mark, draw
from deepfabric_trainer.callbacks._report.record import RunRecord

_EVENT_SIGNS = {"info": "i", "warning": "!", "critical": "✕"}
_MOST_MARKS = 40
_EVAL_LOSS = re.compile(r"eval_(?:\w+_)?loss")
_REGIONS = ("tool_name", "tool_arguments", "content", "reasoning", "format", "stop")
_TURNS_RIGHT = {"name": "right tool", "schema_valid": "valid by schema", "decision": "right to call or not"}
_TURNS_WRONG = {"false_call": "false calls", "missed_call": "missed calls"}


def curves(record: RunRecord) -> list[Chart]:
    """Return the charts of a run, those that say most first; a chart whose metrics were not logged is left out."""
    marks = _marks(record)
    evaluations = sorted(
        name for name in record.columns if _EVAL_LOSS.fullmatch(name) and not name.startswith(_region_losses())
    )

    def lines(labels: Mapping[str, str], *, dotted: bool = False) -> list[Line]:
        return [Line(label, record.series(name), dotted=dotted) for name, label in labels.items()]

    def chart(title: str, of: Sequence[Line], **options: Any) -> Chart | None:
        return draw(title, of, last_step=record.step, marks=marks, **options)

    prefix = f"{record.measured_prefix}_tool_call_"
    wrong = {f"{prefix}{name}": label for name, label in _TURNS_WRONG.items()}
    malformed = [(step, 1 - value) for step, value in record.series(f"{prefix}parsed")]
    accuracy = {f"eval_token_accuracy_{region}": region.replace("_", " ") for region in _REGIONS}
    losses = {f"{begin}{region}": region.replace("_", " ") for begin in _region_losses() for region in _REGIONS}
    found = [
        chart("Exact match of tool calls, with 95% intervals", _exact_match(record), share=True),
        chart(
            "How turns are right",
            lines({f"{prefix}{name}": label for name, label in _TURNS_RIGHT.items()}, dotted=True),
            share=True,
        ),
        chart(
            "How turns are wrong", [*lines(wrong, dotted=True), Line("malformed", malformed, dotted=True)], share=True
        ),
        chart(
            "Loss",
            [*lines({"loss": "training"}), *lines({name: _evaluation(name) for name in evaluations}, dotted=True)],
            may_be_log=True,
        ),
        chart("Token accuracy by region", lines(accuracy, dotted=True), share=True),
        chart("Loss by region", lines(losses, dotted=True), may_be_log=True),
        chart("Learning rate", lines({"learning_rate": "learning rate"}), from_zero=True),
        chart("Gradient norm", lines({"grad_norm": "gradient norm"}), may_be_log=True),
        chart("Tokens per second", [Line("tokens per second", list(record.speeds))], from_zero=True),
    ]
    return [one for one in found if one is not None]


def other_metrics(record: RunRecord) -> list[tuple[str, int, float, float, float, float]]:
    """Return every metric that was logged: its name, how often, first, last, least and greatest finite value."""
    rows = []
    for name in sorted(set(record.columns) - {"step", "epoch"}):
        values = [value for _, value in record.columns[name]]
        finite = [value for value in values if abs(value) < float("inf")]
        if finite:
            rows.append((name, len(values), values[0], values[-1], min(finite), max(finite)))
    return rows


def _exact_match(record: RunRecord) -> list[Line]:
    measured = record.measurements
    points = [(one.step, one.exact_match) for one in measured]
    return [Line("exact match", points, [one.low for one in measured], [one.high for one in measured], dotted=True)]


def _marks(record: RunRecord) -> list[Mark]:
    marks = [
        Mark(event.step, _EVENT_SIGNS.get(event.severity, "!"), f"step {event.step:,}: {event.message}")
        for event in record.events[-_MOST_MARKS:]
    ]
    if record.best_step is not None:
        marks.append(Mark(record.best_step, "best", f"step {record.best_step:,}: the best checkpoint"))
    return marks


def _evaluation(name: str) -> str:
    middle = name.removeprefix("eval_").removesuffix("loss").strip("_")
    return f"evaluation {middle}".strip()


def _region_losses() -> tuple[str, ...]:
    return ("eval_loss_", "eval_token_loss_")
