import math
import sys
from collections.abc import Mapping
from typing import Any

from transformers.integrations.integration_utils import rewrite_logs

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._sinks import dashboard
from deepfabric_trainer.callbacks._sinks.records import MetricsRecord, Run
from deepfabric_trainer.callbacks._sinks.sink import Sink

_MOST_EVENTS = 200


class WandbSink(Sink):
    """Tables, missing metrics and best values, in the W&B run that transformers' own callback has started.

    Keys: `deepfabric/samples`, `deepfabric/tools`, `deepfabric/confusions`, `deepfabric/events` (tables), the metrics
    under the names that transformers gives them, `best/...` and `best_step/...` in the summary, and
    `deepfabric.run_id` in the config.

    Args:
        run (`Run`): The run.
        samples_per_log (`int`): How many turns of a measurement to show.
    """

    title = "W&B"

    def __init__(self, run: Run, samples_per_log: int) -> None:
        self.run = run
        self.samples_per_log = samples_per_log
        self._best: dict[str, tuple[float, int]] = {}
        self._larger_is_better: dict[str, bool] = {}
        self._events: list[RunEvent] = []
        self._configured: Any = None

    def begin(self, args: Any, state: Any, model: Any) -> None:
        """Know the best so far, in a resumed run."""
        if metric := args.metric_for_best_model:
            name = metric if metric.startswith("eval_") else f"eval_{metric}"
            self._larger_is_better[name] = bool(args.greater_is_better)
        for entry in state.log_history:
            self._find_better(entry, entry.get("step", 0))

    def metrics(self, record: MetricsRecord) -> None:
        """Log what the trainer has not logged, and keep the best in the summary."""
        if record.source in dashboard.NOT_LOGGED_BY_THE_TRAINER:
            self._log(record.step, rewrite_logs(dashboard.scalars(record.values)))
        wandb_run = self._wandb_run()
        better = self._find_better(record.values, record.step)
        if wandb_run is not None and better:
            wandb_run.summary.update(_summary(better))

    def measurement(self, result: GenerationResult) -> None:
        """Log the samples and the calls by tool as tables."""
        step = result.step
        samples = [dashboard.sample_row(step, sample) for sample in result.samples[: self.samples_per_log]]
        tables = {"samples": (dashboard.SAMPLE_COLUMNS, samples)}
        if result.table is not None:
            tools = [[step, tool.name, tool.support, tool.called, tool.right] for tool in result.table.tools]
            pairs = [[step, pair.expected, pair.called, pair.count] for pair in result.table.confusions]
            tables["tools"] = (dashboard.TOOL_COLUMNS, tools)
            tables["confusions"] = (dashboard.CONFUSION_COLUMNS, pairs)
        self._log_tables(step, {name: table for name, table in tables.items() if table[1]})

    def event(self, event: RunEvent) -> None:
        """Log the table of the run's latest events anew: W&B shows the last of a key."""
        self._events = [*self._events, event][-_MOST_EVENTS:]
        rows = [dashboard.event_row(known) for known in self._events]
        self._log_tables(event.step, {"events": (dashboard.EVENT_COLUMNS, rows)})

    def _log_tables(self, step: int, tables: dict[str, tuple[list[str], list[list[Any]]]]) -> None:
        if self._wandb_run() is None or not tables:
            return
        import wandb

        made = {
            f"deepfabric/{name}": wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)
            for name, (columns, rows) in tables.items()
        }
        self._log(step, made)

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if wandb_run := self._wandb_run():
            wandb_run.log({**values, "train/global_step": step})

    def _wandb_run(self) -> Any:
        """Return the run of this process, `None` where none has been started."""
        wandb_run = getattr(sys.modules.get("wandb"), "run", None)
        if wandb_run is not None and wandb_run is not self._configured:
            self._configured = wandb_run
            wandb_run.config.update({"deepfabric": {"run_id": self.run.run_id}}, allow_val_change=True)
            wandb_run.summary.update(_summary(self._best))
        return wandb_run

    def _find_better(self, values: Mapping[str, Any], step: int) -> dict[str, tuple[float, int]]:
        """Return the values that are the best of their names so far, with their step."""
        better = {}
        for name, value in dashboard.scalars(values).items():
            larger = self._larger_is_better.get(name, dashboard.larger_is_better(name))
            best = self._best.get(name, (math.nan, 0))[0]
            improves = value > best if larger else value < best
            if larger is not None and not math.isnan(value) and (math.isnan(best) or improves):
                better[name] = (value, step)
        self._best |= better
        return better


def _summary(best: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    values = {f"best/{name}": value for name, (value, _) in best.items()}
    return values | {f"best_step/{name}": step for name, (_, step) in best.items()}
