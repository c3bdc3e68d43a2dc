"""Measured turns as text for a terminal: what was expected beside what was generated."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from deepfabric_trainer.callbacks._measurements import GenerationResult, TurnSample

_WIDTH = 160
"""Characters of a text that are shown."""


def describe(result: GenerationResult, count: int) -> str:
    """Return a measurement in a few lines: its metrics, then some samples, right and wrong ones marked.

    Everything that a model or a row wrote is escaped, so that it cannot speak to the terminal.

    Args:
        result (`GenerationResult`): The measurement.
        count (`int`): How many samples.
    """
    lines = [f"step {result.step}: {', '.join(_numbers(result.metrics))}"]
    for sample in islice(result.samples, count):
        lines += _describe_sample(sample)
    return "\n".join(lines)


def _numbers(metrics: Mapping[str, float]) -> Iterator[str]:
    """Go over metrics, each with its interval behind it where it has one."""
    bounds = {f"{name}_{bound}" for name in metrics for bound in ("low", "high")}
    for name, value in metrics.items():
        if f"{name}_low" in metrics:
            low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
            yield f"{name} {value:.4g} ({low:.2g} to {high:.2g})"
        elif name not in bounds:
            yield f"{name} {value:.4g}"


def _describe_sample(sample: TurnSample) -> list[str]:
    verdict = "right" if sample.score.exact_match else "WRONG"
    made, error = sample.parsed.tool_calls, sample.parsed.error
    generated = _calls(made) if made and error is None else [_text(sample.predicted_text)]
    if error is not None:
        generated.append(f"cannot be read: {_text(error)}")
    return [
        f"  row {sample.row}, message {len(sample.prompt)}: {verdict}",
        *_column("expected", _calls(sample.expected_calls) or [_text(sample.expected_text)]),
        *_column("generated", generated),
    ]


def _column(heading: str, lines: Sequence[str]) -> list[str]:
    return [f"    {heading if not number else '':<9}  {line}" for number, line in enumerate(lines)]


def _calls(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_call(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return _printable(f"{name}({given})")


def _text(text: str) -> str:
    return _printable(repr(text))


def _printable(text: str) -> str:
    escaped = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return escaped if len(escaped) <= _WIDTH else f"{escaped[:_WIDTH]} ... ({len(escaped)} characters)"
