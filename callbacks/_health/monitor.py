"""`Monitor`: all detectors of a run, fed with numbers only."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from deepfabric_trainer.callbacks._health.evaluations import MemorizingDetector, OverfittingDetector
from deepfabric_trainer.callbacks._health.findings import Finding, Kind
from deepfabric_trainer.callbacks._health.resources import MemoryDetector, MemoryUse, SlowInputDetector
from deepfabric_trainer.callbacks._health.spikes import SpikeDetector
from deepfabric_trainer.callbacks._health.trends import DivergenceDetector, PlateauDetector

_GIB = 2**30


@dataclass(frozen=True)
class StepNumbers:
    """What was measured of an optimizer step, before the update.

    Args:
        losses (`tuple[float, ...]`): The mean loss of each micro-batch; empty where it cannot be seen.
        labels (`tuple[int, ...]`): The trained labels of each micro-batch; empty where they cannot be seen.
        gradient_norm (`float`, *optional*): The norm of the gradients before clipping, where it can be told.
        gradients_finite (`bool`, *optional*): Whether the gradients are numbers; `None` where they cannot be seen.
        batches (`tuple[int, ...]`): The numbers of the micro-batches that were seen, also those without a loss.
    """

    losses: tuple[float, ...] = ()
    labels: tuple[int, ...] = ()
    gradient_norm: float | None = None
    gradients_finite: bool | None = None
    batches: tuple[int, ...] = ()

    @property
    def loss(self) -> float | None:
        """The mean loss of the trained labels of the step."""
        if not self.losses:
            return None
        if len(self.labels) != len(self.losses) or not any(self.labels):
            return sum(self.losses) / len(self.losses)
        pairs = [(loss, count) for loss, count in zip(self.losses, self.labels, strict=True) if count]
        return sum(loss * count for loss, count in pairs) / sum(count for _, count in pairs)


@dataclass
class Monitor:
    """The detectors of a run. Its state is plain numbers, so that a checkpoint can keep it.

    Args:
        clip (`float`, *optional*): `max_grad_norm`: a gradient norm below it is no spike, since it is not even
            clipped.
    """

    clip: float | None = None
    loss_spikes: SpikeDetector = field(
        default_factory=lambda: SpikeDetector(ratio=2.0, above_all=1.5, beyond=5.0, rise=0.3)
    )
    gradient_spikes: SpikeDetector = field(
        default_factory=lambda: SpikeDetector(ratio=5.0, above_all=3.0, beyond=10.0)
    )
    divergence: DivergenceDetector = field(default_factory=DivergenceDetector)
    plateau: PlateauDetector = field(default_factory=PlateauDetector)
    overfitting: dict[str, OverfittingDetector] = field(default_factory=dict)
    memorizing: dict[str, MemorizingDetector] = field(default_factory=dict)
    slow_input: SlowInputDetector = field(default_factory=SlowInputDetector)
    memory: MemoryDetector = field(default_factory=MemoryDetector)
    train_accuracy: float | None = None
    train_loss: float | None = None
    since_evaluation: list[float] = field(default_factory=list)
    accuracies_since_evaluation: list[float] = field(default_factory=list)
    evaluated_step: int | None = None

    def step(self, numbers: StepNumbers, step: int, learning_rate: float) -> list[Finding]:
        """Return what a step shows, before its update."""
        findings = [*_nothing_to_train(numbers), *_not_finite(numbers)]
        loss, norm = numbers.loss, numbers.gradient_norm
        if any(finding.kind is Kind.NAN for finding in findings):
            return findings
        if loss is not None and not (numbers.labels and not any(numbers.labels)):
            findings += self._judge_loss(loss, numbers, step, learning_rate)
        if norm is not None:
            findings += self.gradient(norm, batches=numbers.batches)
        return findings

    def gradient(self, norm: float, *, batches: tuple[int, ...] | None = None) -> list[Finding]:
        """Return whether a gradient norm before clipping stands out."""
        if not math.isfinite(norm):
            return []
        spike = self.gradient_spikes.add(norm)
        if spike is None or norm < (self.clip or 0.0):
            return []
        message = f"the gradient norm is {norm:.4g}, {norm / spike.usual:.0f} times the usual {spike.usual:.4g}"
        evidence = {"gradient_norm": norm, "usual": spike.usual, "deviations": spike.deviations}
        return [Finding(Kind.GRADIENT_SPIKE, message, evidence, batches=batches, weight=norm)]

    def logged(
        self, logs: Mapping[str, Any], *, sees_losses: bool, sees_gradients: bool, sees_norm: bool
    ) -> list[Finding]:
        """Return what logged numbers show beyond what the steps have shown.

        Args:
            logs (`Mapping[str, Any]`): What is logged.
            sees_losses (`bool`): Whether the steps show their losses.
            sees_gradients (`bool`): Whether the steps show whether gradients are finite.
            sees_norm (`bool`): Whether the steps show the gradients' norm before clipping.
        """
        loss, norm = logs.get("loss"), logs.get("grad_norm")
        if loss is None:
            return []
        if "mean_token_accuracy" in logs:
            seen = [*self.accuracies_since_evaluation, logs["mean_token_accuracy"]]
            self.accuracies_since_evaluation = seen[-100:]
        if not sees_losses and math.isfinite(loss):
            self.since_evaluation = [*self.since_evaluation[-99:], loss]
        not_finite = [name for name in ("loss", "grad_norm") if not math.isfinite(logs.get(name, 0.0))]
        if not_finite and not sees_gradients:
            form = "loss" if "loss" in not_finite else "gradient"
            message = f"the logged {' and '.join(not_finite)} is not finite"
            return [Finding(Kind.NAN, message, {name: logs[name] for name in not_finite}, form)]
        return self.gradient(norm) if norm is not None and not sees_norm else []

    def evaluated(self, metrics: Mapping[str, Any], step: int) -> list[Finding]:
        """Return what the metrics of an evaluation show, beside the training loss since the evaluation before."""
        prefixes = [name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")]
        # Several evaluation sets come one after the other, each with metrics of its own.
        if step != self.evaluated_step and self.since_evaluation:
            self.train_loss = fmean(self.since_evaluation)
            self.since_evaluation = self.since_evaluation[-1:]
        if self.accuracies_since_evaluation:
            self.train_accuracy = fmean(self.accuracies_since_evaluation)
            self.accuracies_since_evaluation = []
        self.evaluated_step = step
        findings: list[Finding] = []
        for prefix in prefixes:
            loss = metrics.get(f"{prefix}_loss")
            if loss is None or not math.isfinite(loss):
                continue
            accuracy = metrics.get(f"{prefix}_mean_token_accuracy")
            findings += self._judge_evaluation(prefix, loss, accuracy, self.train_loss, step)
        return findings

    def waited(self, waiting: float, busy: float) -> list[Finding]:
        """Return whether steps wait for their batches (seconds)."""
        found = self.slow_input.add(waiting, busy)
        if found is None:
            return []
        message = (
            f"{found.share:.0%} of a step's time is waiting for data: {found.waiting:.3g} of {found.step:.3g} seconds"
        )
        evidence = {"share": found.share, "waiting_seconds": found.waiting, "step_seconds": found.step}
        return [Finding(Kind.SLOW_INPUT, message, evidence, weight=found.share)]

    def memory_used(self, uses: Iterable[MemoryUse]) -> list[Finding]:
        """Return which memories are nearly full."""
        findings = []
        for use in uses:
            if self.memory.add(use):
                share = use.used / use.limit
                message = (
                    f"the memory of the {use.place} is {share:.0%} full: "
                    f"{use.used / _GIB:.3g} of {use.limit / _GIB:.3g} GiB"
                )
                evidence = {"share": share, "used": use.used, "limit": use.limit, "own": use.own}
                evidence |= {"retries": use.retries} if use.place == "device" else {}
                findings.append(Finding(Kind.MEMORY, message, evidence, use.place, weight=share))
        return findings

    def state(self) -> dict[str, Any]:
        """Return all that it remembers, as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Monitor":
        """Return the monitor that had this state; times are of another machine, perhaps, and begin anew."""
        return cls(
            clip=state["clip"],
            loss_spikes=SpikeDetector(**state["loss_spikes"]),
            gradient_spikes=SpikeDetector(**state["gradient_spikes"]),
            divergence=DivergenceDetector(**state["divergence"]),
            plateau=PlateauDetector(**state["plateau"]),
            overfitting={name: OverfittingDetector(**saved) for name, saved in state["overfitting"].items()},
            memorizing={name: MemorizingDetector(**saved) for name, saved in state["memorizing"].items()},
            train_accuracy=state["train_accuracy"],
            train_loss=state["train_loss"],
            since_evaluation=list(state["since_evaluation"]),
            accuracies_since_evaluation=list(state["accuracies_since_evaluation"]),
            evaluated_step=state["evaluated_step"],
        )

    def rolled_back(self) -> None:
        """Forget what weights have shown that are gone."""
        self.divergence.forget_recent()
        self.plateau.forget_recent()
        self.train_loss, self.since_evaluation = None, []
        self.train_accuracy, self.accuracies_since_evaluation = None, []

    def _judge_loss(self, loss: float, numbers: StepNumbers, step: int, learning_rate: float) -> list[Finding]:
        findings = []
        self.since_evaluation = [*self.since_evaluation[-99:], loss]
        spike = self.loss_spikes.add(loss)
        if spike is not None:
            message = f"the loss is {loss:.4g}, {loss / spike.usual:.1f} times the usual {spike.usual:.4g}"
            evidence = {
                "loss": loss,
                "usual": spike.usual,
                "deviations": spike.deviations,
                "batch_losses": list(numbers.losses),
            }
            findings.append(Finding(Kind.LOSS_SPIKE, message, evidence, batches=numbers.batches, weight=loss))
        far = self.divergence.add(loss, step)
        if far is not None:
            message = (
                f"the smoothed loss is {far.smoothed:.4g}, has been far above its best of {far.best:.4g} "
                f"(step {far.best_step}) for {far.steps} steps"
            )
            evidence = {"smoothed_loss": far.smoothed, "best": far.best, "best_step": far.best_step}
            findings.append(Finding(Kind.DIVERGENCE, message, evidence, weight=far.smoothed))
        flat = self.plateau.add(loss, learning_rate)
        if flat is not None:
            message = (
                f"the loss has not fallen for {flat.steps} steps: on average {flat.before:.4g} in the first half of "
                f"them and {flat.now:.4g} in the second"
            )
            evidence = {"before": flat.before, "now": flat.now, "steps": flat.steps, "learning_rate": learning_rate}
            findings.append(Finding(Kind.PLATEAU, message, evidence))
        return findings

    def _judge_evaluation(
        self, prefix: str, loss: float, accuracy: float | None, train_loss: float | None, step: int
    ) -> list[Finding]:
        findings = []
        detector = self.overfitting.setdefault(prefix, OverfittingDetector())
        worse = None if train_loss is None else detector.add(loss, train_loss, step)
        if worse is not None:
            message = (
                f"{prefix}_loss has risen from {worse.best:.4g} (step {worse.best_step}) to {worse.now:.4g}, while "
                f"the training loss fell from {worse.train_at_best:.4g} to {worse.train_now:.4g}"
            )
            findings.append(Finding(Kind.OVERFITTING, message, asdict(worse), weight=worse.now))
        if self.memorizing.setdefault(prefix, MemorizingDetector()).add(
            loss, train_loss, accuracy, self.train_accuracy
        ):
            evidence = {
                "train_loss": train_loss,
                f"{prefix}_loss": loss,
                "train_accuracy": self.train_accuracy,
                f"{prefix}_accuracy": accuracy,
            }
            evidence = {name: value for name, value in evidence.items() if value is not None}
            seen = ", ".join(f"{name} {value:.4g}" for name, value in evidence.items())
            findings.append(
                Finding(Kind.MEMORIZING, f"training is as good as perfect, evaluation is not: {seen}", evidence)
            )
        return findings


def _nothing_to_train(numbers: StepNumbers) -> list[Finding]:
    empty = tuple(number for number, count in enumerate(numbers.labels) if count == 0)
    if not empty:
        return []
    batches = len(numbers.labels)
    message = (
        "no label of the batch is trained"
        if batches == 1
        else f"no label is trained in {len(empty)} of the step's {batches} micro-batches"
    )
    evidence = {"batches": len(empty), "of": batches}
    return [Finding(Kind.NOTHING_TO_TRAIN, message, evidence, batches=empty, weight=len(empty))]


def _not_finite(numbers: StepNumbers) -> list[Finding]:
    bad = tuple(number for number, loss in enumerate(numbers.losses) if not math.isfinite(loss))
    evidence: dict[str, Any] = {"batch_losses": list(numbers.losses), "gradients_finite": numbers.gradients_finite}
    if bad:
        message = f"the loss is {numbers.losses[bad[0]]}"
        return [Finding(Kind.NAN, message, evidence, "loss", batches=bad, weight=1.0 + len(bad))]
    if numbers.gradients_finite is False:
        every = numbers.batches
        return [Finding(Kind.NAN, "gradients are not finite", evidence, "gradient", batches=every, weight=1.0)]
    return []
