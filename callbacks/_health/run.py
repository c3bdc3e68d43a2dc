"""`HealthRun`: one call of `train()`, from its first step to its last."""

import logging
import math
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from deepfabric_trainer.callbacks._health.findings import CAN_ROLL_BACK, CAN_SKIP, Finding, Policy
from deepfabric_trainer.callbacks._health.monitor import Monitor
from deepfabric_trainer.callbacks._health.probe import StepProbe
from deepfabric_trainer.callbacks._health.processes import (
    ProcessesDifferError,
    all_agree,
    gather_findings,
    together,
)
from deepfabric_trainer.callbacks._health.reporter import Reporter
from deepfabric_trainer.callbacks._health.resources import memory_in_use
from deepfabric_trainer.callbacks._health.rollback import RollbackPoint, drop_gradients
from deepfabric_trainer.callbacks._health.rows import find_rows
from deepfabric_trainer.callbacks._health.settings import Settings, find_obstacle, has_scaled_gradients

logger = logging.getLogger("deepfabric_trainer.callbacks.training_health")

_MEMORY_EVERY = 30.0
"""Seconds between two looks at the memory."""
_MOST_SKIPPED = 10
"""Steps skipped in a row after which the run stops: it is no longer a row that is to blame."""
_QUIET_STEPS = 10
"""Steps without trouble after which the weights are worth going back to."""
_MOST_SEARCHING = 60.0
"""Seconds that a run may spend on finding rows."""


