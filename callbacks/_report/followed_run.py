"""A run as a callback sees it go by, and what is known of its data."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import psutil

from deepfabric_trainer.callbacks._journal import Journal, RunEvent, journal_of
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._report.environment import describe_environment, non_default_settings
from deepfabric_trainer.callbacks._report.metrics_json import Earlier, read_earlier
from deepfabric_trainer.callbacks._report.record import RunRecord, RunStatus
from deepfabric_trainer.callbacks._throughput import Throughput
from deepfabric_trainer.redaction import without_secrets

_MOST_EVENTS = 1000
_MOST_REJECTS_READ = 100_000


class JournalReader:
    """Reads on in the journals of successive runs; a journal that goes on over two runs is read once."""

    def __init__(self) -> None:
        self._journal: Journal | None = None
        self._position = 0

    def has_news(self, control: Any) -> bool:
        """Tell whether there is anything new."""
        journal = journal_of(control)
        return journal is not self._journal or len(journal) > self._position

    def read(self, control: Any) -> list[RunEvent | GenerationResult]:
        """Return what is new."""
        journal = journal_of(control)
        if journal is not self._journal:
            self._journal, self._position = journal, 0
        news = journal.since(self._position)
        self._position += len(news)
        return news

    def rest(self) -> list[RunEvent | GenerationResult]:
        """Return what is new in the journal that was read last."""
        news = [] if self._journal is None else self._journal.since(self._position)
        self._position += len(news)
        return news


class FollowedRun:
    """What a report needs to know of a run, gathered while it goes by. It does not hold the trainer's state.

    Args:
        args (`TrainingArguments`): Of the run.
        state (`TrainerState`): At its beginning; of a resumed run the earlier part is read from `metrics.json`.
        model (`PreTrainedModel`, *optional*): The model that is trained.
        data (`list[tuple[str, str]]`): What is known of the data.
    """

    def __init__(self, args: Any, state: Any, model: Any, data: list[tuple[str, str]]) -> None:
        self.output_dir = Path(args.output_dir)
        resumed = state.global_step > 0
        earlier = read_earlier(self.output_dir / "metrics.json", state.global_step) if resumed else Earlier()
        now = datetime.now().astimezone()
        self.started = earlier.started or now
        self._seconds_before = max((now - self.started).total_seconds(), 0.0)
        self._began = monotonic()
        self.events = list(earlier.events)
        if resumed:
            self.events.append(RunEvent("resumed", state.global_step, "The run was resumed here.", severity="info"))
        self.speeds = list(earlier.speeds)
        self.throughput = Throughput()
        self._results: dict[str, list[GenerationResult]] = {}
        self.data = data
        self.settings = non_default_settings(args)
        self.environment = describe_environment(args, model)
        self.ends_with_best = bool(args.load_best_model_at_end)
        self.best_metric = args.metric_for_best_model
        self._trained: int | None = None
        self._saved = {step for step in _checkpoints(self.output_dir) if resumed and step <= state.global_step}
        self.observe(state)

    def observe(self, state: Any) -> None:
        """Take over what the trainer's state says."""
        self.history = state.log_history
        self.step, self.max_steps = state.global_step, state.max_steps
        self.best_checkpoint = state.best_model_checkpoint
        self.best_step = state.best_global_step

    def ended(self, state: Any) -> None:
        """Take it that training has ended: what is measured from here on is of the model that the run leaves."""
        is_best = self.ends_with_best and state.best_model_checkpoint is not None
        self._trained = len(state.log_history) if is_best else None

    def saved(self, step: int) -> None:
        """Note that a checkpoint was saved."""
        self._saved.add(step)

    def told(self, news: list[RunEvent | GenerationResult]) -> None:
        """Take over what the journal says; of measurements of a name the first and the latest are kept."""
        for entry in news:
            if isinstance(entry, GenerationResult):
                if self._trained is not None:
                    entry = replace(entry, step=self.best_step)
                self._results.setdefault(_prefix(entry), [])[1:] = [entry]
            else:
                self.events.append(entry)
        del self.events[:-_MOST_EVENTS]

    def logged(self, logs: Mapping[str, Any], step: int) -> None:
        """Take over the number of tokens from a log, if it has one."""
        tokens = logs.get("num_tokens")
        rate = self.throughput.rate(tokens) if isinstance(tokens, int | float) else None
        if rate is not None:
            self.speeds.append((step, rate))

    def record(self, status: RunStatus, error: str | None = None) -> RunRecord:
        """Return all of it as it is now."""
        there = _checkpoints(self.output_dir)
        checkpoints = [str(self.output_dir / f"checkpoint-{step}") for step in sorted(self._saved & there)]
        chosen = self.best_checkpoint or (checkpoints[-1] if checkpoints else None)
        return RunRecord(
            status=status,
            step=self.step,
            max_steps=self.max_steps,
            started=self.started,
            written=datetime.now().astimezone(),
            history=self._history(),
            events=self.events,
            error=None if error is None else without_secrets(error),
            results=self._results.get("eval") or self._results.get(min(self._results, default=""), []),
            speeds=self.speeds,
            best_step=self.best_step if self.best_checkpoint else None,
            best_checkpoint=self.best_checkpoint,
            best_metric=self.best_metric,
            ends_with_best=self.ends_with_best,
            checkpoints=checkpoints,
            is_adapter=chosen is not None and (Path(chosen) / "adapter_config.json").exists(),
            output_dir=str(self.output_dir),
            data=self.data,
            settings=self.settings,
            environment=self.environment,
            seconds=self._seconds_before + monotonic() - self._began,
        )

    def _history(self) -> list[Mapping[str, Any]]:
        """Return the logs; what was logged after training is of the step whose model the run leaves."""
        end = len(self.history) if self._trained is None else self._trained
        return [*self.history[:end], *({**entry, "step": self.best_step} for entry in self.history[end:])]


