import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from deepfabric_trainer.callbacks._journal import Journal, RunEvent, journal_of
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._sinks.background_sender import BackgroundSender
from deepfabric_trainer.callbacks._sinks.deepfabric import DeepFabricSink
from deepfabric_trainer.callbacks._sinks.deepfabric_endpoint import Endpoint, check_url
from deepfabric_trainer.callbacks._sinks.jsonl import JsonLinesSink
from deepfabric_trainer.callbacks._sinks.patience import PatientSink
from deepfabric_trainer.callbacks._sinks.records import MetricsRecord, Run
from deepfabric_trainer.callbacks._sinks.sink import Sink
from deepfabric_trainer.callbacks._sinks.spool import Spool
from deepfabric_trainer.callbacks._sinks.tensorboard import TensorBoardSink
from deepfabric_trainer.callbacks._sinks.trackio import TrackioSink
from deepfabric_trainer.callbacks._sinks.wandb import WandbSink
from deepfabric_trainer.errors import ConfigError

logger = logging.getLogger(__name__)

_DEFAULT_URL = "https://api.deepfabric.ai"


class MetricsLoggerCallback(TrainerCallback):
    """Keep what a run measured, generated and met with: in files, on dashboards, and on a DeepFabric server.

    - `metrics.jsonl`, `samples.jsonl`, `tables.jsonl`, `events.jsonl` in `args.output_dir`, always; each line is
      written through at once.
    - W&B, TensorBoard and Trackio, each if `args.report_to` names it: tables of samples, tools and events, and the
      metrics that transformers' integrations do not see, in the run that they have started.
    - A DeepFabric server, if there is a key: start and end of the run and its metrics, in the background. Neither
      samples nor prompts nor events are sent. What the server does not take waits in `deepfabric_spool.jsonl`.

    Only the main process writes. A place that fails is named once in the log, and the run goes on; for a dashboard
    that does not answer it waits 10 seconds, once. Fields and the protocol: `docs/logging.md`.

    Args:
        samples_per_log (`int`): How many turns of a measurement to show on dashboards; the files have all.
        api_key (`str`, *optional*): The bearer key, `DEEPFABRIC_API_KEY` if `None`. It is not pickled.
        api_url (`str`, *optional*): The server, `DEEPFABRIC_API_URL` if `None`, and `https://api.deepfabric.ai` if
            there is none.
        pipeline_id (`str`, *optional*): The pipeline that the server files the run under, `DEEPFABRIC_PIPELINE_ID`
            if `None`.
        allow_http (`bool`): Allow `http://` to other machines, where the key travels in the clear.

    Raises:
        ConfigError: If `samples_per_log` is negative, or `api_url` is no URL that a key may be sent to.
    """

    def __init__(
        self,
        *,
        samples_per_log: int = 8,
        api_key: str | None = None,
        api_url: str | None = None,
        pipeline_id: str | None = None,
        allow_http: bool = False,
    ) -> None:
        if samples_per_log < 0:
            raise ConfigError(f"`samples_per_log` is {samples_per_log}", expected="at least 0", fix="pass 0 for none")
        if api_url is not None:
            check_url(api_url, allow_http=allow_http)
        self.samples_per_log = samples_per_log
        self.api_url = api_url
        self.pipeline_id = pipeline_id
        self.allow_http = allow_http
        self._api_key = api_key
        self._forget_the_run()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy keeps: the settings, without the key."""
        settings = ("samples_per_log", "api_url", "pipeline_id", "allow_http")
        return {name: getattr(self, name) for name in settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._api_key = None
        self._forget_the_run()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin the run's files. Dashboards are begun by callbacks that may come later, and get nothing yet."""
        if state.is_world_process_zero:
            self._tell(lambda sink: sink.close())
            self._open(args, state, training=True)
            self._tell(lambda sink: sink.begin(args, state, model))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what other callbacks have measured and met with."""
        self._read_journal(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what other callbacks have measured and met with."""
        self._read_journal(args, state, control)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write what the trainer logs."""
        self._write("log", logs or {}, args, state)
        self._read_journal(args, state, control)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write what other callbacks have added to the evaluation since it was logged."""
        self._read_journal(args, state, control)
        self._write("evaluate", self._unseen(metrics or {}, state.global_step), args, state)

    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write a prediction's metrics, which the trainer does not log."""
        self._write("predict", metrics or {}, args, state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of the checkpoint."""
        self._read_journal(args, state, control)
        self._tell(lambda sink: sink.saved(state))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the rest, and wait a little for what is on its way."""
        self._read_journal(args, state, control)
        self._tell(lambda sink: sink.end(state))
        for title, count in self._failures.items():
            logger.warning("%s: %d writes failed in this run", title, count)

    def _forget_the_run(self) -> None:
        self._sinks: list[Sink] = []
        self._journal: Journal | None = None
        self._position = 0
        self._seen_step: int | None = None
        self._seen: set[str] = set()
        self._failures: Counter[str] = Counter()

    def _open(self, args: Any, state: Any, *, training: bool) -> None:
        """Choose the places for a run that begins now."""
        folder = Path(args.output_dir)
        run = Run(str(uuid.uuid4()), folder, state.global_step if training else 0, training)
        self._failures = Counter()
        self._seen_step, self._seen = None, set()
        report_to = args.report_to or []
        self._sinks = [JsonLinesSink(run)]
        if "wandb" in report_to:
            self._sinks.append(PatientSink(WandbSink(run, self.samples_per_log)))
        if "tensorboard" in report_to:
            self._sinks.append(TensorBoardSink(folder, self.samples_per_log))
        if "trackio" in report_to:
            self._sinks.append(PatientSink(TrackioSink(self.samples_per_log)))
        try:
            sender = self._sender(folder) if training else None
        except ConfigError as error:
            logger.warning("nothing is sent to the DeepFabric server: %s", error)
        else:
            if sender is not None:
                self._sinks.append(DeepFabricSink(run, sender))

    def _sender(self, folder: Path) -> BackgroundSender | None:
        key = self._api_key or os.environ.get("DEEPFABRIC_API_KEY")
        if not key:
            return None
        endpoint = Endpoint(
            self.api_url or os.environ.get("DEEPFABRIC_API_URL") or _DEFAULT_URL,
            key,
            pipeline_id=self.pipeline_id or os.environ.get("DEEPFABRIC_PIPELINE_ID") or None,
            allow_http=self.allow_http,
        )
        return BackgroundSender(endpoint.post, Spool(folder / "deepfabric_spool.jsonl", endpoint.base))

    def _write(
        self,
        source: str,
        values: Mapping[str, Any],
        args: Any,
        state: Any,
        measured: GenerationResult | None = None,
    ) -> None:
        """Write metrics of one source, of this moment or of that when they were measured."""
        if not state.is_world_process_zero:
            return
        step = state.global_step if measured is None else measured.step
        epoch = state.epoch if measured is None or measured.epoch is None else measured.epoch
        if step != self._seen_step:
            self._seen_step, self._seen = step, set()
        self._seen.update(values)
        values = {name: value for name, value in values.items() if name != "epoch"}
        if not values:
            return
        if not self._sinks:
            self._open(args, state, training=False)
        record = MetricsRecord(source, step, epoch, values)
        self._tell(lambda sink: sink.metrics(record))

    def _unseen(self, values: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Return the metrics that nobody has logged at this step."""
        seen = self._seen if step == self._seen_step else set()
        return {name: value for name, value in values.items() if name not in seen}

    def _read_journal(self, args: Any, state: Any, control: Any) -> None:
        """Write the entries that are new."""
        journal = journal_of(control)
        if journal is not self._journal:
            self._journal, self._position = journal, 0
        if len(journal) == self._position or not state.is_world_process_zero:
            return
        entries = journal.since(self._position)
        self._position += len(entries)
        if not self._sinks:
            self._open(args, state, training=False)
        for entry in entries:
            self._write_entry(entry, args, state)

    def _write_entry(self, entry: RunEvent | GenerationResult, args: Any, state: Any) -> None:
        if isinstance(entry, RunEvent):
            self._tell(lambda sink: sink.event(entry))
            return
        self._write("generation", self._unseen(entry.metrics, entry.step), args, state, entry)
        self._tell(lambda sink: sink.measurement(entry))

    def _tell(self, what: Callable[[Sink], None]) -> None:
        """Tell every place; one that fails is named once."""
        for sink in self._sinks:
            try:
                what(sink)
            except Exception as error:
                self._failures[sink.title] += 1
                if self._failures[sink.title] == 1:
                    logger.warning(
                        "%s: not everything can be written (%s: %s); the run goes on",
                        sink.title,
                        type(error).__name__,
                        error,
                    )
