"""A run as one HTML page that needs nothing else, and as a short Markdown text."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from deepfabric_trainer.callbacks._report.chart import short
from deepfabric_trainer.callbacks._report.curves import curves, other_metrics
from deepfabric_trainer.callbacks._report.record import Measurement, RunRecord, RunStatus
from deepfabric_trainer.callbacks._report.samples import Outcome, compare_samples
from deepfabric_trainer.callbacks._report.text import cut
from deepfabric_trainer.callbacks._report.verdict import Finding, verdict_of
from deepfabric_trainer.redaction import without_secrets
from deepfabric_trainer.visible import visible

_TONES = {Finding.IMPROVED: "good", Finding.WORSE: "bad", Finding.DIVERGED: "bad"}
_OUTCOME_SIGNS = {
    Outcome.RIGHT: "✓",
    Outcome.WRONG: "✗",
    Outcome.FALSE_CALL: "!",
    Outcome.MISSED_CALL: "○",
    Outcome.MALFORMED: "⚠",
}
_RELATION_SIGNS = {"equal": "=", "different": "≠", "missing": "−", "extra": "+"}
_MOST_EVENTS, _MOST_TOOLS, _MOST_REPLAYS, _MOST_METRICS = 100, 200, 60, 300
_LONGEST = 600
"""Characters of an event's sentence."""


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Advice:
    """How to go on: what for, and the code."""

    text: str
    code: str


