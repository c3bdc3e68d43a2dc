import sys
from typing import Any

from transformers.integrations.integration_utils import rewrite_logs

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._sinks import dashboard
from deepfabric_trainer.callbacks._sinks.records import MetricsRecord
from deepfabric_trainer.callbacks._sinks.sink import Sink


class TrackioSink(Sink):
    """Tables and missing metrics, in the Trackio run that transformers' own callback has started.

    It ends that run in its `on_train_end`: what comes later is in the JSON lines only.

    Args:
        samples_per_log (`int`): How many turns of a measurement to show.
    """

    title = "Trackio"

    def __init__(self, samples_per_log: int) -> None:
        self.samples_per_log = samples_per_log
        self._ended = False

    def metrics(self, record: MetricsRecord) -> None:
        """Log what the trainer has not logged."""
        if record.source in dashboard.NOT_LOGGED_BY_THE_TRAINER:
            self._log(record.step, rewrite_logs(dashboard.scalars(record.values)))

    def measurement(self, result: GenerationResult) -> None:
        """Log the samples and the calls by tool as tables."""
        step = result.step
        samples = [dashboard.sample_row(step, sample) for sample in result.samples[: self.samples_per_log]]
        self._log_table(step, "samples", dashboard.SAMPLE_COLUMNS, samples)
        if result.table is not None:
            tools = [[step, tool.name, tool.support, tool.called, tool.right] for tool in result.table.tools]
            self._log_table(step, "tools", dashboard.TOOL_COLUMNS, tools)

    def event(self, event: RunEvent) -> None:
        """Log a table of one row."""
        self._log_table(event.step, "events", dashboard.EVENT_COLUMNS, [dashboard.event_row(event)])

    def end(self, state: Any) -> None:
        """Know that the run may be over."""
        self._ended = True

    def _log_table(self, step: int, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        trackio: Any = sys.modules.get("trackio")
        if trackio is not None and rows:
            table = trackio.Table(data=[dict(zip(columns, row, strict=True)) for row in rows])
            self._log(step, {f"deepfabric/{name}": table})

    def _log(self, step: int, values: dict[str, Any]) -> None:
        trackio: Any = sys.modules.get("trackio")
        if trackio is not None and not self._ended:
            trackio.log({**values, "train/global_step": step})
