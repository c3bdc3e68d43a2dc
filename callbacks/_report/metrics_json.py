"""`metrics.json`: a run as strict JSON, and what a resumed run reads of it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._report.record import RunRecord
from deepfabric_trainer.callbacks._report.verdict import verdict_of

_Item = TypeVar("_Item")

FORMAT = 1
"""Counts up when a reader must know better."""
_MOST_LOGS = 2000
"""Training logs that are kept, evenly spread; evaluations and measurements are kept besides."""
_MOST_EVALUATIONS = 2000


def render_json(record: RunRecord) -> str:
    """Return a run as JSON: verdict, last metrics, measurements, events, history, settings, environment.

    Numbers that JSON has no word for are the texts `"NaN"`, `"Infinity"` and `"-Infinity"`.
    """
    verdict = verdict_of(record)
    history = _thinned(record.history)
    last: dict[str, Any] = {}
    for entry in history:
        last.update(entry)
    content = {
        "format": FORMAT,
        "verdict": {"finding": verdict.finding, "sentence": verdict.sentence, "remarks": verdict.remarks},
        "status": record.status,
        "error": record.error,
        "step": record.step,
        "max_steps": record.max_steps,
        "started": record.started.isoformat(timespec="seconds"),
        "written": record.written.isoformat(timespec="seconds"),
        "metrics": last,
        "measurements": [_without_metrics(one) for one in record.measurements],
        "best": {"step": record.best_step, "checkpoint": record.best_checkpoint, "metric": record.best_metric},
        "checkpoints": record.checkpoints,
        "events": [asdict(event) for event in record.events],
        "tokens_per_second": _spread(record.speeds, _MOST_LOGS),
        "data": dict(record.data),
        "settings": record.settings,
        "environment": record.environment,
        "history": history,
        "history_left_out": len(record.history) - len(history),
    }
    return json.dumps(_strict(content), ensure_ascii=True, allow_nan=False, indent=1) + "\n"


@dataclass(frozen=True)
class Earlier:
    """What an earlier part of a run has left behind.

    Args:
        started (`datetime`, *optional*): When it began.
        events (`list[RunEvent]`): What happened.
        speeds (`list[tuple[int, float]]`): Steps and tokens per second.
    """

    started: datetime | None = None
    events: list[RunEvent] = field(default_factory=list)
    speeds: list[tuple[int, float]] = field(default_factory=list)


def read_earlier(path: Path, last_step: int) -> Earlier:
    """Read what a run wrote up to a step; nothing where there is no such file, or it is no report's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {one.name for one in fields(RunEvent)}
        events = [RunEvent(**{name: event[name] for name in known & set(event)}) for event in content["events"]]
        return Earlier(
            started=datetime.fromisoformat(content["started"]),
            events=[event for event in events if event.step <= last_step],
            speeds=[(int(step), float(speed)) for step, speed in content["tokens_per_second"] if step <= last_step],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Earlier()


def _without_metrics(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("step", "exact_match", "low", "high", "turns")}


def _thinned(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    is_evaluation = [any(name.startswith("eval") or "_tool_call_" in name for name in entry) for entry in history]
    kept = set(_spread([at for at, is_one in enumerate(is_evaluation) if is_one], _MOST_EVALUATIONS))
    kept |= set(_spread([at for at, is_one in enumerate(is_evaluation) if not is_one], _MOST_LOGS))
    return [history[at] for at in sorted(kept)]


def _spread(items: Sequence[_Item], most: int) -> Sequence[_Item]:
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_strict(item) for item in value]
    return _strict(value.item()) if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else str(value)
