"""What is known of a run at one moment: all that a report is made of."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.toolcalls import wilson_interval

_EXACT_MATCH = "_tool_call_exact_match"


class RunStatus(StrEnum):
    """How far a run has come."""

    RUNNING = "running"
    """It goes on, or it was killed without a chance to say so."""
    FINISHED = "finished"
    """It came to its end, or was stopped early."""
    INTERRUPTED = "interrupted"
    """A signal or an exit that somebody asked for ended it."""
    ENDED = "ended unexpectedly"
    """An exception ended it."""


@dataclass(frozen=True)
class Measurement:
    """Exact match of tool calls at one step.

    Args:
        step (`int`): The global step.
        exact_match (`float`): A share of the turns.
        low (`float`): Lower bound of the 95% interval.
        high (`float`): Upper bound.
        turns (`int`, *optional*): How many turns were generated.
        metrics (`Mapping[str, float]`): All of that moment, named without the prefix: `"false_call"`, ...
    """

    step: int
    exact_match: float
    low: float
    high: float
    turns: int | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """A run at one moment.

    Args:
        status (`RunStatus`): How far it has come.
        step (`int`): The global step.
        max_steps (`int`): The planned number of steps.
        started (`datetime`): When training began, of a resumed run when it first began.
        written (`datetime`): The moment.
        history (`Sequence[Mapping[str, Any]]`): The logs in their order, each with `step`.
        events (`Sequence[RunEvent]`): What happened, in its order.
        error (`str`, *optional*): What ended it, if that is known.
        results (`Sequence[GenerationResult]`): The first and the latest measurement of this process, if any,
            of those with the prefix `measured_prefix`.
        speeds (`Sequence[tuple[int, float]]`): Steps, and the tokens per second up to them.
        best_step (`int`, *optional*): The step of the checkpoint that the trainer holds for the best.
        best_checkpoint (`str`, *optional*): Its folder.
        best_metric (`str`, *optional*): By which metric.
        ends_with_best (`bool`): Whether the best checkpoint is loaded at the end.
        checkpoints (`Sequence[str]`): The folders of checkpoints there are, by step.
        is_adapter (`bool`): Whether they hold adapters of PEFT.
        output_dir (`str`): The folder of the run.
        data (`Sequence[tuple[str, str]]`): What is known of the data, as pairs of a name and a fact.
        settings (`Mapping[str, str]`): Training arguments that are not the default, without secrets.
        environment (`Mapping[str, str]`): Versions, device, memory, command.
        seconds (`float`, *optional*): How long it took so far. `None`: as long as the clock on the wall says, which
            somebody may have set meanwhile.
    """

    status: RunStatus
    step: int
    max_steps: int
    started: datetime
    written: datetime
    history: Sequence[Mapping[str, Any]] = ()
    events: Sequence[RunEvent] = ()
    error: str | None = None
    results: Sequence[GenerationResult] = ()
    speeds: Sequence[tuple[int, float]] = ()
    best_step: int | None = None
    best_checkpoint: str | None = None
    best_metric: str | None = None
    ends_with_best: bool = False
    checkpoints: Sequence[str] = ()
    is_adapter: bool = False
    output_dir: str = ""
    data: Sequence[tuple[str, str]] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def duration(self) -> float:
        """How long it took so far (seconds)."""
        return (self.written - self.started).total_seconds() if self.seconds is None else self.seconds

    @property
    def stopped_early(self) -> bool:
        """Whether it finished before its last step."""
        return self.status is RunStatus.FINISHED and 0 < self.step < self.max_steps

    @cached_property
    def columns(self) -> dict[str, list[tuple[int, float]]]:
        """The steps and values of each logged number, NaN and infinities included."""
        found: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for entry in self.history:
            step = int(entry.get("step") or 0)
            for name, value in entry.items():
                if isinstance(value, (int, float)) and value is not True and value is not False:
                    found[name].append((step, value))
        return dict(found)

    @cached_property
    def measured_prefix(self) -> str | None:
        """What stands before `_tool_call_exact_match` in the logs, `"eval"` before others; `None`: nowhere."""
        prefixes = sorted(name.removesuffix(_EXACT_MATCH) for name in self.columns if name.endswith(_EXACT_MATCH))
        return "eval" if "eval" in prefixes else next(iter(prefixes), None)

    @cached_property
    def measurements(self) -> list[Measurement]:
        """The measurements of tool calls, one a step, the last of each; failed ones (NaN) are left out."""
        begin = f"{self.measured_prefix}_tool_call_"
        by_step: dict[int, dict[str, float]] = {}
        for name in self.columns:
            if name.startswith(begin):
                for step, value in self.columns[name]:
                    by_step.setdefault(step, {})[name.removeprefix(begin)] = value
        found = [_measurement(step, metrics) for step, metrics in sorted(by_step.items())]
        return [one for one in found if one is not None]

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return a metric by rising step, the last value of each: a run may go back and log again."""
        return sorted(dict(self.columns.get(name, ())).items())


def _measurement(step: int, metrics: Mapping[str, float]) -> Measurement | None:
    exact = metrics.get("exact_match", math.nan)
    if not math.isfinite(exact):
        return None
    turns = metrics.get("turns")
    low, high = metrics.get("exact_match_low"), metrics.get("exact_match_high")
    if low is None or high is None:
        low, high = wilson_interval(round(exact * (turns or 0)), round(turns or 0))
    return Measurement(step, exact, low, high, None if turns is None else round(turns), metrics)
