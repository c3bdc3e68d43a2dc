"""Reports that runs before have left in the same folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def set_aside_other_run(folder: Path, names: Iterable[str], step: int, history: Sequence[Mapping[str, Any]]) -> None:
    """Rename a report of another run, so that it is not overwritten.

    To a run that begins every report is another's. To a run that goes on it is when the losses differ that both have
    logged at a step.

    Args:
        folder (`Path`): The output folder of the run.
        names (`Iterable[str]`): The files that a report is made of.
        step (`int`): The global step from which the run goes on, 0 when it begins.
        history (`Sequence[Mapping[str, Any]]`): What the run has logged so far, each entry with `step`.

    Raises:
        OSError: If the folder does not let files be renamed.
    """
    try:
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        logged, stamp = _losses(content["history"]), str(content["started"])[:19].replace(":", "-")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    known = _losses(history)
    is_other = any(known[at] != loss for at, loss in logged.items() if at in known) if step else bool(logged)
    for path in (folder / name for name in names if is_other):
        if path.exists():
            path.rename(path.with_name(f"{path.stem}.{stamp}{path.suffix}"))


def _losses(history: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Return the training loss by step, as text, in which NaN equals itself."""
    return {int(entry["step"]): str(float(entry["loss"])) for entry in history if "loss" in entry and "step" in entry}
