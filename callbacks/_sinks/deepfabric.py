import uuid
from enum import Enum
from pathlib import Path
from typing import Any

from deepfabric_trainer.callbacks._sinks.background_sender import BackgroundSender
from deepfabric_trainer.callbacks._sinks.records import MetricsRecord, Run, now, plain
from deepfabric_trainer.callbacks._sinks.sink import Sink
from deepfabric_trainer.callbacks._sinks.spool import Message

_SETTINGS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "warmup_steps",
    "lr_scheduler_type",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "seed",
    "fp16",
    "bf16",
    "gradient_checkpointing",
    "dataloader_num_workers",
)


class DeepFabricSink(Sink):
    """Start and end of the run and its metrics, in the messages of DeepFabric's own callback.

    Samples, events, prompts and paths on this machine are not sent.

    Args:
        run (`Run`): The run.
        sender (`BackgroundSender`): Takes the messages.
    """

    title = "the DeepFabric server"

    def __init__(self, run: Run, sender: BackgroundSender) -> None:
        self.run = run
        self.sender = sender

    def begin(self, args: Any, state: Any, model: Any) -> None:
        """Send the start of the run."""
        settings = {name: _setting(getattr(args, name)) for name in _SETTINGS if hasattr(args, name)}
        start = {
            "model_name": _model_name(args, model),
            "training_config": settings,
            "state": {
                "max_steps": state.max_steps,
                "num_train_epochs": state.num_train_epochs,
                "is_world_process_zero": True,
            },
            "started_at": now(),
        }
        self._send("runs", {"event_type": "run_start", **start})

    def metrics(self, record: MetricsRecord) -> None:
        """Send metrics; those of an evaluation are told by their names."""
        if record.source == "predict":
            return
        values = {name: plain(value) for name, value in record.values.items() if value is not None}
        kept = {name: value for name, value in values.items() if isinstance(value, (int, float, str))}
        if kept:
            is_evaluation = any(name.startswith("eval_") for name in kept)
            self._send_metrics("eval" if is_evaluation else "log", record.step, record.epoch, kept, record.time)

    def saved(self, state: Any) -> None:
        """Send that there is a checkpoint."""
        self._send_metrics("checkpoint", state.global_step, state.epoch, {"checkpoint_step": state.global_step}, now())

    def end(self, state: Any) -> None:
        """Send the end of the run, and wait a little until everything is sent or on disk."""
        best = state.best_model_checkpoint
        end = {
            "final_step": state.global_step,
            "final_epoch": state.epoch,
            "total_flos": state.total_flos,
            "best_metric": state.best_metric,
            "best_model_checkpoint": Path(best).name if best else None,
            "completed_at": now(),
        }
        self._send("runs", {"event_type": "run_end", **end})
        self.sender.stop()

    def close(self) -> None:
        """Wait a little until everything is sent or on disk."""
        self.sender.stop()

    def _send_metrics(self, kind: str, step: int, epoch: float | None, values: dict[str, Any], time: str) -> None:
        message = {"global_step": step, "epoch": epoch, "type": kind, "metrics": values}
        self._send("metrics", {**message, "timestamp": time})

    def _send(self, path: str, body: dict[str, Any]) -> None:
        head = {"run_id": self.run.run_id, "message_id": str(uuid.uuid4()), "timestamp": now()}
        self.sender.put(Message(path, {**head, **body}))


def _setting(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else plain(value)


def _model_name(args: Any, model: Any) -> str | None:
    """Return the model's name on the hub, of a local one the last part of its path."""
    name = getattr(getattr(model, "config", None), "name_or_path", None) or args.output_dir
    if not name:
        return None
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else str(name)
