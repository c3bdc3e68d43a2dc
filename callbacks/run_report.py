import logging
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from transformers import TrainerCallback

from deepfabric_trainer.callbacks._report.earlier_reports import set_aside_other_run
from deepfabric_trainer.callbacks._report.followed_run import FollowedRun, JournalReader, describe_data
from deepfabric_trainer.callbacks._report.metrics_json import render_json
from deepfabric_trainer.callbacks._report.page import render_html, render_markdown
from deepfabric_trainer.callbacks._report.record import RunRecord, RunStatus
from deepfabric_trainer.callbacks._unfinished import Unfinished, in_one_line, last_error
from deepfabric_trainer.errors import ConfigError

logger = logging.getLogger(__name__)

_PAGES = {"report.html": render_html, "report.md": render_markdown, "metrics.json": render_json}
_SHARE = 100
"""The time between two reports is at least so many times what one takes to write."""


class RunReportCallback(TrainerCallback):
    """Leave a report of the run in its output folder: `report.html`, `report.md` and `metrics.json`.

    The page says first, in a sentence, what the run has shown, and claims no more than the 95% intervals do. Behind
    it come curves, events, tools, samples beside what was recorded, data, settings and how to go on. It is one file
    that loads nothing. What a model wrote stands in it as text.

    It is written after each evaluation and measurement, at logs from time to time, and at the end. When an exception
    ends the run, the page says so at once in a `DeepFabricTrainer`, elsewhere as soon as the trainer is gone or Python
    exits, unless another run has reported in the folder since; after a kill it keeps saying "running", with the time.
    A resumed run goes on with the report in its folder; that of another run gets the time of its beginning into its
    names, as in `report.2026-01-31T12-00-00.html`.

    In a plain `Trainer` give this callback last, so that it sees what the others measure. Without
    [`SampleGenerationCallback`] there are no samples, and the verdict says that nothing measured tool calls. A report
    that cannot be written is said once, and the run goes on.

    Args:
        every_seconds (`float`, *optional*, defaults to 30.0): Seconds between two reports at logs, at least. Where
            writing takes so long that it would cost over 1% of the time, reports of evaluations wait, too.

    Attributes:
        trainer_data (`Mapping[str, Mapping[str, Any]]`, *optional*): What became of the data, which a trainer can
            set: for each dataset by name `rows`, `examples`, `rejected` and `remarks` (a list of sentences).

    Raises:
        ConfigError: If `every_seconds` is negative.
    """

    _run: FollowedRun | None
    _unfinished: Unfinished | None
    _journal: JournalReader
    _found: tuple[int, int] | None

    def __init__(self, *, every_seconds: float = 30.0) -> None:
        if not every_seconds >= 0:
            raise ConfigError(
                f"`every_seconds` is {every_seconds}", expected="0 or more", fix="pass a number of seconds"
            )
        self.every_seconds = every_seconds
        self.trainer_data: Mapping[str, Mapping[str, Any]] | None = None
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        kept = {"every_seconds": self.every_seconds, "trainer_data": self.trainer_data}
        return {**self.__dict__, **kept, "_run": None, "_unfinished": None, "_journal": JournalReader()}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Begin a report, or go on with that of the run that is resumed."""
        if not state.is_world_process_zero:
            return
        if self._unfinished is not None:
            self._unfinished.settle()
        journal = self._journal
        self._forget()
        self._journal = journal
        try:
            set_aside_other_run(Path(args.output_dir), _PAGES, state.global_step, state.log_history)
            data = describe_data(self.trainer_data, Path(args.output_dir), train_dataloader)
            self._run = FollowedRun(args, state, model, data)
        except Exception:
            self._complain()
            return
        self._unfinished = Unfinished(state, self._ended_unexpectedly)
        self._found = self._file_there()
        self._is_due = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write, if it is time; every callback has had its say on the step before."""
        if self._run is None:
            return
        now = monotonic()
        is_wanted = self._is_due or self._journal.has_news(control) or (self._has_logs and now >= self._next_time)
        if is_wanted and now >= self._earliest:
            self._look(state, control)
            self._write(RunStatus.RUNNING)
            self._run.throughput.interrupted()
        self._run.throughput.step_begins()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        if self._run is not None:
            self._run.throughput.step_ends()
            self._run.step = state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Note how many tokens were trained on."""
        if self._run is not None:
            self._run.logged(logs or {}, state.global_step)
            self._has_logs = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write soon: during training when the other callbacks have seen the evaluation, after it at once."""
        if self._run is None:
            return
        self._run.throughput.interrupted()
        self._is_due = True
        if self._has_ended:
            self._look(state, control)
            self._write(RunStatus.FINISHED)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the checkpoint."""
        if self._run is not None:
            self._run.throughput.interrupted()
            self._run.saved(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the report of the whole run."""
        if self._run is None:
            return
        if self._unfinished is not None:
            self._unfinished.settle()
        self._unfinished, self._has_ended = None, True
        self._look(state, control)
        self._run.ended(state)
        self._write(RunStatus.FINISHED)

    def failed(self, error: BaseException) -> None:
        """Write that an exception has ended the run; for who catches what comes out of `train()`."""
        if self._unfinished is not None:
            self._unfinished.settle()
            self._unfinished = None
            if isinstance(error, KeyboardInterrupt | SystemExit):
                self._end(str(error) or in_one_line(error), RunStatus.INTERRUPTED)
            else:
                self._end(in_one_line(error))

    def _forget(self) -> None:
        self._run = None
        self._unfinished = None
        self._journal = JournalReader()
        self._is_due = False
        self._has_logs = False
        self._has_ended = False
        self._has_complained = False
        self._next_time = self._earliest = 0.0
        self._found = None

    def _look(self, state: Any, control: Any) -> None:
        if self._run is not None:
            self._run.observe(state)
            self._run.told(self._journal.read(control))

    def _ended_unexpectedly(self) -> None:
        if self._file_there() == self._found:
            self._end(last_error())

    def _end(self, error: str | None, status: RunStatus = RunStatus.ENDED) -> None:
        if self._run is not None:
            self._run.told(self._journal.rest())
            self._write(status, error)

    def _file_there(self) -> tuple[int, int] | None:
        """Return what tells the page in the folder from one that another run writes there."""
        if self._run is None:
            return None
        try:
            status = (self._run.output_dir / "report.html").stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _write(self, status: RunStatus, error: str | None = None) -> None:
        if self._run is None:
            return
        begin = monotonic()
        if self._found is not None and self._file_there() is None:
            logger.warning(
                "the report in %s is gone, perhaps with the folder and all that was in it; it is written anew",
                self._run.output_dir,
            )
        try:
            record = self._run.record(status, error)
        except Exception:
            self._complain()
        else:
            for name, render in _PAGES.items():
                self._write_page(self._run.output_dir / name, render, record)
        self._found = self._file_there()
        end = monotonic()
        self._earliest = end + _SHARE * (end - begin)
        self._next_time = max(self._earliest, end + self.every_seconds)
        self._is_due = self._has_logs = False

    def _write_page(self, path: Path, render: Callable[[RunRecord], str], record: RunRecord) -> None:
        try:
            _write_whole(path, render(record))
        except Exception:  # the other pages may go well
            self._complain()

    def _complain(self) -> None:
        if not self._has_complained:
            logger.warning("the report cannot be written, and the run goes on without it\n%s", traceback.format_exc())
        self._has_complained = True


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        # Not by `tempfile`, whose files only their owner reads: who may read the folder may read the report.
        with open(temporary, "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
