"""Slow input and memory near its limit."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Where Linux says what a container may use: limit, use, and the share of it that is cache, in versions 2 and 1."""


@dataclass(frozen=True)
class SlowInput:
    """Steps that wait for their batches.

    Args:
        share (`float`): The median share of a step's time that is waiting.
        waiting (`float`): The median wait (seconds).
        step (`float`): The median time of a step, with the wait (seconds).
    """

    share: float
    waiting: float
    step: float


@dataclass
class SlowInputDetector:
    """Finds that steps wait for data. Says it once, until they no longer do.

    Medians, so that an evaluation, a checkpoint or another callback now and then does not look like slow input.

    Args:
        share (`float`): Of a step's time, from which on it is slow.
        least (`float`): The wait below which nobody minds (seconds).
        size (`int`): Steps in the window.
        warm_up (`int`): Steps before, in which workers start and caches fill.
        seen (`int`): Steps so far.
        times (`list[tuple[float, float]]`): Of each step the wait and the rest (seconds).
        said (`bool`): Whether it has been said.
    """

    share: float = 0.25
    least: float = 0.02
    size: int = 40
    warm_up: int = 10
    seen: int = 0
    times: list[tuple[float, float]] = field(default_factory=list)
    said: bool = False

    def add(self, waiting: float, busy: float) -> SlowInput | None:
        """Take the wait of a step for its batches, and how long it then took (seconds)."""
        self.seen += 1
        if self.seen <= self.warm_up:
            return None
        self.times.append((waiting, busy))
        if len(self.times) < self.size:
            return None
        shares = [wait / max(wait + rest, 1e-9) for wait, rest in self.times]
        found = SlowInput(
            median(shares), median(wait for wait, _ in self.times), median(wait + rest for wait, rest in self.times)
        )
        self.times = self.times[self.size // 2 :]
        is_slow = found.share > self.share and found.waiting > self.least
        is_new = is_slow and not self.said
        self.said = is_slow
        return found if is_new else None


@dataclass(frozen=True)
class MemoryUse:
    """How full a memory is.

    Args:
        place (`str`): `"device"` or `"host"`.
        used (`int`): Bytes in use; of a device the most so far.
        limit (`int`): Bytes that there are.
        own (`int`): Bytes of this run; the same as `used` on a device.
        retries (`int`): How often a device had to give back its cache to go on.
    """

    place: str
    used: int
    limit: int
    own: int
    retries: int = 0


@dataclass
class MemoryDetector:
    """Finds a memory that is nearly full, and mostly of this run. Says it once a place.

    Args:
        full (`float`): The share of the limit that is nearly full.
        full_after_retries (`float`): The same for a device that has already had to make room.
        said (`list[str]`): The places of which it has been said.
    """

    full: float = 0.94
    full_after_retries: float = 0.85
    said: list[str] = field(default_factory=list)

    def add(self, use: MemoryUse) -> bool:
        """Take how full a memory is; return whether to say it."""
        limit = self.full_after_retries if use.retries else self.full
        is_full = use.used >= limit * use.limit and use.own >= 0.5 * use.used
        if not is_full or use.place in self.said:
            return False
        self.said = [*self.said, use.place]
        return True


def memory_in_use(device: Any) -> Iterator[MemoryUse]:
    """Yield how full the memory of a CUDA device is, and that of the machine or its container."""
    if device is not None and torch.device(device).type == "cuda":
        used = torch.cuda.max_memory_allocated(device)
        retries = torch.cuda.memory_stats(device).get("num_alloc_retries", 0)
        yield MemoryUse("device", used, torch.cuda.get_device_properties(device).total_memory, used, retries)
    machine = psutil.virtual_memory()
    used, limit = machine.total - machine.available, machine.total
    container = _container()
    if container is not None and container[1] < limit:
        used, limit = container
    yield MemoryUse("host", used, limit, _own_memory())


def _own_memory() -> int:
    """Return the bytes of this process and of those that it has started; what they share counts more than once."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return total


def _container() -> tuple[int, int] | None:
    """Return what the container uses without its file cache, and what it may use (bytes); `None` without a limit."""
    for limit, used, statistics, cache in _CGROUPS:
        try:
            allowed = int(Path(limit).read_text())
            lines = dict(line.split() for line in Path(statistics).read_text().splitlines())
            return int(Path(used).read_text()) - int(lines.get(cache, 0)), allowed
        except (OSError, ValueError):  # another version, or the limit is "max"
            continue
    return None
