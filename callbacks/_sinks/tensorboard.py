import os
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import default_logdir, rewrite_logs

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._sinks import dashboard
from deepfabric_trainer.callbacks._sinks.records import MetricsRecord
from deepfabric_trainer.callbacks._sinks.sink import Sink


class TensorBoardSink(Sink):
    """Text and missing scalars, in the folder that transformers' own callback writes to.

    A trainer does not hand out that callback's writer, so this one has its own file beside it; TensorBoard shows the
    files of a folder as one run. The folder is known by the process that its files are named after.

    Args:
        output_dir (`Path`): The run's output folder.
        samples_per_log (`int`): How many turns of a measurement to show.
    """

    title = "TensorBoard"

    def __init__(self, output_dir: Path, samples_per_log: int) -> None:
        self.output_dir = output_dir
        self.samples_per_log = samples_per_log
        self._writer: Any = None

    def metrics(self, record: MetricsRecord) -> None:
        """Write what the trainer has not logged."""
        if record.source in dashboard.NOT_LOGGED_BY_THE_TRAINER:
            for name, value in rewrite_logs(dashboard.scalars(record.values)).items():
                self._open().add_scalar(name, value, record.step)
            self._open().flush()

    def measurement(self, result: GenerationResult) -> None:
        """Write the samples as text, and the calls by tool as a table."""
        for place, sample in enumerate(result.samples[: self.samples_per_log]):
            cells = zip(dashboard.SAMPLE_COLUMNS, dashboard.sample_row(result.step, sample), strict=True)
            self._open().add_text(f"samples/{place}", _as_text(dict(cells)), result.step)
        if result.table is not None:
            lines = ["    support  called  right  tool"]
            for tool in result.table.tools:
                lines.append(f"    {tool.support:7}  {tool.called:6}  {tool.right:5}  {tool.name}")
            self._open().add_text("tools", "\n".join(lines), result.step)
        self._open().flush()

    def event(self, event: RunEvent) -> None:
        """Write it as text."""
        cells = zip(dashboard.EVENT_COLUMNS, dashboard.event_row(event), strict=True)
        self._open().add_text(f"events/{event.kind}", _as_text(dict(cells)), event.step)
        self._open().flush()

    def end(self, state: Any) -> None:
        """Close the file; what comes later opens another."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(log_dir=str(self._folder()), filename_suffix=".deepfabric")
        return self._writer

    def _folder(self) -> Path:
        """Return the folder with the newest file of this process, a new one where there is none."""
        given = os.environ.get("TENSORBOARD_LOGGING_DIR")
        root = Path(given).expanduser() if given else self.output_dir
        files = sorted(root.rglob(f"events.out.tfevents.*.{os.getpid()}.*"), key=lambda file: file.stat().st_mtime)
        if files:
            return files[-1].parent
        return root if given else root / default_logdir()


def _as_text(cells: dict[str, Any]) -> str:
    """Return Markdown in which nothing is markup: each cell is a block of code."""
    parts = []
    for name, value in cells.items():
        lines = str(value).splitlines() or [""]
        parts.append(f"**{name}**\n\n" + "\n".join(f"    {line}" for line in lines))
    return "\n\n".join(parts)