def render_html(record: RunRecord) -> str:
    """Return the page. It loads nothing, and its policy allows its one script only.

    Args:
        record (`RunRecord`): The run.

    Returns:
        `str`: HTML. What the model wrote stands in it as text.
    """
    script, style = _asset("report.js"), _asset("report.css")
    result = record.results[-1] if record.results else None
    measured, verdict = record.measurements, verdict_of(record)
    return _template().render(
        script=Markup(script),
        style=Markup(style),
        policy="; ".join(
            [
                "default-src 'none'",
                f"script-src '{_hash(script)}'",
                f"style-src '{_hash(style)}'",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        record=record,
        verdict=verdict,
        tone=_TONES.get(verdict.finding, "neutral"),
        measured=[measured[0], _shown_last(record, measured)] if len(measured) > 1 else measured,
        tiles=_tiles(record, measured),
        charts=curves(record),
        others=other_metrics(record)[:_MOST_METRICS],
        events=record.events[-_MOST_EVENTS:],
        events_left_out=max(0, len(record.events) - _MOST_EVENTS),
        samples=compare_samples(record.results),
        table=result.table if result else None,
        most_tools=_MOST_TOOLS,
        replays=result.replays[:_MOST_REPLAYS] if result else [],
        replays_in_all=len(result.replays) if result else 0,
        advice=advice_for(record),
        outcome_signs=_OUTCOME_SIGNS,
        relation_signs=_RELATION_SIGNS,
    )


def render_markdown(record: RunRecord) -> str:
    """Return the run in a few lines of Markdown, for a pull request."""
    verdict = verdict_of(record)
    measured = record.measurements
    lines = [f"**{_plain(verdict.sentence)}**", ""]
    lines += [f"- {remark}" for remark in verdict.remarks]
    if measured:
        shown = measured if len(measured) <= 12 else [measured[0], *measured[-11:]]
        lines += ["", "| step | exact match | 95% interval | turns |", "|---:|---:|:---:|---:|"]
        lines += [
            f"| {one.step:,} | {one.exact_match:.2f} | {one.low:.2f}–{one.high:.2f} | {one.turns or ''} |"
            for one in shown
        ]
    tiles = [f"{tile.label} {tile.value}{f' ({tile.note})' if tile.note else ''}" for tile in _tiles(record, measured)]
    lines += ["", _plain(" · ".join(tiles))]
    loud = [event for event in record.events if event.severity != "info"][-5:]
    lines += ["", *(f"- step {event.step:,}: {_plain(event.message)}" for event in loud)] if loud else []
    return "\n".join(lines).strip() + "\n"


def advice_for(record: RunRecord) -> list[Advice]:
    """Say how to go on: resume, and load what the run has left."""
    advice = []
    last = record.checkpoints[-1] if record.checkpoints else None
    if record.status is not RunStatus.FINISHED and last is not None:
        advice.append(
            Advice(
                "Go on from the last checkpoint, with the same script:",
                f"trainer.train(resume_from_checkpoint={last!r})",
            )
        )
    chosen = record.best_checkpoint or last
    if chosen is None and record.status in (RunStatus.ENDED, RunStatus.INTERRUPTED):
        text = "No checkpoint was saved, so a new run begins anew; with these settings it keeps some:"
        return [Advice(text, 'save_strategy="steps", save_steps=100')]
    if chosen is None:
        text = "No checkpoint was saved yet; at the end of the run this saves the model:"
        return [Advice(text, f"trainer.save_model({record.output_dir!r})")]
    name, module = (
        ("AutoPeftModelForCausalLM", "peft") if record.is_adapter else ("AutoModelForCausalLM", "transformers")
    )
    which = "best" if record.best_checkpoint else "last"
    code = "\n".join(
        [
            *(
                [f"from {module} import {name}", "from transformers import AutoTokenizer"]
                if record.is_adapter
                else [f"from {module} import {name}, AutoTokenizer"]
            ),
            "",
            f"model = {name}.from_pretrained({chosen!r})",
            f"tokenizer = AutoTokenizer.from_pretrained({chosen!r})",
        ]
    )
    return [*advice, Advice(f"Load the {which} checkpoint:", code)]


def _tiles(record: RunRecord, measured: Sequence[Measurement]) -> list[Tile]:
    tiles = []
    if measured:
        first, last = measured[0], _shown_last(record, measured)
        compared = len(measured) > 1
        note = f"{first.exact_match:.2f} at first" if compared else ""
        tiles.append(Tile("Exact match", f"{last.exact_match:.2f}", note))
        for name, label in (("false_call", "False calls"), ("missed_call", "Missed calls"), ("parsed", "Malformed")):
            values = [_share(one, name) for one in (first, last)]
            if values[1] is not None:
                note = f"{values[0]:.2f} at first" if compared and values[0] is not None else ""
                tiles.append(Tile(label, f"{values[1]:.2f}", note))
    for name, label in (("loss", "Training loss"), ("eval_loss", "Evaluation loss")):
        points = record.series(name)
        if points:
            note = f"{short(points[0][1])} at first" if len(points) > 1 else ""
            tiles.append(Tile(label, short(points[-1][1]), note))
    tiles.append(Tile("Steps", f"{record.step:,}", f"of {record.max_steps:,}" if record.max_steps > 0 else ""))
    tiles.append(Tile("Time", duration(record.duration)))
    if record.speeds:
        tiles.append(Tile("Tokens per second", short(record.speeds[-1][1])))
    return tiles


def _share(one: Measurement, name: str) -> float | None:
    value = one.metrics.get(name)
    return 1 - value if name == "parsed" and value is not None else value


def _shown_last(record: RunRecord, measured: Sequence[Measurement]) -> Measurement:
    best = record.best_step if record.ends_with_best else None
    return next((one for one in measured if one.step == best), measured[-1])


def duration(seconds: float) -> str:
    """Return a time as a person says it: `48 s`, `12 min`, `3 h 05 min`."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    if minutes < 2:
        return f"{60 * minutes + rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M %z").strip()


def _plain(text: str) -> str:
    """Return text that Markdown takes for text."""
    one_line = " ".join(cut(without_secrets(text), _LONGEST).text.split())
    for character in "\\<>[]|*_`~#":
        one_line = one_line.replace(character, f"\\{character}")
    return one_line


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        shown=lambda text: cut(without_secrets(str(text)), _LONGEST).text,
        visible=lambda text: visible(str(text)),
        short=lambda value: short(float(value)),
        moment=_moment,
        cut=cut,
    )
    return environment.from_string(_asset("report.html.j2"))
