from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._sinks.records import MetricsRecord, Run, json_line, now, turn_records
from deepfabric_trainer.callbacks._sinks.run_file import RunFile
from deepfabric_trainer.callbacks._sinks.sink import Sink


class JsonLinesSink(Sink):
    """`metrics.jsonl`, `samples.jsonl`, `tables.jsonl` and `events.jsonl` in the run's folder.

    A new run sets aside the files that it finds; a resumed one goes on in them; evaluations outside of a run leave
    them alone and write to files of their own.

    Args:
        run (`Run`): The run.
    """

    title = "the JSON lines"

    def __init__(self, run: Run) -> None:
        self.run = run
        self._epoch: float | None = None
        self._files = {
            name: RunFile(run.folder / f"{name}.jsonl", run.run_id)
            for name in ("metrics", "samples", "tables", "events")
        }

    def begin(self, args: Any, state: Any, model: Any) -> None:
        """Make room for the run's lines, and say where it starts."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        self._epoch = state.epoch
        evidence: dict[str, Any] = {"max_steps": state.max_steps}
        if self.run.step:
            found = {name: file.go_on_from(self.run.step) for name, file in self._files.items()}
            evidence["resumed_from"] = {"run_id": found["events"][0], "step": self.run.step}
            evidence["superseded_lines"] = {name: count for name, (_, count) in found.items() if count}
            message = f"training goes on from step {self.run.step}"
        else:
            aside = [file.set_aside() for file in self._files.values()]
            evidence["set_aside"] = [name for name in aside if name]
            message = "training begins"
        self.event(RunEvent("run_start", self.run.step, message, evidence, severity="info"))

    def metrics(self, record: MetricsRecord) -> None:
        """Write one line."""
        self._epoch = record.epoch
        line = {"source": record.source, "metrics": record.values}
        self._write("metrics", record.step, record.epoch, [line], time=record.time)

    def measurement(self, result: GenerationResult) -> None:
        """Write a line a turn, and one of the table."""
        epoch = self._epoch if result.epoch is None else result.epoch
        self._write("samples", result.step, epoch, turn_records(result))
        if result.table is not None:
            self._write("tables", result.step, epoch, [{**asdict(result.table), "seconds": result.seconds}])

    def event(self, event: RunEvent) -> None:
        """Write one line."""
        fields = {name: value for name, value in vars(event).items() if name != "step"}
        self._write("events", event.step, self._epoch, [fields])

    def end(self, state: Any) -> None:
        """Say how the run ended."""
        self._epoch = state.epoch
        evidence = {"best_metric": state.best_metric, "best_model_checkpoint": state.best_model_checkpoint}
        self.event(RunEvent("run_end", state.global_step, "training ended", evidence, severity="info"))

    def _write(
        self, name: str, step: int, epoch: float | None, lines: Sequence[Mapping[str, Any]], time: str | None = None
    ) -> None:
        head = {"run_id": self.run.run_id, "step": step, "epoch": epoch, "time": time or now()}
        if lines:
            self._files[name].append([json_line({**head, **line}) for line in lines])
