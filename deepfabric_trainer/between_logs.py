"""What a trainer has summed up since it last logged, which transformers' checkpoints leave out.

A checkpoint between two logs would make the next log a mean over fewer steps, and TRL's count of tokens begins at zero
with each start. So each process keeps its sums beside its random state.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def forget_sums(trainer: Any) -> None:
    """Forget what a training that was broken off has left in a trainer.

    Args:
        trainer (`DeepFabricTrainer`): About to train.
    """
    trainer._metrics["train"].clear()
    trainer.current_flos = 0
    trainer._step.forget()


def save_sums(trainer: Any, checkpoint: Path) -> None:
    """Write the sums of this process into a checkpoint.

    Args:
        trainer (`DeepFabricTrainer`): In training.
        checkpoint (`Path`): Its folder, which exists.
    """
    regions = trainer.region_metrics.saved("train")
    sums = {
        "processes": trainer.args.world_size,
        "loss": trainer._tr_loss.item(),
        "total_loss": trainer._total_loss_scalar,
        "first_step": trainer._sums_from,
        "is_in_training_mode": trainer.model.training,
        "is_behind_epoch": not (trainer._is_in_step or trainer.control.should_training_stop),
        "last_logged_step": trainer._globalstep_last_logged,
        "metrics": dict(trainer._metrics["train"]),
        "num_tokens": trainer._total_train_tokens,
        "num_computed_tokens": trainer._step.computed_tokens,
        "regions": None if regions is None else regions.tolist(),
    }
    _path(checkpoint, trainer.args.process_index).write_text(json.dumps(sums), encoding="utf-8")


def restore_sums(trainer: Any, checkpoint: Path) -> int:
    """Take over the sums of this process from a checkpoint, as far as it has them.

    With another number of processes, or from a checkpoint of `SFTTrainer`, only the tokens go on being counted.

    Args:
        trainer (`DeepFabricTrainer`): About to train on.
        checkpoint (`Path`): Its folder.

    Returns:
        `int`: The step from which the sum of the losses goes: 0, if they are of the whole run.
    """
    sums = _sums_of(trainer, checkpoint)
    logged = _last_logged(trainer.state.log_history)
    trainer._total_train_tokens = int(sums.get("num_tokens", logged.get("num_tokens", 0)))
    trainer._step.computed_tokens = int(sums.get("num_computed_tokens", logged.get("num_computed_tokens", 0)))
    if sums.get("processes") != trainer.args.world_size:
        return int(trainer.state.global_step)
    trainer.model.train(sums["is_in_training_mode"])  # TRL's last log asks for it, also of a run that is at its end
    trainer._tr_loss.fill_(sums["loss"])
    trainer._total_loss_scalar = sums["total_loss"]
    trainer._globalstep_last_logged = sums["last_logged_step"]
    trainer._metrics["train"].update(sums["metrics"])
    if sums["regions"] is not None:
        device = trainer.args.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        trainer.region_metrics.restore("train", torch.tensor(sums["regions"], dtype=dtype, device=device))
    return int(sums["first_step"])


def is_behind_epoch(trainer: Any, checkpoint: Path) -> bool:
    """Tell whether a checkpoint was written when an epoch was over, which no step shows where rows are a stream."""
    return bool(_sums_of(trainer, checkpoint).get("is_behind_epoch"))


def _sums_of(trainer: Any, checkpoint: Path) -> dict[str, Any]:
    return _read(_path(checkpoint, trainer.args.process_index)) or _read(_path(checkpoint, 0))


def _path(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"between_logs_{process}.json"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _last_logged(history: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((entry for entry in reversed(history) if "num_tokens" in entry), {})
