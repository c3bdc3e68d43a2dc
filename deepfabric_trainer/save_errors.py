"""What to say when the model or a checkpoint cannot be written."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from deepfabric_trainer.checkpoints import newest_whole
from deepfabric_trainer.errors import CheckpointError, DeepFabricTrainerError

CHECKPOINT = "the checkpoint"
_OF_TORCH = ("PytorchStreamWriter", "inline_container")
"""Where `torch.save` says in a `RuntimeError` that a file does not take what it writes."""


@contextmanager
def explaining_failed_saves(folder: Path, what: str, *, removes: bool = False) -> Iterator[None]:
    """Explain what keeps a folder from being written, and remove a checkpoint that could not be completed.

    Args:
        folder (`Path`): Where it is written.
        what (`str`): `CHECKPOINT`, or in words what else is written.
        removes (`bool`): Whether to remove the folder, which this process has begun.

    Raises:
        CheckpointError: If files cannot be written.
    """
    try:
        yield
    except DeepFabricTrainerError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = _cause(error)
        if cause is None:
            raise
        free = _free_space(folder)
        if removes:
            shutil.rmtree(folder, ignore_errors=True)
        raise _explanation(folder, what, cause, free) from error


def _cause(error: Exception) -> str | None:
    """Return what kept a file from being written, `None` if the error is about something else."""
    if isinstance(error, CheckpointError):
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError) or any(word in str(error) for word in _OF_TORCH):
        return str(error).strip().splitlines()[0]
    return None


def _explanation(folder: Path, what: str, cause: str, free: int | None) -> CheckpointError:
    is_checkpoint = what == CHECKPOINT
    last, _ = newest_whole(folder.parent) if is_checkpoint else (None, {})
    found = cause if free is None else f"{cause} ({_in_mb(free)} are free)"
    fix = "free space or write to another disk"
    if is_checkpoint:
        fix += ", keep fewer checkpoints (`save_total_limit`)"
    if last is not None:
        fix += f", and go on from {last.name} with `trainer.train(resume_from_checkpoint=True)`"
    expected = "" if last is None else f"room for about {_in_mb(_size(last))}, as {last.name} takes"
    return CheckpointError(f"{what} cannot be written: {found}", expected=expected, fix=fix, where=str(folder))


def _free_space(folder: Path) -> int | None:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return None if existing is None else shutil.disk_usage(existing).free


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _in_mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
