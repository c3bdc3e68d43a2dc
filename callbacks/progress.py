import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from deepfabric_trainer.callbacks._progress_display import ProgressDisplay, terminal
from deepfabric_trainer.callbacks._report.chart import short
from deepfabric_trainer.callbacks._report.page import duration
from deepfabric_trainer.callbacks._throughput import Throughput
from deepfabric_trainer.callbacks._unfinished import Unfinished
from deepfabric_trainer.visible import visible

logger = logging.getLogger(__name__)

_REDRAWN_AFTER = 0.1
"""Seconds; a terminal need not be drawn more often."""
_EXACT_MATCH = "_tool_call_exact_match"


class TrainingProgressCallback(TrainerCallback):
    """Show a bar with loss, exact match of tool calls, tokens per second and the time left.

    Evaluations have a bar of their own, during training below the other. What is printed or logged meanwhile stands
    whole above. Where there is no terminal, or the training arguments say `disable_tqdm`, there is a short line for
    each log instead. Only the main process shows anything.

    It takes the place of transformers' callbacks, which a callback cannot remove:

    ```python
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingProgressCallback())
    ```

    A trainer can call `close()` in a `finally`, so that the terminal is given back at once after an exception;
    otherwise that happens when the trainer is gone or Python exits.
    """

    _display: ProgressDisplay | None
    _unfinished: Unfinished | None

    def __init__(self) -> None:
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.close()
        self._forget()
        if not state.is_world_process_zero:
            return
        self._begin, self._first_step, self._is_training = monotonic(), state.global_step, True
        stream = None if args.disable_tqdm else terminal()
        if stream is not None:
            self._display = ProgressDisplay(stream, state.max_steps, state.global_step)
            self._unfinished = Unfinished(state, self.close)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        self._throughput.step_begins()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self._throughput.step_ends()
        if self._display is not None and self._is_time():
            self._advance(state)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Move the bar of the evaluation; when its batches are through, callbacks generate."""
        total = len(eval_dataloader) if has_length(eval_dataloader) else None
        if self._display is None and not self._is_training:
            self._show_alone(args, state, total)
        if self._display is None:
            return
        self._batches += 1
        if not (self._is_time() or self._batches == total):
            return
        if self._is_alone:
            self._draw(lambda display: display.advance(self._batches, ""))
        else:
            self._draw(lambda display: display.show_inner("evaluation", self._batches, total))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Take the evaluation's bar away."""
        self._throughput.interrupted()
        self._note(metrics or {})
        self._batches = 0
        if self._is_alone:
            self.close()
        self._draw(lambda display: display.hide_inner())
        self._advance(state)

    def on_predict(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar of the prediction away."""
        self.on_evaluate(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do not count the time as training."""
        self._throughput.interrupted()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show what was logged: in the bar, or in a line where there is none; evaluations have a line in any case."""
        if not state.is_world_process_zero or not logs:
            return
        tokens = logs.get("num_tokens")
        if isinstance(tokens, int | float) and "loss" in logs:
            rate = self._throughput.rate(tokens)
            self._figures |= {} if rate is None else {"tok/s": short(rate)}
        self._note(logs)
        is_evaluation = any(name.startswith("eval") for name in logs)
        if self._display is None:
            with suppress(OSError, ValueError):  # nobody reads it any more
                print(
                    f"step {state.global_step:,}/{state.max_steps:,}  {visible(self._spoken(logs, state))}", flush=True
                )
        elif is_evaluation:
            self._draw(lambda display: display.say(f"step {state.global_step:,}  {self._spoken(logs, state)}"))
        self._advance(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the bar as it is, and give the terminal back."""
        self._advance(state)
        self._is_training = False
        self.close()

    def close(self) -> None:
        """Give the terminal back; for who catches an exception of `train()`."""
        display, self._display, self._is_alone = self._display, None, False
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished.settle()
        if display is not None:
            with suppress(OSError, ValueError):  # there is no terminal to give back
                display.close()

    def _show_alone(self, args: Any, state: Any, total: int | None) -> None:
        """Show a bar for an evaluation or prediction outside of training."""
        stream = None if args.disable_tqdm or not state.is_world_process_zero else terminal()
        if stream is not None:
            self._display, self._batches, self._is_alone = ProgressDisplay(stream, total, 0, "evaluation"), 0, True
            self._unfinished = Unfinished(state, self.close)

    def _forget(self) -> None:
        self._display = None
        self._is_alone = False
        self._unfinished = None
        self._throughput = Throughput()
        self._figures: dict[str, str] = {}
        self._begin = monotonic()
        self._first_step = 0
        self._is_training = False
        self._batches = 0
        self._drawn = 0.0

    def _advance(self, state: Any) -> None:
        if not self._is_alone:
            self._draw(lambda display: display.advance(state.global_step, self._line(state)))

    def _draw(self, draw: Callable[[ProgressDisplay], None]) -> None:
        """Draw, where there is a bar; when its terminal is gone the run goes on without."""
        if self._display is None:
            return
        try:
            draw(self._display)
        except (OSError, ValueError) as error:
            self.close()
            logger.warning("the terminal takes no more (%s), and the run goes on without a bar", error)

    def _is_time(self) -> bool:
        now = monotonic()
        if now - self._drawn < _REDRAWN_AFTER:
            return False
        self._drawn = now
        return True

    def _note(self, logs: Mapping[str, Any]) -> None:
        if isinstance(logs.get("loss"), int | float):
            self._figures["loss"] = f"{logs['loss']:.3f}"
        for name, value in logs.items():
            if name.endswith(_EXACT_MATCH):
                self._figures["exact"] = f"{value:.2f}"

    def _line(self, state: Any) -> str:
        return "  ".join([*(f"{name} {value}" for name, value in self._figures.items()), *self._time_left(state)])

    def _spoken(self, logs: Mapping[str, Any], state: Any) -> str:
        """Return the metrics that say most; of a log without them, all."""
        shown = {
            "loss": logs.get("loss"),
            "eval loss": logs.get("eval_loss"),
            "train loss": logs.get("train_loss"),
            "lr": logs.get("learning_rate"),
        }
        parts = [f"{name} {short(value)}" for name, value in shown.items() if isinstance(value, int | float)]
        for name, value in logs.items():
            if name.endswith(_EXACT_MATCH):
                low, high = (logs.get(f"{name}_{bound}") for bound in ("low", "high"))
                interval = "" if low is None or high is None else f" ({low:.2f}–{high:.2f})"
                parts.append(f"exact match {value:.2f}{interval}")
        if "loss" in logs:
            parts += [f"{self._figures['tok/s']} tok/s"] if "tok/s" in self._figures else []
            parts += self._time_left(state)
        rest = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in logs.items()
        )
        return "  ".join(parts or rest)

    def _time_left(self, state: Any) -> list[str]:
        done = state.global_step - self._first_step
        left = state.max_steps - state.global_step
        if not self._is_training or done <= 0 or left <= 0:
            return []
        return [f"{duration((monotonic() - self._begin) / done * left)} left"]
