"""Calls of other people's code that may never come back, with an end to the waiting."""

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._sinks.records import MetricsRecord
from deepfabric_trainer.callbacks._sinks.sink import Sink

SECONDS = 10.0
"""How long a run waits for a dashboard, once."""


class PatientSink(Sink):
    """A sink whose calls run in a thread of their own: for one that does not answer the run waits once, then no more.

    While the thread waits for an answer all further calls are refused at once. When the answer comes after all, the
    sink is told what follows; what was refused is missing there. In the usual case each call has ended when it
    returns, and its errors are the caller's.

    Args:
        sink (`Sink`): Which may hang.
        seconds (`float`, *optional*, defaults to 10.0): How long to wait for a call.
    """

    def __init__(self, sink: Sink, seconds: float = SECONDS) -> None:
        self.title = sink.title
        self.sink = sink
        self._seconds = seconds
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._unanswered: threading.Event | None = None

    def begin(self, args: Any, state: Any, model: Any) -> None:
        """Tell the sink, or refuse."""
        self._call(lambda: self.sink.begin(args, state, model))

    def metrics(self, record: MetricsRecord) -> None:
        """Tell the sink, or refuse."""
        self._call(lambda: self.sink.metrics(record))

    def measurement(self, result: GenerationResult) -> None:
        """Tell the sink, or refuse."""
        self._call(lambda: self.sink.measurement(result))

    def event(self, event: RunEvent) -> None:
        """Tell the sink, or refuse."""
        self._call(lambda: self.sink.event(event))

    def saved(self, state: Any) -> None:
        """Tell the sink, or refuse."""
        self._call(lambda: self.sink.saved(state))

    def end(self, state: Any) -> None:
        """Tell the sink, or refuse."""
        self._call(lambda: self.sink.end(state))

    def close(self) -> None:
        """Tell the sink, or refuse; then end the thread."""
        try:
            self._call(self.sink.close)
        finally:
            if self._worker is not None:
                self._calls.put(None)
                self._worker = None

    def _call(self, call: Callable[[], None]) -> None:
        """Run a call in the thread.

        Raises:
            TimeoutError: If it does not end in time, or an earlier one has not ended yet.
        """
        if self._unanswered is not None and not self._unanswered.is_set():
            raise TimeoutError("it still does not answer")
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(target=_work, args=(self._calls,), name="deepfabric-sink", daemon=True)
            self._worker.start()
        done = threading.Event()
        errors: list[Exception] = []
        # Dashboards keep their run in a context variable, or look for it there.
        context = contextvars.copy_context()

        def run() -> None:
            try:
                context.run(call)
            except Exception as error:
                errors.append(error)
            finally:
                done.set()

        self._unanswered = done
        self._calls.put(run)
        if not done.wait(self._seconds):
            raise TimeoutError(f"no answer for {self._seconds:g} seconds; the run waits for it no more")
        if errors:
            raise errors[0]


def _work(calls: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (call := calls.get()) is not None:
        call()