class HealthRun:
    """Watches a run: reads its steps, judges them, acts, and reports.

    Args:
        settings (`Settings`): What to do about what.
        args (`TrainingArguments`): The trainer's.
        state (`TrainerState`): The trainer's.
        parts (`Mapping[str, Any]`): The trainer's `model`, `optimizer`, `lr_scheduler` and `train_dataloader`.
        saved (`Mapping[str, Any]`): What `state()` gave in the run that goes on; empty in a new one.
    """

    def __init__(
        self, settings: Settings, args: Any, state: Any, parts: Mapping[str, Any], saved: Mapping[str, Any]
    ) -> None:
        self.settings = settings
        self.monitor = Monitor.from_state(saved["monitor"]) if saved else Monitor(clip=args.max_grad_norm or None)
        self.reporter = Reporter(saved.get("counts"))
        self.rollbacks: int = saved.get("rollbacks", 0)
        self.lr_factor: float = saved.get("lr_factor", 1.0)
        self._can_drop = find_obstacle(parts.get("optimizer")) is None
        self._is_scaled = has_scaled_gradients(parts.get("optimizer"))
        self.probe = StepProbe(
            parts["model"],
            sees_forward=not args.torch_compile and args.n_gpu <= 1,
            sees_gradients=not self._is_scaled,
            sees_norm=self._can_drop and PartialState().num_processes == 1,
        )
        self._dataset = getattr(parts.get("train_dataloader"), "dataset", None)
        self._idle_since = self._step_began = time.monotonic()
        self._waited = 0.0
        self._memory_seen = float("-inf")
        self._searched = 0.0
        self._pending: list[Finding] = []
        self._skipped: int = saved.get("skipped", 0)
        self._is_blind = False
        self._last_trouble: int = saved.get("last_trouble", state.global_step - _QUIET_STEPS)
        self._sees_gradients = False
        self._sees_losses = True
        self._point: RollbackPoint | None = None
        if settings.rolls_back and parts.get("optimizer") is not None:
            path = Path(args.output_dir) / f"health-rollback-{platform.node()}.pt"
            self._point = RollbackPoint(path, writes=args.local_process_index == 0)
            if not self._point.finds(saved.get("rollback_step")):
                self._keep(state, parts)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run goes on with, as JSON can hold it."""
        return {
            "monitor": self.monitor.state(),
            "counts": dict(self.reporter.counts),
            "rollbacks": self.rollbacks,
            "lr_factor": self.lr_factor,
            "skipped": self._skipped,
            "last_trouble": self._last_trouble,
            "rollback_step": None if self._point is None else self._point.step,
        }

    def look_no_more(self) -> None:
        """Find nothing any more, and do only what other processes find to be done."""
        self._is_blind = True
        self.probe.close()

    def idle(self) -> None:
        """Say that from now on the trainer waits for the next batch, as far as anyone can tell."""
        self._idle_since = time.monotonic()

    def begin_step(self) -> None:
        """Begin to watch a step."""
        self._step_began = time.monotonic()
        self._waited = self._step_began - self._idle_since
        if not self._is_blind:
            self.probe.open()

    def judge_step(self, state: Any, control: Any, parts: Mapping[str, Any]) -> None:
        """Judge a step before it changes the weights, and act."""
        step, rate = state.global_step + 1, float(parts["optimizer"].param_groups[0]["lr"])
        found = [*self._pending, *self._look(lambda: self._read_step(step, rate))]
        self._pending = []
        action = self._settle(found, control, step, parts)
        self._skipped = self._skipped + 1 if action is Policy.SKIP_STEP else 0

    def end_step(self, args: Any, state: Any, parts: Mapping[str, Any]) -> None:
        """Look at times and memory, and keep the state to go back to."""
        self.probe.forget()
        now = time.monotonic()
        self._pending += self._look(lambda: self.monitor.waited(self._waited, now - self._step_began))
        if now - self._memory_seen > _MEMORY_EVERY:
            self._memory_seen = now
            self._pending += self._look(lambda: self.monitor.memory_used(memory_in_use(args.device)))
        is_due = state.global_step % self.settings.rollback_every == 0
        is_quiet = state.global_step - self._last_trouble >= _QUIET_STEPS
        is_well = self.monitor.divergence.is_near_best or not self._sees_losses
        if self._point is not None and is_due and is_quiet and all_agree(is_well):
            together(lambda: self._keep(state, parts))

    def read_logs(self, logs: Mapping[str, Any], state: Any, control: Any) -> None:
        """Read what the steps could not show."""
        if "loss" not in logs:
            return
        if self._is_scaled and not math.isfinite(logs.get("grad_norm", 0.0)):
            logs = {name: value for name, value in logs.items() if name != "grad_norm"}
        seen = {
            "sees_losses": self._sees_losses,
            "sees_gradients": self._sees_gradients,
            "sees_norm": self.probe.sees_norm,
        }
        self._settle(self._look(lambda: self.monitor.logged(logs, **seen)), control, state.global_step)

    def judge_evaluation(self, metrics: Mapping[str, Any], state: Any, control: Any) -> None:
        """Compare evaluation with training."""
        found = self._look(lambda: self.monitor.evaluated(metrics, state.global_step))
        self._settle(found, control, state.global_step)

    def finish(self, state: Any, control: Any) -> None:
        """Report what is left to report, and leave nothing behind."""
        self._settle(self._pending, control, state.global_step)
        self._pending = []
        if PartialState().is_main_process:
            self.reporter.sum_up()
        if self._point is not None:
            self._point.remove()

    def _read_step(self, step: int, rate: float) -> list[Finding]:
        numbers = self.probe.read()
        self._sees_gradients = numbers.gradients_finite is not None
        self._sees_losses = bool(numbers.losses)
        return [self._with_rows(finding) for finding in self.monitor.step(numbers, step, rate)]

    def _look(self, look: Callable[[], list[Finding]]) -> list[Finding]:
        """Return what looking finds; one that fails is the last, while the other processes still get their answers."""
        if self._is_blind:
            return []
        try:
            return look()
        except Exception:
            self.look_no_more()
            logger.warning("watching the run's health failed, and the run goes on without\n%s", traceback.format_exc())
            return []

    def _settle(
        self, found: Sequence[Finding], control: Any, step: int, parts: Mapping[str, Any] | None = None
    ) -> Policy:
        """Agree with the other processes on what was found, do what is to be done, report it, and return it.

        Args:
            found (`Sequence[Finding]`): What this process has found.
            control (`TrainerControl`): The trainer's.
            step (`int`): The global step, as logs count it.
            parts (`Mapping[str, Any]`, *optional*): The trainer's parts, while the step has not changed the weights.
        """
        findings = gather_findings(found)
        if not findings:
            return Policy.LOG
        if any(finding.kind in CAN_SKIP | CAN_ROLL_BACK for finding in findings):
            self._last_trouble = step
        policies = [self.settings.policies[finding.kind] for finding in findings]
        wanted = max(policies, key=list(Policy).index)
        action, why = self._act(wanted, control, parts)
        if PartialState().is_main_process:
            for finding, policy in zip(findings, policies, strict=True):
                if policy is wanted:
                    self.reporter.report(finding, action, control, step=step, why=why)
                else:
                    self.reporter.report(finding, Policy.LOG, control, step=step)
        return action

    def _act(self, wanted: Policy, control: Any, parts: Mapping[str, Any] | None) -> tuple[Policy, str]:
        """Do what the strongest policy says; return what was done, and more about it."""
        if parts is None and wanted in (Policy.SKIP_STEP, Policy.ROLLBACK):
            return Policy.LOG, "nothing is done, since only the logs have shown it"
        action, why = wanted, ""
        if wanted is Policy.SKIP_STEP and self._skipped >= _MOST_SKIPPED:
            action, why = Policy.STOP, f"{self._skipped} steps have been skipped in a row, and the run stops"
        elif wanted is Policy.ROLLBACK and self.rollbacks >= self.settings.max_rollbacks:
            action, why = Policy.STOP, f"the run has gone back {self.rollbacks} times, and stops"
        elif wanted is Policy.STOP:
            why = "the run stops"
        if action is not Policy.LOG and parts is not None and self._can_drop:
            drop_gradients(parts["model"])
        if action is Policy.STOP:
            control.should_training_stop = True
        elif action is Policy.SKIP_STEP:
            why = "the step is skipped"
        elif action is Policy.ROLLBACK and parts is not None and self._point is not None:
            why = self._go_back(self._point, parts)
        return action, why

    def _go_back(self, point: RollbackPoint, parts: Mapping[str, Any]) -> str:
        kept = together(lambda: point.read(parts["model"]))
        self.rollbacks += 1
        self.lr_factor *= self.settings.rollback_lr_factor
        trained = (parts["model"], parts["optimizer"], parts["lr_scheduler"])
        try:
            together(lambda: point.restore(kept, *trained, factor=self.lr_factor))
        except Exception as error:
            if PartialState().num_processes == 1:
                raise
            raise ProcessesDifferError(
                f"going back to step {point.step} failed in one process and not in others, which now hold other "
                f"weights: {error}"
            ) from error
        self.monitor.rolled_back()
        return (
            f"the weights are those after step {point.step} again, "
            f"and the learning rate is {self.lr_factor:.3g} of what was asked for"
        )

    def _keep(self, state: Any, parts: Mapping[str, Any]) -> None:
        if self._point is not None:
            self._point.save(
                parts["model"],
                parts["optimizer"],
                parts["lr_scheduler"],
                step=state.global_step,
                factor=self.lr_factor,
            )

    def _with_rows(self, finding: Finding) -> Finding:
        """Return a finding that names the rows of its batches, if anyone will read it."""
        if finding.batches is None or not self.reporter.is_told(finding):
            return finding
        if self._searched > _MOST_SEARCHING:
            rows: dict[str, Any] = {"rows": [], "rows_note": "not searched: the searches before took long enough"}
        else:
            began = time.monotonic()
            rows = find_rows(self._dataset, self.probe.inputs_of(finding.batches))
            self._searched += time.monotonic() - began
        return replace(finding, evidence={**finding.evidence, **rows})
