"""The callbacks of a trainer: those that each run has unless its user says otherwise, and what they are given."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from deepfabric_trainer.callbacks._progress_display import terminal
from deepfabric_trainer.callbacks.metrics_logger import MetricsLoggerCallback
from deepfabric_trainer.callbacks.progress import TrainingProgressCallback
from deepfabric_trainer.callbacks.run_report import RunReportCallback
from deepfabric_trainer.callbacks.training_health import TrainingHealthCallback
from deepfabric_trainer.config import DeepFabricSFTConfig
from deepfabric_trainer.known_failures import explain

_LOGS_ONLY = {"nan": "log"}
_READERS = (MetricsLoggerCallback, RunReportCallback)


def add_own_callbacks(trainer: Any) -> None:
    """Add a watch over the run's health, a report of it, and a bar in place of transformers', where there is none.

    With a plain `SFTConfig` the run goes on as TRL's would, whatever the watch finds. Where the output folder is
    pushed to the hub nobody is surprised by a report in it: there it must be asked for, by a callback.

    Args:
        trainer (`SFTTrainer`): Whose callbacks are complete otherwise.
    """
    args = trainer.args
    given = [type(callback) for callback in trainer.callback_handler.callbacks]

    def lacks(kind: type[TrainerCallback]) -> bool:
        return not any(issubclass(each, kind) for each in given)

    is_ours = isinstance(args, DeepFabricSFTConfig)
    if lacks(TrainingHealthCallback) and (not is_ours or args.health_checks):
        trainer.add_callback(TrainingHealthCallback(None if is_ours else _LOGS_ONLY))
    if lacks(TrainingProgressCallback) and ProgressCallback in given and terminal() is not None:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(TrainingProgressCallback())
    if lacks(RunReportCallback) and not args.push_to_hub and (not is_ours or args.run_report):
        trainer.add_callback(RunReportCallback())


def put_readers_last(callbacks: list[Any]) -> None:
    """Let who writes down what others find come after them: after the last evaluation nobody is called again."""
    callbacks.sort(key=lambda callback: isinstance(callback, _READERS))


def give(callbacks: Iterable[Any], rows: Any, accounts: Mapping[str, Mapping[str, Any]]) -> None:
    """Give callbacks the rows to generate from, and what became of the data."""
    for callback in callbacks:
        if hasattr(callback, "trainer_rows"):
            callback.trainer_rows = rows
        if hasattr(callback, "trainer_data"):
            callback.trainer_data = accounts


def ask_for_metrics(trainer: Any, prefix: str) -> dict[str, float]:
    """Return what the callbacks that have a method `compute_metrics` measure in an evaluation."""
    metrics: dict[str, float] = {}
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "compute_metrics"):
            metrics |= callback.compute_metrics(
                model=trainer.model,
                processing_class=trainer.processing_class,
                state=trainer.state,
                metric_key_prefix=prefix,
            )
    return metrics


@contextmanager
def ending_well(callbacks: Iterable[Any], args: Any) -> Iterator[None]:
    """When an exception ends the training, say so in the report, and what it comes from where that is known.

    The terminal is given back in any case.

    Args:
        callbacks (`Iterable[TrainerCallback]`): Of the trainer.
        args (`TrainingArguments`): Of the run.
    """
    try:
        yield
    except BaseException as error:
        explain(error, args)
        for callback in callbacks:
            if isinstance(callback, RunReportCallback):
                callback.failed(error)
        raise
    finally:
        for callback in callbacks:
            if isinstance(callback, TrainingProgressCallback):
                callback.close()
