"""The output folder of a run, into which one run writes at a time."""

import errno
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from deepfabric_trainer.config import DeepFabricSFTConfig
from deepfabric_trainer.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_NAME = "_run.lock"
"""Files whose names begin with `_` are no part of what transformers pushes to the Hub."""
_HELD: set[int] = set()
"""The descriptors of the locks that this process holds."""


@contextmanager
def own_folder(args: Any) -> Iterator[None]:
    """Keep other runs out of a run's output folder as long as it trains.

    The lock is the kernel's (`flock`): it is gone with the process that took it, however that ends, and forked
    processes do not keep it. Where there are no locks the run goes on, with a word.

    Args:
        args (`TrainingArguments`): Of the run. Only its first process takes the lock. With a plain config that saves
            nothing the other run is only named: nothing of either is lost.

    Raises:
        ConfigError: If another run holds the folder.
    """
    path = Path(args.output_dir) / LOCK_NAME
    held = None
    if args.process_index == 0:
        try:
            held = _lock(path)
        except _Taken as error:
            _refuse_or_warn(args, str(error))
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s), so that nothing keeps a second run out of it", args.output_dir, error
            )
    try:
        yield
    finally:
        if held in _HELD:
            _release(held, path)


class _Taken(Exception):
    """Another process holds the lock; the message says which."""


def _lock(path: Path) -> int | None:
    """Take the lock; return its descriptor, on Windows none.

    Raises:
        _Taken: If another process holds it.
        OSError: If the file cannot be written, or the file system has no locks.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(_this_run()).encode())
                _HELD.add(descriptor)
                return descriptor
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise _Taken(_describe(path)) from None
            raise
        finally:
            if descriptor not in _HELD:
                os.close(descriptor)


def _release(descriptor: int, path: Path) -> None:
    # Removed while it is locked: whoever has opened it meanwhile finds that it is gone, and makes a new one.
    if _is_there(descriptor, path):
        path.unlink()
    _HELD.discard(descriptor)
    os.close(descriptor)


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _this_run() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _describe(path: Path) -> str:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return f"process {run['pid']} on {run['host']}, since {run['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just beginning, or ending
        return "its process is not known yet"


def _refuse_or_warn(args: Any, who: str) -> None:
    found = f"another run writes to {args.output_dir} ({who})"
    if not isinstance(args, DeepFabricSFTConfig) and args.save_strategy == "no":
        logger.warning("%s; what both write there is that of the last one", found)
        return
    raise ConfigError(
        found,
        expected="a folder for each run, since two delete each other's checkpoints",
        fix="wait for it or stop it, or set another `output_dir`",
    )


def _let_go() -> None:
    """In a forked process: close what would keep the lock alive after the death of its holder."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
