import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from deepfabric_trainer.callbacks._health.findings import read_policies
from deepfabric_trainer.callbacks._health.processes import ProcessesDifferError, together
from deepfabric_trainer.callbacks._health.run import HealthRun
from deepfabric_trainer.callbacks._health.settings import Settings

logger = logging.getLogger(__name__)


class TrainingHealthCallback(TrainerCallback, ExportableState):
    """Watch a run for what goes wrong in training; say so with numbers, rows and advice; act if asked.

    It sees `nan` (also when `logging_nan_inf_filter` hides it), `loss_spike`, `gradient_spike`, `nothing_to_train`,
    `divergence`, `overfitting`, `memorizing`, `plateau`, `slow_input` and `memory`. What is found is logged, each kind
    the first time and then at powers of two, and goes to the run's journal, from where reports take it.

    A policy says what is done about a kind:

    - `"log"`: nothing else. The default of all kinds but `nan`.
    - `"stop"`: the run ends. The default of `nan`. A step that shows NaN, a spike or nothing to train does not change
      the weights any more.
    - `"skip_step"` (`nan`, `loss_spike`, `gradient_spike`, `nothing_to_train`): the step changes neither weights nor
      optimizer. After ten in a row the run stops.
    - `"rollback"` (`nan`, `loss_spike`, `gradient_spike`, `divergence`): trained weights, optimizer and schedule are
      again those of the last healthy step that was kept, the learning rate is lower for the rest of the run, and the
      data go on behind the bad batch. The global step goes on counting.

    Losses, labels and rows of a step come from a forward hook that is on the model from the beginning of a step to its
    update. Compiled models and `DataParallel` get none; there the gradients and the logs are watched. No forward pass
    is made, and the device is waited for once a step. The state is kept in checkpoints, and a resumed run goes on with
    it whatever `restore_callback_states_from_checkpoint` says; a new run begins anew.

    Args:
        policies (`Mapping[str, str]`, *optional*): The policies of the kinds that are not to have their default.
        max_rollbacks (`int`): The run stops instead of going back once more.
        rollback_lr_factor (`float`): What each time multiplies the learning rate.
        rollback_every (`int`): Steps between two states that are kept to go back to, if the run is healthy then. The
            first is that before training. They are one file in `output_dir`, as large as a checkpoint.

    Raises:
        ConfigError: For a kind or a policy that does not exist, or a number that makes no sense; when training begins,
            for a policy that cannot work with DeepSpeed, FSDP or scaled fp16 gradients.

    Example:
    ```python
    >>> from deepfabric_trainer.callbacks import TrainingHealthCallback

    >>> callback = TrainingHealthCallback({"nan": "skip_step", "divergence": "rollback"})
    >>> TrainingHealthCallback({"nan": "ignore"})
    Traceback (most recent call last):
        ...
    deepfabric_trainer.errors.ConfigError: the policy of 'nan' is 'ignore'. Expected one of "log", "skip_step", \
"rollback", "stop". To fix it: choose one of these.

    ```
    """

    def __init__(
        self,
        policies: Mapping[str, str] | None = None,
        *,
        max_rollbacks: int = 2,
        rollback_lr_factor: float = 0.5,
        rollback_every: int = 100,
    ) -> None:
        self.settings = Settings(read_policies(policies), max_rollbacks, rollback_lr_factor, rollback_every)
        self.last_state: dict[str, Any] = {}
        self._run: HealthRun | None = None
        self._has_failed = False

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, in the form of transformers' `ExportableState`."""
        return {
            "args": {
                "policies": {str(kind): str(policy) for kind, policy in self.settings.policies.items()},
                "max_rollbacks": self.settings.max_rollbacks,
                "rollback_lr_factor": self.settings.rollback_lr_factor,
                "rollback_every": self.settings.rollback_every,
            },
            "attributes": {"last_state": self.last_state if self._run is None else self._run.state()},
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew, or go on from the checkpoint's state."""
        self._end()
        self._has_failed = False
        saved: dict[str, Any] = {}
        name = type(self).__name__
        if state.global_step > 0:
            saved = self._newest(state.stateful_callbacks.get(name, []))
        # The trainer cannot save its next checkpoint where the one that it goes on from lacks a callback's state.
        state.stateful_callbacks.setdefault(name, self.state())
        self.settings.refuse_unsupported(kwargs.get("optimizer"))
        with self._harmless():
            self._run = together(lambda: HealthRun(self.settings, args, state, kwargs, saved))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to wait for data."""
        self._idle()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch a step."""
        with self._harmless():
            if self._run is not None:
                self._run.begin_step()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell micro-batches apart."""
        if self._run is not None:
            self._run.probe.next_batch()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judge the step before it changes the weights."""
        with self._harmless():
            if self._run is not None:
                self._run.judge_step(state, control, kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at times and memory, and keep the state to go back to."""
        with self._harmless():
            if self._run is not None:
                self._run.end_step(args, state, kwargs)
        self._idle()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Read what the steps could not show."""
        with self._harmless():
            if self._run is not None:
                self._run.read_logs(logs or {}, state, control)
        self._idle()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Compare evaluation with training."""
        with self._harmless():
            if self._run is not None:
                self._run.judge_evaluation(metrics or {}, state, control)
        self._idle()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to wait for data."""
        self._idle()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report what is left to report, and leave nothing behind."""
        with self._harmless():
            if self._run is not None:
                self._run.finish(state, control)
        self._end()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "last_state": self.state()["attributes"]["last_state"], "_run": None}

    def _newest(self, kept: Any) -> dict[str, Any]:
        """Return the newest state of a callback with these settings, or else of any.

        Of several callbacks transformers keeps a list, to which each checkpoint adds their states at the end.
        """
        states = kept if isinstance(kept, list) else [kept]
        same = [state for state in states if state.get("args") == self.state()["args"]]
        newest = (same or states or [{}])[-1]
        return dict(newest.get("attributes", {}).get("last_state", {}))

    def _idle(self) -> None:
        if self._run is not None:
            self._run.idle()

    def _end(self) -> None:
        if self._run is not None:
            self.last_state = self._run.state()
            self._run.probe.close()
        self._run = None

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Let the run go on without this callback if it fails."""
        try:
            yield
        except ProcessesDifferError:
            self._end()
            raise
        except Exception:
            if self._run is not None and PartialState().num_processes > 1:
                self._run.look_no_more()  # the other processes still ask this one
            else:
                self._end()
            if not self._has_failed:
                logger.warning(
                    "watching the run's health failed, and the run goes on without\n%s", traceback.format_exc()
                )
            self._has_failed = True
