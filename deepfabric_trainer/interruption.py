"""Ending a training in good order when a signal asks for it: after the step, with a checkpoint."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any

import torch

logger = logging.getLogger(__name__)

_REPEATED = 2.0
"""Seconds in which a signal that comes again is the same: terminals and launchers both pass one on."""
_DEFAULTS: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class TrainingTerminated(SystemExit):
    """SIGTERM has ended the training; uncaught, Python exits with 143, as shells call it.

    Args:
        message (`str`): Where it ended, and how to go on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 128 + signal.SIGTERM


class Interruption:
    """Notes SIGINT and SIGTERM during a training. The first waits for the end of a step, the second does not.

    Nothing is done outside of Python's main thread, and nothing about a signal that is ignored or that has a handler
    other than Python's own: who installed it is in charge. In processes that are forked meanwhile signals do what
    they do otherwise.

    Args:
        signals (`tuple[signal.Signals, ...]`): Those to watch for.
        waits (`bool`): Whether a step's end is worth waiting for, since there will be a checkpoint.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = (), *, waits: bool = True) -> None:
        self._waits = waits
        self._signals = signals
        self._seen: signal.Signals | None = None
        self._seen_at = 0.0
        self._process = os.getpid()
        self.watched: tuple[signal.Signals, ...] = ()
        """The signals that are waited for now."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the signals; afterwards their handlers are as before.

        Raises:
            KeyboardInterrupt: If SIGINT came, and no step's end was left to wait for.
            TrainingTerminated: The same for SIGTERM.
        """
        replaced: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread():
            replaced = [number for number in self._signals if signal.getsignal(number) == _DEFAULTS[number]]
        for number in replaced:
            signal.signal(number, self._note)
        self.watched = tuple(replaced)
        try:
            yield
        finally:
            self.watched = ()
            for number in replaced:
                signal.signal(number, _DEFAULTS[number])
        if self._seen is not None:
            self.end(f"{self._seen.name} came when the training was over")

    def agreed(self, accelerator: Any) -> signal.Signals | None:
        """Return the signal that any of the processes has seen. All of them call it, or none.

        Args:
            accelerator (`Accelerator`): Knows the processes.
        """
        seen = 0 if self._seen is None else int(self._seen)
        if accelerator.num_processes > 1:
            seen = int(accelerator.gather(torch.tensor([seen], device=accelerator.device)).max())
        self._seen = signal.Signals(seen) if seen else None
        return self._seen

    def end(self, message: str) -> None:
        """End the training.

        Raises:
            KeyboardInterrupt: For SIGINT.
            TrainingTerminated: For SIGTERM.
        """
        seen, self._seen = self._seen, None
        logger.warning("%s", message)
        raise KeyboardInterrupt(message) if seen is signal.SIGINT else TrainingTerminated(message)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            signal.signal(number, _DEFAULTS[signal.Signals(number)])
            signal.raise_signal(number)
            return
        if self._seen is None:
            self._seen, self._seen_at = signal.Signals(number), monotonic()
            if self._waits:
                logger.warning(
                    "%s: the training ends after this step, with a checkpoint; a second signal ends it at once",
                    self._seen.name,
                )
                return
        elif monotonic() - self._seen_at < _REPEATED:
            return
        self._seen = signal.Signals(number)
        self.end(f"{self._seen.name} ended the training at once")
