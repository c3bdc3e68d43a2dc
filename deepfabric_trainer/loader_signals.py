"""SIGINT and SIGTERM in the processes that load data, while the main process waits for a step's end.

Terminals, systemd and Slurm send a signal to all processes of a run. A loader's process that ends by it takes the run
with it, before its checkpoint.
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def outlast(loader: Any, signals: tuple[signal.Signals, ...]) -> None:
    """Let the processes of a loader leave signals to the main process.

    Args:
        loader (`torch.utils.data.DataLoader`): Where it has processes already, they stay as they are.
        signals (`tuple[signal.Signals, ...]`): Which.
    """
    loader = getattr(loader, "base_dataloader", loader)  # accelerate's wrappers iterate over another
    begin = getattr(loader, "worker_init_fn", None)
    # Loaders whose processes persist come here again with each evaluation.
    if signals and getattr(loader, "num_workers", 0) > 0 and not isinstance(begin, _LeavesSignals):
        loader.worker_init_fn = _LeavesSignals(signals, begin)


@dataclass(frozen=True)
class _LeavesSignals:
    """Begins a loader's process; picklable, since such processes may be spawned.

    Args:
        signals (`tuple[signal.Signals, ...]`): What to leave to the parent process.
        begin (`Callable[[int], None]`, *optional*): What begins the process otherwise.
    """

    signals: tuple[signal.Signals, ...]
    begin: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        if signal.SIGINT in self.signals:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if signal.SIGTERM in self.signals and hasattr(signal, "sigwaitinfo"):
            # Blocked here, and in the threads that follow; the one that waits for it sees whom it is from.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            threading.Thread(target=_end_when_the_parent_says_so, args=(os.getppid(),), daemon=True).start()
        if self.begin is not None:
            self.begin(worker)


def _end_when_the_parent_says_so(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
