"""What a place that keeps a run's metrics, samples and events can be told."""

from typing import Any

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._sinks.records import MetricsRecord


class Sink:
    """A place that keeps what happened; by default it keeps nothing.

    A sink may raise: the logger says so once and goes on. It is made when a run begins, and told `end` when it ends,
    which a crash leaves out; more may follow `end`, such as an evaluation after the training.
    """

    title = ""

    def begin(self, args: Any, state: Any, model: Any) -> None:
        """Know that training begins; other callbacks may not have begun yet."""

    def metrics(self, record: MetricsRecord) -> None:
        """Know metrics that were logged or measured."""

    def measurement(self, result: GenerationResult) -> None:
        """Know the turns of a measurement; its metrics come on their own."""

    def event(self, event: RunEvent) -> None:
        """Know what happened."""

    def saved(self, state: Any) -> None:
        """Know that a checkpoint was saved."""

    def end(self, state: Any) -> None:
        """Know that training ended."""

    def close(self) -> None:
        """Let go of files and threads."""
