"""What the logger writes about a run, as plain values, and any value as one line of strict JSON."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepfabric_trainer.callbacks._measurements import GenerationResult, TurnSample

_DEEPEST = 50
# Line ends of Unicode that JSON leaves alone and `str.splitlines` does not.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def now() -> str:
    """Return the time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Run:
    """One call of `train()`, or evaluations outside of one.

    Args:
        run_id (`str`): A random UUID.
        folder (`Path`): The output folder.
        step (`int`): The global step at its start; above 0 in a resumed run.
        training (`bool`): Whether it trains.
    """

    run_id: str
    folder: Path
    step: int
    training: bool


@dataclass(frozen=True)
class MetricsRecord:
    """Metrics of one moment.

    Args:
        source (`str`): `"log"`: the trainer logged them; `"generation"`: measured by generation and not logged by the
            trainer at this step; `"evaluate"`: added to an evaluation after it was logged; `"predict"`.
        step (`int`): The global step.
        epoch (`float`, *optional*): The epoch.
        values (`dict[str, Any]`): The metrics as logged.
        time (`str`): When, ISO 8601 in UTC.
    """

    source: str
    step: int
    epoch: float | None
    values: dict[str, Any]
    time: str = field(default_factory=now)


def turn_record(sample: TurnSample) -> dict[str, Any]:
    """Return a generated turn beside the recorded one, as JSON can hold it."""
    return {
        "row": sample.row,
        "prompt": sample.prompt,
        "expected_text": sample.expected_text,
        "expected_calls": sample.expected_calls,
        "predicted_text": sample.predicted_text,
        "predicted_content": sample.parsed.content,
        "predicted_reasoning": sample.parsed.reasoning,
        "predicted_calls": sample.parsed.tool_calls,
        "error": sample.parsed.error,
        "score": dataclasses.asdict(sample.score),
    }


def turn_records(result: GenerationResult) -> list[dict[str, Any]]:
    """Return the turns of a measurement, then those of the conversations that were played, each with its place."""
    records = [{"conversation": None, **turn_record(sample)} for sample in result.samples]
    for replay in result.replays:
        place = {"turns": replay.turns, "turns_right": replay.turns_right, "success": replay.success}
        records += [
            {"conversation": {"turn": turn, **place}, **turn_record(sample)}
            for turn, sample in enumerate(replay.samples)
        ]
    return records


def json_line(record: Mapping[str, Any]) -> bytes:
    r"""Return a record as one line of strict JSON in UTF-8.

    NaN and the infinities become the strings `"NaN"`, `"Infinity"` and `"-Infinity"`, scalars of torch and NumPy
    numbers, and what JSON does not know its `str`. Letters outside ASCII stay as they are.

    Example:
    ```python
    >>> json_line({"loss": float("nan"), "city": "Köln"}).decode()
    '{"loss": "NaN", "city": "Köln"}\n'

    ```
    """
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        record = plain(record)
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        return (text.translate(_LINE_ENDS) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can hold
        return (json.dumps(record, allow_nan=False) + "\n").encode()


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as what strict JSON holds; see `json_line`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if depth >= _DEEPEST:
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth + 1) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name), depth + 1) for item in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # tensors and arrays; a scalar's is a number
        return plain(value.tolist(), depth + 1)
    return str(value)
