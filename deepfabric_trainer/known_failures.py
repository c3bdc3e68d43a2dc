"""What errors of other libraries that end a training most likely come from, and what is left of the run."""

import traceback
from pathlib import Path
from typing import Any

from deepfabric_trainer.checkpoints import newest_whole


def explain(error: BaseException, args: Any) -> None:
    """Add to an error what is known of it, as notes that Python prints below its message.

    Args:
        error (`BaseException`): What came out of the training.
        args (`TrainingArguments`): Of the run.
    """
    advice = _advice(error)
    if advice is None:
        return
    error.add_note(advice)
    try:
        checkpoint, _ = newest_whole(Path(args.output_dir))
    except OSError:
        checkpoint = None
    if checkpoint is not None:
        error.add_note(f"`train(resume_from_checkpoint=True)` goes on from {checkpoint}")


def _advice(error: BaseException) -> str | None:
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return (
            "A process that loads data was killed, mostly by the system when memory ran out: take fewer "
            "`dataloader_num_workers` or a smaller `dataloader_prefetch_factor`, or prepare the rows before the run"
        )
    if type(error).__module__.partition(".")[0] == "wandb":
        return (
            "W&B did not answer. With WANDB_MODE=offline it keeps the run on disk, for `wandb sync` later; "
            'WANDB_INIT_TIMEOUT is how many seconds it tries; `report_to` without "wandb" leaves it out'
        )
    if isinstance(error, OSError) and "tensorboard" in _modules(error):
        return (
            "TensorBoard cannot write its files: set TENSORBOARD_LOGGING_DIR to a folder that takes them, or leave "
            '"tensorboard" out of `report_to`'
        )
    return None


def _modules(error: BaseException) -> set[str]:
    """Return the packages that an error came through."""
    frames = traceback.walk_tb(error.__traceback__)
    return {str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in frames}
