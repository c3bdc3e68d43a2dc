import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState

from deepfabric_trainer.callbacks import MetricEarlyStoppingCallback
from deepfabric_trainer.errors import ConfigError

METRIC = "eval_tool_call_exact_match"
NAN = math.nan


class Run:
    """Plays a run's events to a callback, without training."""

    def __init__(self, callback: MetricEarlyStoppingCallback, *, eval_strategy: str = "steps", **state: Any) -> None:
        self.callback = callback
        self.args = SimpleNamespace(eval_strategy=eval_strategy)
        self.state = TrainerState(is_world_process_zero=True, **state)
        self.control = TrainerControl()
        callback.on_train_begin(self.args, self.state, self.control)

    def log(self, values: dict[str, Any]) -> None:
        self.state.log_history.append({**values, "step": self.state.global_step})
        self.callback.on_log(self.args, self.state, self.control, logs=values)

    def evaluate(self, metrics: dict[str, Any]) -> None:
        self.log(metrics)
        self.callback.on_evaluate(self.args, self.state, self.control, metrics=metrics)

    def play(self, values: list[float], metric: str = METRIC) -> int | None:
        """Evaluate at steps 1, 2, ...; return the step at which the run stops."""
        for value in values:
            self.state.global_step += 1
            self.evaluate({metric: value})
            if self.control.should_training_stop:
                return self.state.global_step
        return None


@pytest.mark.parametrize(
    ("options", "values", "stopped"),
    [
        ({"patience": 2}, [0.1, 0.2, 0.2, 0.1], 4),
        ({"patience": 2}, [0.1, 0.2, 0.1, 0.3, 0.2, 0.3], 6),
        ({"patience": 1}, [0.1, 0.2, 0.3], None),
        ({"patience": 3}, [0.5, 0.4, 0.3], None),
        ({"patience": 2, "mode": "min"}, [0.3, 0.2, 0.2, 0.3], 4),
        ({"patience": 2, "mode": "min"}, [0.3, 0.2, 0.1, 0.0], None),
        ({"patience": 2, "min_delta": 0.1}, [0.10, 0.15, 0.19], 3),
        ({"patience": 2, "min_delta": 0.1}, [0.10, 0.15, 0.25, 0.3], None),
        ({"patience": 2}, [NAN, NAN], 2),
        ({"patience": 2}, [0.1, NAN, NAN], 3),
        ({"patience": 2}, [0.1, NAN, 0.2, NAN], None),
        ({"patience": 2, "mode": "min"}, [NAN, 0.5, 0.4, 0.3], None),
        ({"target": 0.9}, [0.1, 0.9], 2),
        ({"target": 0.9}, [0.1, 0.8], None),
        ({"target": 0.1, "mode": "min"}, [0.5, 0.05], 2),
        ({"target": 0.9}, [NAN], None),
    ],
)
def test_when_it_stops(options, values, stopped):
    callback = MetricEarlyStoppingCallback(**options)
    assert Run(callback).play(values) == stopped
    assert callback.stopped_step == stopped


def test_best_is_kept():
    callback = MetricEarlyStoppingCallback(patience=2)
    Run(callback).play([0.1, 0.4, 0.3, NAN])
    assert (callback.best, callback.best_step, callback.bad_evaluations) == (0.4, 2, 2)


def test_better_can_be_defined_anew():
    class Rounded(MetricEarlyStoppingCallback):
        def is_better(self, value: float, best: float | None) -> bool:
            return best is None or round(value, 1) > round(best, 1)

    assert Run(Rounded(patience=2)).play([0.11, 0.12, 0.13, 0.14]) == 3
    assert Run(MetricEarlyStoppingCallback(patience=2)).play([0.11, 0.12, 0.13, 0.14]) is None


