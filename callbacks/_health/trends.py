"""Divergence and plateau: where the training loss goes over many steps."""

import math
from dataclasses import dataclass, field
from statistics import fmean, median, pvariance


@dataclass(frozen=True)
class Divergence:
    """A smoothed loss far above its best.

    Args:
        smoothed (`float`): The median of the last losses.
        best (`float`): The lowest that it has been.
        best_step (`int`): When that was.
        steps (`int`): For how many steps it has been far above.
    """

    smoothed: float
    best: float
    best_step: int
    steps: int


@dataclass
class DivergenceDetector:
    """Finds a smoothed loss that is far and persistently above its best. Says it once, until the loss has come back.

    Args:
        window (`int`): Steps of the median.
        patience (`int`): For how many steps in a row it must be far above.
        ratio (`float`): Far above is at least so many times the best,
        rise (`float`): and at least so much more.
        losses (`list[float]`): The last losses.
        best (`float`, *optional*): The best smoothed loss.
        best_step (`int`): When it was.
        smoothed (`float`, *optional*): The smoothed loss now.
        bad_steps (`int`): For how many steps it has been far above.
    """

    window: int = 25
    patience: int = 25
    ratio: float = 1.5
    rise: float = 0.5
    losses: list[float] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    smoothed: float | None = None
    bad_steps: int = 0

    def add(self, loss: float, step: int) -> Divergence | None:
        """Take the loss of a step."""
        self.losses.append(loss)
        del self.losses[: -self.window]
        if len(self.losses) < self.window:
            return None
        self.smoothed = median(self.losses)
        if self.best is None or self.smoothed < self.best:
            self.best, self.best_step = self.smoothed, step
        is_far = self.smoothed > max(self.best * self.ratio, self.best + self.rise)
        self.bad_steps = self.bad_steps + 1 if is_far else 0
        if self.bad_steps != self.patience:
            return None
        return Divergence(self.smoothed, self.best, self.best_step, self.bad_steps)

    @property
    def is_near_best(self) -> bool:
        """Whether the weights of now are worth going back to."""
        if self.smoothed is None or self.best is None:
            return False
        return self.smoothed <= self.best * 1.1 + 0.05

    def forget_recent(self) -> None:
        """Begin anew with the losses, keeping the best: the weights are no longer those that gave them."""
        self.losses, self.smoothed, self.bad_steps = [], None, 0


@dataclass(frozen=True)
class Plateau:
    """Two stretches of steps without a difference.

    Args:
        before (`float`): The mean loss of the first stretch.
        now (`float`): That of the second.
        steps (`int`): The steps of both.
    """

    before: float
    now: float
    steps: int


@dataclass
class PlateauDetector:
    """Finds a loss that has stopped falling although the learning rate has not been decayed to nothing.

    The mean of the last stretch is compared with that of the stretch before. Says it once, until the loss clearly
    falls again.

    Args:
        stretch (`int`): Steps of each of the two.
        gain (`float`): The share of the loss by which it must fall.
        errors (`float`): How many standard errors of the difference count as noise.
        least_rate (`float`): The share of the highest learning rate below which nothing is expected.
        least_loss (`float`): The loss below which nothing is expected.
        losses (`list[float]`): The last losses.
        highest_rate (`float`): The highest learning rate so far.
        said (`bool`): Whether it has been said.
    """

    stretch: int = 200
    gain: float = 0.005
    errors: float = 1.0
    least_rate: float = 0.1
    least_loss: float = 0.05
    losses: list[float] = field(default_factory=list)
    highest_rate: float = 0.0
    said: bool = False

    def add(self, loss: float, rate: float) -> Plateau | None:
        """Take the loss and the learning rate of a step."""
        self.losses.append(loss)
        self.highest_rate = max(self.highest_rate, rate)
        if len(self.losses) < 2 * self.stretch:
            return None
        first, second = self.losses[: self.stretch], self.losses[self.stretch :]
        # Judged once a tenth of a stretch: noise gets few chances to look like a plateau, and sums cost nothing.
        del self.losses[: max(self.stretch // 10, 1)]
        before, now = fmean(first), fmean(second)
        noise = math.sqrt((pvariance(first) + pvariance(second)) / self.stretch)
        gain = before - now
        if gain > max(self.gain * before, 4 * self.errors * noise):
            self.said = False
        falls = gain > min(self.gain * before, self.errors * noise)
        is_expected_to = rate >= self.least_rate * self.highest_rate and now >= self.least_loss
        if self.said or falls or not is_expected_to:
            return None
        self.said = True
        return Plateau(before, now, 2 * self.stretch)

    def forget_recent(self) -> None:
        """Begin anew: the weights are no longer those that gave these losses."""
        self.losses = []