def describe_data(
    told: Mapping[str, Mapping[str, Any]] | None, output_dir: Path, train_dataloader: Any
) -> list[tuple[str, str]]:
    """Say what is known of the data: what the trainer told, or else what the loader and the folder of the run show.

    Args:
        told (`Mapping[str, Mapping[str, Any]]`, *optional*): For each dataset by name: `rows`, `examples`,
            `rejected` (numbers) and `remarks` (sentences); each may be missing.
        output_dir (`Path`): Where `rejected.jsonl` is.
        train_dataloader (`DataLoader`, *optional*): Gives the number of examples.

    Returns:
        `list[tuple[str, str]]`: Names and facts.
    """
    facts = []
    for name, report in (told or {}).items():
        facts += [
            (f"{name}: {what}", f"{report[what]:,}") for what in ("rows", "examples", "rejected") if what in report
        ]
        facts += [(f"{name}: remark", str(remark)) for remark in report.get("remarks") or ()]
    if not told:
        dataset: Any = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "__len__"):
            facts.append(("train: examples", f"{len(dataset):,}"))
    for path in sorted(output_dir.glob("rejected*.jsonl")):
        # An older file is of an earlier run.
        if ".previous" not in path.name and path.stat().st_mtime >= psutil.Process().create_time():
            facts.append((path.name, _rejects(path)))
    return facts


def _rejects(path: Path) -> str:
    rules: Counter[str] = Counter()
    rows = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            rows += 1
            if rows <= _MOST_REJECTS_READ:
                rules.update(_rules_of(line))
    counts = ", ".join(f"{count} {rule}" for rule, count in rules.most_common(8))
    return f"{rows:,} rows left out{f' ({counts})' if counts else ''}"


def _rules_of(line: str) -> set[str]:
    try:
        findings = json.loads(line)["findings"]
        return {str(finding["rule"]) for finding in findings if finding.get("severity") == "error"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


def _prefix(result: GenerationResult) -> str:
    """Return what stands before `_tool_call_...` in the names of its metrics."""
    return next((name.partition("_tool_call_")[0] for name in result.metrics if "_tool_call_" in name), "")


def _checkpoints(folder: Path) -> set[int]:
    names = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*") if path.is_dir()]
    return {int(name) for name in names if name.isdigit()}
