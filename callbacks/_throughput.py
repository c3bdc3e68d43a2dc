"""Tokens per second of training, without the time that evaluations and checkpoints take."""

from collections.abc import Callable
from time import monotonic


class Throughput:
    """Divides the tokens between two logs by the seconds that were spent training.

    Args:
        clock (`Callable[[], float]`): Tells seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._spent = 0.0
        self._left_off: float | None = None
        self._interrupted = False
        self._tokens: float | None = None

    def step_begins(self) -> None:
        """Start counting, unless it goes on from the step before: waiting for data is part of training."""
        now = self._clock()
        if self._left_off is not None and not self._interrupted:
            self._spent += now - self._left_off
        self._left_off, self._interrupted = now, False

    def step_ends(self) -> None:
        """Count what the step took."""
        now = self._clock()
        if self._left_off is not None:
            self._spent += now - self._left_off
        self._left_off = now

    def interrupted(self) -> None:
        """Leave out the time from the last step's end to the next one's beginning."""
        self._interrupted = True

    def rate(self, tokens: float) -> float | None:
        """Return the tokens per second since the last call.

        Args:
            tokens (`float`): How many were trained on from the start of the run.

        Returns:
            `float`: `None` the first time, and when nothing was spent.
        """
        earlier, self._tokens = self._tokens, tokens
        spent, self._spent = self._spent, 0.0
        if earlier is None or spent <= 0 or tokens < earlier:
            return None
        return (tokens - earlier) / spent
