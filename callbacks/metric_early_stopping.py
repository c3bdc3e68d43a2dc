import logging
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from deepfabric_trainer.errors import ConfigError

logger = logging.getLogger(__name__)


class MetricEarlyStoppingCallback(TrainerCallback, ExportableState):
    """Stop the run when a metric has stopped getting better, or is good enough.

    Any metric will do that `evaluate()` returns, that is logged, or that a callback puts into `state.log_history`
    after the start. One value a step counts. NaN is never better. The state is kept in checkpoints, and a resumed run
    goes on with it whatever `restore_callback_states_from_checkpoint` says; a new run begins anew.

    Args:
        metric (`str`): Its name. Without the prefix `eval_` the evaluation's metric of that name is meant (as in
            `metric_for_best_model`), or the logged one where evaluations have none or there are no evaluations.
        mode (`str`): `"max"` when larger is better, `"min"` when smaller is.
        patience (`int`): Stop at this many evaluations in a row that are not better.
        min_delta (`float`): How much better is better, in the metric's unit.
        target (`float`, *optional*): Stop as soon as the metric is this good.

    Raises:
        ConfigError: If `mode`, `patience` or `min_delta` is not one of these.
    """

    def __init__(
        self,
        metric: str = "eval_tool_call_exact_match",
        *,
        mode: str = "max",
        patience: int = 3,
        min_delta: float = 0.0,
        target: float | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise ConfigError(f"`mode` is {mode!r}", expected='"max" or "min"', fix="pass one of these")
        if not isinstance(patience, int) or patience < 1:
            raise ConfigError(f"`patience` is {patience!r}", expected="an integer of at least 1", fix="pass one")
        if not min_delta >= 0:
            raise ConfigError(
                f"`min_delta` is {min_delta!r}", expected="0 or more", fix="pass a size, not a direction"
            )
        self.metric = metric
        self.mode = mode
        self.patience = patience
        self.min_delta = min_delta
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

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, in the form of transformers' `ExportableState`."""
        return {
            "args": {
                "metric": self.metric,
                "mode": self.mode,
                "patience": self.patience,
                "min_delta": self.min_delta,
                "target": self.target,
            },
            "attributes": {
                "best": self.best,
                "best_step": self.best_step,
                "bad_evaluations": self.bad_evaluations,
                "last_step": self.last_step,
                "stopped_step": self.stopped_step,
            },
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew, or go on from the checkpoint's state."""
        self._reset()
        if state.global_step > 0:
            saved = state.stateful_callbacks.get(type(self).__name__, [])
            for data in saved if isinstance(saved, list) else [saved]:
                if data["args"]["metric"] == self.metric:
                    for name, value in data["attributes"].items():
                        setattr(self, name, value)
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
        self.last_step: int | None = None
        self.stopped_step: int | None = None
        self._bare_name_counts = False
        self._seen: set[str] = set()

    def _observe(self, values: Mapping[str, Any], state: Any, control: Any) -> None:
        self._seen.update(values)
        names = [self.metric] if self.metric.startswith("eval_") else [f"eval_{self.metric}"]
        if self._bare_name_counts:
            names.append(self.metric)
        value = next((values[name] for name in names if name in values), None)
        if not isinstance(value, Real) or self.last_step == state.global_step:
            return
        value = float(value)
        self.last_step = state.global_step
        if self.is_better(value, self.best):
            self.best, self.best_step, self.bad_evaluations = value, state.global_step, 0
        else:
            self.bad_evaluations += 1
        reason = self._reason_to_stop(value)
        if reason is None or control.should_training_stop:
            return
        control.should_training_stop = True
        self.stopped_step = state.global_step
        if state.is_world_process_zero:
            logger.warning("training stops at step %d: %s", state.global_step, reason)

    def _reason_to_stop(self, value: float) -> str | None:
        if self.target is not None and (value >= self.target if self.mode == "max" else value <= self.target):
            return f"{self.metric} is {value:.4g}, and the target is {self.target:.4g}"
        if self.bad_evaluations >= self.patience:
            best = "a number" if self.best is None else f"{self.best:.4g} (step {self.best_step})"
            return f"{self.metric} has not been better than {best} for {self.bad_evaluations} evaluations"
        return None
