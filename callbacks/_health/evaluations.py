"""Overfitting and memorizing: training beside evaluation."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Overfitting:
    """An evaluation loss that rises while the training loss falls.

    Args:
        best (`float`): The best evaluation loss.
        best_step (`int`): When it was.
        now (`float`): The evaluation loss now.
        train_at_best (`float`): The training loss then.
        train_now (`float`): The training loss now.
        evaluations (`int`): How many evaluations in a row are above the best.
    """

    best: float
    best_step: int
    now: float
    train_at_best: float
    train_now: float
    evaluations: int


@dataclass
class OverfittingDetector:
    """Finds that training gets better and evaluation worse, over several evaluations, by more than noise.

    Said once for a best evaluation.

    Args:
        patience (`int`): Evaluations in a row that are above the best.
        each (`float`): The share of the best by which each of them is above it.
        last (`float`): The share by which the last one is.
        fall (`float`): The share by which the training loss has fallen since.
        best (`float`, *optional*): The best evaluation loss.
        best_step (`int`): When it was.
        train_at_best (`float`): The training loss then.
        above (`list[float]`): The evaluations since that are above it by `each`, in a row.
        said (`bool`): Whether it has been said for this best.
    """

    patience: int = 3
    each: float = 0.01
    last: float = 0.05
    fall: float = 0.03
    best: float | None = None
    best_step: int = 0
    train_at_best: float = 0.0
    above: list[float] = field(default_factory=list)
    said: bool = False

    def add(self, loss: float, train_loss: float, step: int) -> Overfitting | None:
        """Take the loss of an evaluation, and the training loss around it."""
        if self.best is None or loss < self.best:
            self.best, self.best_step, self.train_at_best = loss, step, train_loss
            self.above, self.said = [], False
            return None
        self.above = [*self.above, loss][-self.patience :] if loss > self.best * (1 + self.each) else []
        rises = len(self.above) == self.patience and self.above[0] < self.above[-1]
        far = loss > self.best * (1 + self.last)
        falls = train_loss < self.train_at_best * (1 - self.fall)
        if self.said or not (rises and far and falls):
            return None
        self.said = True
        return Overfitting(self.best, self.best_step, loss, self.train_at_best, train_loss, len(self.above))


@dataclass
class MemorizingDetector:
    """Finds training rows that are known by heart while evaluation is clearly worse. Says it once, while it lasts.

    Args:
        near_zero (`float`): A training loss below this is known by heart, if the evaluation's is so many
        ratio (`float`): times as high
        rise (`float`): and so much higher.
        near_one (`float`): A token accuracy above this is, if the evaluation's is
        gap (`float`): so much lower.
        said (`bool`): Whether it has been said.
    """

    near_zero: float = 0.05
    ratio: float = 3.0
    rise: float = 0.2
    near_one: float = 0.995
    gap: float = 0.05
    said: bool = False

    def add(
        self, loss: float, train_loss: float | None, accuracy: float | None = None, train_accuracy: float | None = None
    ) -> bool:
        """Take what an evaluation found, and training around it; return whether to say it."""
        by_loss = train_loss is not None and (
            train_loss < self.near_zero and loss > max(train_loss * self.ratio, train_loss + self.rise)
        )
        by_accuracy = (
            accuracy is not None
            and train_accuracy is not None
            and train_accuracy > self.near_one
            and accuracy < train_accuracy - self.gap
        )
        is_new = (by_loss or by_accuracy) and not self.said
        self.said = by_loss or by_accuracy
        return is_new
