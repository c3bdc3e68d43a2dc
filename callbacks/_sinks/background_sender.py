"""Sending messages in the background: in order, at least once, never in the way of who gives them."""

import atexit
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.callbacks._sinks.deepfabric_endpoint import Outcome, Verdict
from deepfabric_trainer.callbacks._sinks.spool import Message, Spool

logger = logging.getLogger(__name__)

Post = Callable[[str, Mapping[str, Any], float], Outcome]


@dataclass(frozen=True)
class Pace:
    """How fast, how much, how long.

    Args:
        gather (`float`): Seconds that a message may wait for others to go with it.
        batch (`int`): The most messages in a POST.
        timeout (`float`): Seconds that a POST may wait for the server.
        first_pause (`float`): Seconds before the first repetition, doubled each time, with jitter.
        longest_pause (`float`): Seconds between repetitions at most, unless the server asks for more.
        capacity (`int`): The most messages in memory; the oldest go to disk when there are more.
        stop (`float`): Seconds that `stop` may take.
    """

    gather: float = 5.0
    batch: int = 100
    timeout: float = 10.0
    first_pause: float = 1.0
    longest_pause: float = 60.0
    capacity: int = 1000
    stop: float = 5.0


class BackgroundSender:
    """Sends messages from one daemon thread, which starts with the first message.

    While the server answers, messages wait in memory until a batch is together. As soon as it does not, they go to
    the spool on disk, and from there in order when it is back: what is on disk is always older than what is in
    memory. After `stop` nothing is in memory; another message starts the thread again. A forked process sends
    nothing.

    Args:
        post (`Post`): Sends a body to a path, waiting at most so many seconds; raises nothing.
        spool (`Spool`): Where messages wait for the server; used by this sender alone.
        pace (`Pace`): How fast, how much, how long.
    """

    def __init__(self, post: Post, spool: Spool, pace: Pace | None = None) -> None:
        self.sent = 0
        self.spooled = 0
        self.lost = 0
        self._post = post
        self._spool = spool
        self._pace = pace or Pace()
        self._queue: deque[Message] = deque()
        self._in_flight: list[Message] = []
        self._disk = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._closed = False
        self._worker: threading.Thread | None = None
        self._process = os.getpid()
        self._warned: set[str] = set()
        self._random = random.Random()

    def put(self, message: Message) -> None:
        """Take a message, and return at once."""
        if os.getpid() != self._process:
            return
        self._queue.append(message)
        if len(self._queue) > self._pace.capacity:  # the worker has been waiting for the server for very long
            with self._disk:
                self._to_spool([self._queue.popleft() for _ in range(len(self._queue) // 2)])
        if self._worker is None or not self._worker.is_alive():
            self._start()
        self._wake.set()

    def stop(self) -> None:
        """Send what waits, or put it on disk; return after `pace.stop` seconds at the latest."""
        if os.getpid() != self._process or self._worker is None:
            return
        atexit.unregister(self.stop)
        self._stopping = True
        self._wake.set()
        self._worker.join(self._pace.stop)
        with self._disk:
            self._worker = None  # a worker that still waits for the server finds that it is none any more
            self._to_spool(self._in_flight, first=True)
            self._in_flight = []
            self._to_spool(self._emptied_queue())
            self._guarded(self._spool.tidy)

    def _start(self) -> None:
        self._stopping = False
        self._worker = threading.Thread(target=self._work, name="deepfabric-sender", daemon=True)
        self._worker.start()
        atexit.register(self.stop)

    def _work(self) -> None:
        failures, again_at, alone = 0, 0.0, 0
        while True:
            if self._closed or time.monotonic() < again_at:
                self._move_queue_to_spool()
                if self._stopping:
                    return
                self._wait(None if self._closed else again_at - time.monotonic())
                continue
            batch, from_disk = self._next_batch(1 if alone else self._pace.batch)
            if not batch:
                if self._stopping:
                    return
                self._wait(None)
                self._gather()
                continue
            outcome = self._post_batch(batch)
            with self._disk:
                if self._worker is not threading.current_thread():
                    return
                self._settle(batch, from_disk, outcome, alone=bool(alone) or len(batch) == 1)
            failed = outcome.verdict is Verdict.RETRY
            failures = failures + 1 if failed else 0
            again_at = time.monotonic() + self._pause(failures, outcome.retry_after) if failed else 0.0
            if outcome.verdict is Verdict.REFUSED and len(batch) > 1:
                alone = len(batch)
            elif not failed:
                alone = max(alone - 1, 0)

    def _next_batch(self, limit: int) -> tuple[list[Message], bool]:
        """Return the oldest messages that can go together, and whether they are on disk."""
        with self._disk:
            waiting = self._guarded(lambda: len(self._spool)) or 0
            if waiting:
                return _together(self._guarded(lambda: self._spool.head(limit)) or [], limit), True
            self._in_flight = _together(list(self._queue), limit)
            for _ in self._in_flight:
                self._queue.popleft()
            return self._in_flight, False

    def _post_batch(self, batch: list[Message]) -> Outcome:
        first = batch[0]
        body = first.body if first.path == "runs" else {"metrics": [message.body for message in batch]}
        timeout = min(self._pace.timeout, self._pace.stop) if self._stopping else self._pace.timeout
        return self._post(first.path, body, timeout)

    def _settle(self, batch: list[Message], from_disk: bool, outcome: Outcome, *, alone: bool) -> None:
        """Do with a batch what its outcome asks for; the caller holds the disk."""
        self._in_flight = []
        refused = outcome.verdict is Verdict.REFUSED and alone
        if outcome.verdict is Verdict.SENT or refused:
            if from_disk:
                self._guarded(lambda: self._spool.drop(len(batch)))
        elif not from_disk:
            self._to_spool(batch, first=True)
        if outcome.verdict is Verdict.SENT:
            self.sent += len(batch)
        elif refused:
            self.lost += len(batch)
            self._warn("refused", f"the DeepFabric server refuses a message ({outcome.reason}); it is not sent again")
        elif outcome.verdict is Verdict.CLOSED:
            self._closed = True
            self._warn(
                "closed",
                f"the DeepFabric server does not take this run's messages ({outcome.reason}); check the key and the "
                "URL. They are kept on disk for the next run",
            )
        elif outcome.verdict is Verdict.RETRY:
            self._warn("retry", f"the DeepFabric server cannot be reached ({outcome.reason}); messages wait on disk")

    def _pause(self, failures: int, retry_after: float | None) -> float:
        if retry_after is not None:
            return retry_after
        pause = min(self._pace.first_pause * 2.0 ** min(failures - 1, 30), self._pace.longest_pause)
        return pause * self._random.uniform(0.5, 1.0)

    def _wait(self, seconds: float | None) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _gather(self) -> None:
        """Wait until a batch is together, or its first message has waited long enough."""
        end = time.monotonic() + self._pace.gather
        while not self._stopping and len(self._queue) < self._pace.batch and (left := end - time.monotonic()) > 0:
            self._wait(left)

    def _move_queue_to_spool(self) -> None:
        with self._disk:
            if self._worker is threading.current_thread():
                self._to_spool(self._emptied_queue())

    def _emptied_queue(self) -> list[Message]:
        return [self._queue.popleft() for _ in range(len(self._queue))]

    def _to_spool(self, messages: list[Message], *, first: bool = False) -> None:
        """Write messages to disk; the caller holds the disk."""
        if not messages:
            return
        try:
            (self._spool.prepend if first else self._spool.append)(messages)
            self.spooled += len(messages)
        except OSError as error:
            self.lost += len(messages)
            self._warn("disk", f"messages for DeepFabric are lost: the disk does not take them ({error})")

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except OSError as error:
            self._warn("read", f"messages for DeepFabric that wait on disk cannot be read or removed ({error})")
            return None

    def _warn(self, cause: str, message: str) -> None:
        if cause not in self._warned:
            self._warned.add(cause)
            logger.warning(message)


def _together(messages: list[Message], limit: int) -> list[Message]:
    """Return the first messages that one POST can carry: metrics, or one message of another kind."""
    if not messages or messages[0].path != "metrics":
        return messages[:1]
    batch = []
    for message in messages[:limit]:
        if message.path != "metrics":
            break
        batch.append(message)
    return batch
