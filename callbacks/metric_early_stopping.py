import logging
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from deepfabric_trainer.callbacks._journal import RunEvent, journal_of
from deepfabric_trainer.errors import ConfigError

logger = logging.getLogger(__name__)

_WHAT = ("metric", "mode")
"""The settings without which a saved state says nothing."""


class MetricEarlyStoppingCallback(TrainerCallback, ExportableState):
    """Stop the run when a metric has stopped getting better, or is good enough.

    Any metric will do that `evaluate()` returns, that is logged, or that a callback puts into `state.log_history`
    after the start. One value a step counts. NaN is never better. The state is kept in checkpoints, and a resumed run
    goes on with it whatever `restore_callback_states_from_checkpoint` says; a new run begins anew. A stop is also an
    event of the run, which reports show.

    An evaluation is one of three:

    - *better*, when its value improves on the best so far by more than `min_delta`: it is the new best;
    - *bad*, when it does not; with `use_interval` only when the interval of the metric (`{metric}_low` to
      `{metric}_high`, from a sample) lies wholly on the bad side of the best, so that chance alone does not explain
      it. A metric without an interval is its own;
    - *undecided* otherwise: it neither counts against the patience nor restores it.

    Patience runs out at bad evaluations only: at the `patience`-th since the last better one, or at one that is
    `patience_steps` or more steps after it; where both are set, whichever comes first.

    Args:
        metric (`str`): Its name. Without the prefix `eval_` the evaluation's metric of that name is meant (as in
            `metric_for_best_model`), or the logged one where evaluations have none or there are no evaluations.
        mode (`str`): `"max"` when larger is better, `"min"` when smaller is.
        patience (`int`, *optional*): How many bad evaluations to wait for; 3 when `patience_steps` is not set either.
        patience_steps (`int`, *optional*): How many steps to wait for.
        min_delta (`float`): How much better is better, in the metric's unit.
        min_samples (`int`): Pass over evaluations that generated fewer turns than this (`eval_tool_call_turns`, with
            the metric's own prefix); evaluations that do not say how many count.
        use_interval (`bool`): Only count an evaluation as bad when its interval excludes the best.
        target (`float`, *optional*): Stop as soon as the metric is this good.

    Raises:
        ConfigError: If `mode`, `patience`, `patience_steps`, `min_delta` or `min_samples` is not one of these.
    """

    def __init__(
        self,
        metric: str = "eval_tool_call_exact_match",
        *,
        mode: str = "max",
        patience: int | None = None,
        patience_steps: int | None = None,
        min_delta: float = 0.0,
        min_samples: int = 0,
        use_interval: bool = False,
        target: float | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise ConfigError(f"`mode` is {mode!r}", expected='"max" or "min"', fix="pass one of these")
        for name, value in (("patience", patience), ("patience_steps", patience_steps)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"`{name}` is {value!r}", expected="an integer of at least 1", fix="pass one")
        if not min_delta >= 0:
            raise ConfigError(
                f"`min_delta` is {min_delta!r}", expected="0 or more", fix="pass a size, not a direction"
            )
        if not min_samples >= 0:
            raise ConfigError(f"`min_samples` is {min_samples!r}", expected="a number of turns", fix="pass 0 or more")
        self.metric = metric
        self.mode = mode
        self.patience = 3 if patience is None and patience_steps is None else patience
        self.patience_steps = patience_steps
        self.min_delta = min_delta
        self.min_samples = min_samples
        self.use_interval = use_interval
        self.target = target
        self._reset()

    def is_better(self, value: float, best: float | None) -> bool:
        """Return whether `value` improves on `best`, the best so far (`None`: there is none yet)."""
        if math.isnan(value):
            return False
        if best is None:
            return True
        gain = value - best if self.mode == "max" else best - value
        return gain > self.min_delta

    def is_bad(self, low: float, high: float, best: float | None) -> bool:
        """Return whether a value that is not better speaks against the run, by its interval (the value itself twice).

        Args:
            low (`float`): The lower end of the interval.
            high (`float`): The upper end.
            best (`float`, *optional*): The best so far.
        """
        if not self.use_interval or best is None or math.isnan(low) or math.isnan(high):
            return True
        return high < best if self.mode == "max" else low > best

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, in the form of transformers' `ExportableState`."""
        return {
            "args": {
                "metric": self.metric,
                "mode": self.mode,
                "patience": self.patience,
                "patience_steps": self.patience_steps,
                "min_delta": self.min_delta,
                "min_samples": self.min_samples,
                "use_interval": self.use_interval,
                "target": self.target,
            },
            "attributes": {
                "best": self.best,
                "best_step": self.best_step,
                "bad_evaluations": self.bad_evaluations,
                "first_step": self.first_step,
                "last_step": self.last_step,
                "stopped_step": self.stopped_step,
            },
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew, or go on from the checkpoint's state."""
        self._reset()
        # The trainer cannot save its next checkpoint where the one that it goes on from lacks a callback's state.
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step > 0:
            self._go_on_from(saved)
            states = saved if isinstance(saved, list) else [saved]
            if self.stopped_step == state.global_step and self.state() in states:
                control.should_training_stop = True  # killed between its last checkpoint and its end
        self._bare_name_counts = str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no"

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Look for the metric in what is logged."""
        self._observe(logs or {}, state, control)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Look for the metric in what an evaluation found."""
        self._observe(metrics or {}, state, control)
        self._bare_name_counts |= f"eval_{self.metric}" not in (metrics or {})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look for the metric where another callback has put it, such as one that comes later in the list.

        What is there at step 0 is the model before training, not something to get better than.
        """
        for entry in state.log_history[-2:]:
            if entry.get("step") == state.global_step > 0:
                self._observe(entry, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say so if there was nothing to watch."""
        if self.last_step is None and state.is_world_process_zero:
            logger.warning(
                "early stopping never saw %r; the metrics of this run: %s", self.metric, ", ".join(sorted(self._seen))
            )

    def _reset(self) -> None:
        self.best: float | None = None
        self.best_step: int | None = None
        self.bad_evaluations = 0
        self.first_step: int | None = None
        self.last_step: int | None = None
        self.stopped_step: int | None = None
        self._bare_name_counts = False
        self._seen: set[str] = set()

    def _go_on_from(self, saved: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Take the state of a checkpoint: the newest of this callback, or of one with the same metric.

        Of several callbacks transformers keeps a list, to which each checkpoint adds their states at the end.
        """
        states = saved if isinstance(saved, list) else [saved]
        akin = [state for state in states if all(state["args"][key] == getattr(self, key) for key in _WHAT)]
        same = [state for state in akin if state["args"] == self.state()["args"]]
        for state in (same or akin)[-1:]:
            for name, value in state["attributes"].items():
                setattr(self, name, value)

    def _observe(self, values: Mapping[str, Any], state: Any, control: Any) -> None:
        self._seen.update(values)
        names = [self.metric] if self.metric.startswith("eval_") else [f"eval_{self.metric}"]
        if self._bare_name_counts:
            names.append(self.metric)
        name = next((name for name in names if name in values), None)
        if name is None or not isinstance(values[name], Real) or self.last_step == state.global_step:
            return
        self.last_step = state.global_step
        if values.get(_turns_beside(name), math.inf) < self.min_samples:
            return
        value = float(values[name])
        low, high = (float(values.get(f"{name}_{end}", value)) for end in ("low", "high"))
        reason = self._judge(value, low, high, state.global_step)
        if reason is None or control.should_training_stop:
            return
        control.should_training_stop = True
        self.stopped_step = state.global_step
        journal_of(control).add(self._event(value, low, high, reason))
        if state.is_world_process_zero:
            logger.warning("training stops at step %d: %s", state.global_step, reason)

    def _judge(self, value: float, low: float, high: float, step: int) -> str | None:
        """Count a value, and return why it ends the run; `None` when it does not."""
        self.first_step = step if self.first_step is None else self.first_step
        is_bad = False
        if self.is_better(value, self.best):
            self.best, self.best_step, self.bad_evaluations = value, step, 0
        elif self.is_bad(low, high, self.best):
            self.bad_evaluations += 1
            is_bad = True
        if self._reaches_target(value):
            return f"{self.metric} is {value:.4g}, and the target is {self.target:.4g}"
        waited = step - (self.first_step if self.best_step is None else self.best_step)
        best = "a number" if self.best is None else f"{self.best:.4g} (step {self.best_step})"
        if is_bad and self.patience is not None and self.bad_evaluations >= self.patience:
            return f"{self.metric} has not been better than {best} for {self.bad_evaluations} evaluations"
        if is_bad and self.patience_steps is not None and waited >= self.patience_steps:
            return f"{self.metric} has not been better than {best} for {waited} steps"
        return None

    def _reaches_target(self, value: float) -> bool:
        return self.target is not None and (value >= self.target if self.mode == "max" else value <= self.target)

    def _event(self, value: float, low: float, high: float, reason: str) -> RunEvent:
        reached = self._reaches_target(value)
        return RunEvent(
            kind="early_stop",
            step=self.stopped_step or 0,
            message=f"Training stopped: {reason}.",
            evidence={
                "metric": self.metric,
                "value": _finite(value),
                "low": _finite(low),
                "high": _finite(high),
                "best": self.best,
                "best_step": self.best_step,
                "bad_evaluations": self.bad_evaluations,
            },
            cause="The metric has reached its target." if reached else "The model no longer gets better.",
            advice="" if reached or self.best_step is None else f"Use the checkpoint of step {self.best_step}.",
            action="stop",
            severity="info",
        )


def _turns_beside(name: str) -> str:
    """Return what the number of turns is called that a metric was taken over."""
    prefix = name.partition("tool_call_")[0] if "tool_call_" in name else "eval_"
    return f"{prefix}tool_call_turns"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