class TestWhereTheMetricIs:
    def test_once_a_step(self):
        callback = MetricEarlyStoppingCallback(patience=2)
        run = Run(callback)
        run.play([0.5, 0.4])
        run.evaluate({METRIC: 0.4})
        callback.on_step_begin(run.args, run.state, run.control)
        assert callback.bad_evaluations == 1

    def test_without_the_prefix(self):
        assert Run(MetricEarlyStoppingCallback("tool_call_exact_match", patience=1)).play([0.5, 0.4]) == 2

    def test_eval_loss_is_not_the_training_loss(self):
        for name in ("loss", "eval_loss"):
            callback = MetricEarlyStoppingCallback(name, mode="min", patience=1)
            run = Run(callback)
            for step, loss in enumerate([1.0, 2.0, 3.0]):
                run.state.global_step = step
                run.log({"loss": loss})
            assert callback.best is None
            run.evaluate({"eval_loss": 0.5})
            assert callback.best == 0.5

    @pytest.mark.parametrize("eval_strategy", ["no", "steps"])
    def test_a_logged_metric_that_evaluations_do_not_have(self, eval_strategy):
        callback = MetricEarlyStoppingCallback("grad_norm", mode="min", patience=2)
        run = Run(callback, eval_strategy=eval_strategy)
        if eval_strategy == "steps":
            run.evaluate({"eval_loss": 1.0})
        for step in (1, 2, 3):
            run.state.global_step = step
            run.log({"grad_norm": 1.0})
        assert run.control.should_training_stop

    def test_a_later_callback_put_it_into_the_history(self):
        callback = MetricEarlyStoppingCallback(patience=1)
        run = Run(callback)
        for step, value in enumerate((0.5, 0.4), start=1):
            run.state.global_step = step
            run.evaluate({"eval_loss": 1.0})
            run.state.log_history[-1][METRIC] = value
            callback.on_step_begin(run.args, run.state, run.control)
        assert run.control.should_training_stop

    def test_what_was_measured_before_training_is_no_evaluation(self):
        callback = MetricEarlyStoppingCallback(patience=1)
        run = Run(callback)
        run.state.log_history.append({METRIC: 0.9, "step": 0})
        callback.on_step_begin(run.args, run.state, run.control)
        assert callback.best is None
        assert run.play([0.5, 0.6]) is None

    def test_never_there(self, caplog):
        callback = MetricEarlyStoppingCallback()
        run = Run(callback)
        run.log({"loss": 1.0})
        run.evaluate({"eval_loss": 1.0})
        callback.on_train_end(run.args, run.state, run.control)
        assert [record.message for record in caplog.records] == [
            f"early stopping never saw '{METRIC}'; the metrics of this run: eval_loss, loss"
        ]


def test_says_once_why(caplog):
    callback = MetricEarlyStoppingCallback(patience=1)
    run = Run(callback)
    run.play([0.5, 0.4])
    run.play([0.3])
    callback.on_train_end(run.args, run.state, run.control)
    assert [record.message for record in caplog.records] == [
        f"training stops at step 2: {METRIC} has not been better than 0.5 (step 1) for 1 evaluations"
    ]


@pytest.mark.parametrize(
    "options", [{"mode": "best"}, {"patience": 0}, {"patience": 1.5}, {"min_delta": -0.1}, {"min_delta": NAN}]
)
def test_settings(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        MetricEarlyStoppingCallback(**options)


class TestState:
    def test_new_run_begins_anew(self):
        callback = MetricEarlyStoppingCallback(patience=2)
        Run(callback).play([0.9, 0.1, 0.1])
        assert Run(callback).play([0.1, 0.2, 0.3]) is None
        assert callback.best == 0.3

    def test_exportable(self):
        callback = MetricEarlyStoppingCallback("eval_loss", mode="min", patience=4, min_delta=0.1, target=0.2)
        Run(callback).play([0.9, 0.95], metric="eval_loss")
        again = MetricEarlyStoppingCallback.from_state(callback.state())
        assert again.state() == callback.state()
        assert (again.best, again.bad_evaluations) == (0.9, 1)

    def test_two_in_one_run(self):
        first = MetricEarlyStoppingCallback("eval_loss", mode="min", patience=3)
        second = MetricEarlyStoppingCallback(patience=3)
        Run(first).play([0.9, 0.95], metric="eval_loss")
        Run(second).play([0.1])
        saved = TrainerState(stateful_callbacks=[second, first]).stateful_callbacks
        resumed = MetricEarlyStoppingCallback("eval_loss", mode="min", patience=3)
        Run(resumed, global_step=2, stateful_callbacks=saved)
        assert (resumed.best, resumed.bad_evaluations) == (0.9, 1)


class Feed(TrainerCallback):
    """Gives evaluations a metric."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        metrics[METRIC] = self.values[state.global_step - 1]


@pytest.mark.slow
@pytest.mark.parametrize("restore", [False, True])
def test_survives_a_resume(make_sft_trainer, tool_rows, caplog, restore):
    values = (0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
    options = {
        "eval_dataset": Dataset.from_list(tool_rows),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "restore_callback_states_from_checkpoint": restore,
    }
    callbacks = [Feed(*values), MetricEarlyStoppingCallback(patience=3)]
    make_sft_trainer(tool_rows, callbacks=callbacks, max_steps=2, **options).train()
    callbacks = [Feed(*values), MetricEarlyStoppingCallback(patience=3)]
    trainer = make_sft_trainer(tool_rows, callbacks=callbacks, max_steps=6, **options)
    with caplog.at_level(logging.WARNING, logger="deepfabric_trainer"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert "has not been better than 0.5 (step 1) for 3 evaluations" in caplog.text
