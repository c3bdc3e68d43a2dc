"""Reasoning in any of the shapes it comes in, as text."""

from collections.abc import Mapping
from typing import Any

from deepfabric_trainer.errors import DataFormatError

_STEP_KEYS = ("thought", "reasoning", "content", "text", "thinking")


def reasoning_text(value: Any, path: str) -> str:
    """Return reasoning as text: the text itself, the `content` of an object, or the steps of a list, a line each.

    Args:
        value (`Any`): Text, a list of steps, `{"content": ...}` of either, or null; of plain JSON values.
        path (`str`): Its place in the row.

    Returns:
        `str`: Empty if there is none.

    Raises:
        DataFormatError: If it is anything else.
    """
    if isinstance(value, Mapping):
        value, path = value.get("content"), f"{path}.content"
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_step_text(step, f"{path}[{index}]") for index, step in enumerate(value))
    raise DataFormatError(
        f"the reasoning is of type {type(value).__name__}",
        expected='text, or {"style": ..., "content": text or list of steps}',
        fix="write the reasoning as text, or null if there is none",
        path=path,
    )


def _step_text(step: Any, path: str) -> str:
    if isinstance(step, str):
        return step
    if isinstance(step, Mapping):
        for key in _STEP_KEYS:
            if isinstance(step.get(key), str) and step[key]:
                return str(step[key])
    raise DataFormatError(
        f"the step is of type {type(step).__name__}, without a text",
        expected="text, or an object with `thought`",
        fix="write the step's `thought`, or remove the step",
        path=path,
    )
