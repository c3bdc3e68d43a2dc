"""Noticing that a run ended without anybody saying so."""

import os
import sys
import traceback
import weakref
from collections.abc import Callable
from typing import Any


class Unfinished:
    """Calls back when a run's state is gone, or Python exits, before `settle` was called.

    An exception in training never reaches the callbacks. What it leaves behind does: the trainer's state is collected,
    or the interpreter exits, and both are noticed. In processes that were forked from this one nothing is called.

    Args:
        state (`TrainerState`): Lives as long as the run; `callback` must not hold it.
        callback (`Callable[[], None]`): What to do then.
    """

    def __init__(self, state: Any, callback: Callable[[], None]) -> None:
        self._finalizer = weakref.finalize(state, _call_in, os.getpid(), callback)

    def settle(self) -> None:
        """Say that the run came to its end."""
        self._finalizer.detach()


def _call_in(process: int, callback: Callable[[], None]) -> None:
    if os.getpid() == process:
        callback()


def last_error() -> str | None:
    """Return type and message of the uncaught exception that came out of a trainer, in one line.

    Returns:
        `str`: `None` when there is none, or when it had nothing to do with training.
    """
    error = getattr(sys, "last_value", None)
    if error is None:
        return None
    files = {os.path.basename(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)}
    if "trainer.py" not in files:
        return None
    return in_one_line(error)


def in_one_line(error: BaseException) -> str:
    """Return type and message of an exception."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
