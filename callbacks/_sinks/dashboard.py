"""What dashboards are shown of a run: cells of tables that a person can read, and the best value of a metric."""

import json
import math
from collections.abc import Mapping
from typing import Any

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._measurements import TurnSample
from deepfabric_trainer.callbacks._sinks.records import plain

LONGEST_CELL = 4000
NOT_LOGGED_BY_THE_TRAINER = ("generation", "evaluate")
"""The sources of metrics that the integrations of transformers never see."""

SAMPLE_COLUMNS = ["step", "row", "prompt", "expected", "generated", "exact_match", "error"]
EVENT_COLUMNS = ["step", "severity", "kind", "message", "cause", "advice", "action", "evidence"]
TOOL_COLUMNS = ["step", "tool", "support", "called", "right"]
CONFUSION_COLUMNS = ["step", "expected", "called", "count"]

_LARGER_IS_BETTER = (
    "exact_match",
    "name",
    "arguments",
    "schema_valid",
    "decision",
    "parsed",
    "overall_score",
    "success",
)
_SMALLER_IS_BETTER = ("loss", "false_call", "missed_call")


def sample_row(step: int, sample: TurnSample) -> list[Any]:
    """Return the cells of `SAMPLE_COLUMNS`; of the prompt the last message is shown."""
    prompt = sample.prompt[-1] if sample.prompt else {}
    return [
        step,
        sample.row,
        clip(f"{prompt.get('role', '')}: {prompt.get('content', '')}"),
        clip(_turn(sample.expected_text, sample.expected_calls)),
        clip(sample.predicted_text),
        sample.score.exact_match,
        clip(sample.parsed.error or ""),
    ]


def event_row(event: RunEvent) -> list[Any]:
    """Return the cells of `EVENT_COLUMNS`."""
    evidence = json.dumps(plain(event.evidence), ensure_ascii=False)
    texts = [event.severity, event.kind, event.message, event.cause, event.advice, event.action, evidence]
    return [event.step, *(clip(text) for text in texts)]


def clip(text: str) -> str:
    """Return a text that a cell can hold; what is left out is counted."""
    if len(text) <= LONGEST_CELL:
        return text
    return f"{text[:LONGEST_CELL]}… ({len(text) - LONGEST_CELL:,} more characters)"


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that are one number each, as Python's."""
    numbers = {name: value.item() if _is_scalar_array(value) else value for name, value in values.items()}
    return {name: value for name, value in numbers.items() if isinstance(value, (int, float))}


def larger_is_better(name: str) -> bool | None:
    """Return whether larger values of an evaluation's metric are better, `None` where the name does not tell."""
    if name.startswith("eval_") and name.endswith(_SMALLER_IS_BETTER):
        return False
    if name.startswith("eval_tool_call_") and name.endswith(_LARGER_IS_BETTER):
        return True
    return None


def _is_scalar_array(value: Any) -> bool:
    return hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1


def _turn(text: str, calls: list[dict[str, Any]]) -> str:
    """Return a recorded turn as text, a call a line."""
    functions = [json.dumps(plain(call.get("function", call)), ensure_ascii=False) for call in calls]
    return "\n".join([text, *functions] if text else functions)
