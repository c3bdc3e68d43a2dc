"""Spikes: values far above a robust running scale."""

import math
from dataclasses import dataclass, field
from statistics import median

_TINY = 1e-8
_NORMAL = 1.4826
"""The standard deviation of a normal distribution in units of its median absolute deviation."""


@dataclass(frozen=True)
class Spike:
    """A value that stands out.

    Args:
        value (`float`): The value.
        usual (`float`): The median of the values before it.
        deviations (`float`): How many robust standard deviations it is above it, in log space.
    """

    value: float
    usual: float
    deviations: float


@dataclass
class SpikeDetector:
    """Finds values that are large by statistics and large in practice.

    Median and median absolute deviation are taken of the logarithms of the last values, since losses and gradient
    norms vary by factors. Spikes do not enter the window; when nearly all values are spikes the scale has moved, and
    the window begins anew.

    Args:
        ratio (`float`): How many times the usual value a spike is at least.
        above_all (`float`): How many times the largest value of the window it is at least:
            rows of very different difficulty give long tails.
        beyond (`float`): How many times the largest is a spike whatever the deviations: in a window in which values
            fall steeply they say little.
        rise (`float`): How far above the usual value it is at least.
        deviations (`float`): How many robust standard deviations it is above at least.
        settling (`int`): Values at the beginning that are left out: there losses fall steeply.
        size (`int`): Values in the window.
        warm_up (`int`): Values in the window before the first judgement.
        least_spread (`float`): The standard deviation in log space below which it is not believed.
        seen (`int`): Values so far.
        logs (`list[float]`): The window.
        in_a_row (`int`): How many values just now were spikes.
    """

    ratio: float
    above_all: float
    beyond: float
    rise: float = 0.0
    deviations: float = 7.0
    settling: int = 20
    size: int = 60
    warm_up: int = 30
    least_spread: float = 0.05
    seen: int = 0
    logs: list[float] = field(default_factory=list)
    in_a_row: int = 0

    def add(self, value: float) -> Spike | None:
        """Judge a finite value by those before it, then remember it."""
        self.seen += 1
        if self.seen <= self.settling:
            return None
        spike = self._judge(value)
        if spike is None:
            self.in_a_row = 0
            self.logs.append(math.log(max(value, _TINY)))
            del self.logs[: -self.size]
            return None
        self.in_a_row += 1
        if self.in_a_row >= self.warm_up // 3:
            self.logs, self.in_a_row = [], 0
        return spike

    def _judge(self, value: float) -> Spike | None:
        if len(self.logs) < self.warm_up:
            return None
        middle = median(self.logs)
        usual, log = math.exp(middle), math.log(max(value, _TINY))
        if value < usual * self.ratio or value < usual + self.rise or log < max(self.logs) + math.log(self.above_all):
            return None
        spread = max(_NORMAL * median(abs(entry - middle) for entry in self.logs), self.least_spread)
        deviations = (log - middle) / spread
        is_beyond = log >= max(self.logs) + math.log(self.beyond)
        return Spike(value, usual, deviations) if is_beyond or deviations >= self.deviations else None
