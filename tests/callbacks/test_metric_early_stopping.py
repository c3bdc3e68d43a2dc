import json
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.callbacks import GenerationResult, MetricEarlyStoppingCallback, SampleGenerationCallback
from deepfabric_trainer.callbacks._journal import journal_of
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.tiny import QUIET

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
        ({"patience_steps": 2}, [0.5, 0.4, 0.3], 3),
        ({"patience_steps": 3}, [0.5, 0.4, 0.6, 0.5, 0.4, 0.3], 6),
        ({"patience_steps": 9}, [0.5, *[0.4] * 8], None),
        ({"patience_steps": 2}, [NAN, NAN, NAN], 3),
        ({"patience_steps": 4, "patience": 2}, [0.5, 0.4, 0.3], 3),
        ({"patience_steps": 2, "patience": 9}, [0.5, 0.4, 0.3], 3),
        ({"use_interval": True, "patience": 2}, [0.5, 0.5, 0.4, 0.3], 4),
    ],
)
def test_when_it_stops(options, values, stopped):
    callback = MetricEarlyStoppingCallback(**options)
    assert Run(callback).play(values) == stopped
    assert callback.stopped_step == stopped


@pytest.mark.parametrize(
    ("options", "evaluations", "stopped"),
    [
        # Each evaluation: the value, its interval.
        ({}, [(0.5, 0.3, 0.7), (0.4, 0.2, 0.6), (0.3, 0.2, 0.5), (0.3, 0.1, 0.4), (0.2, 0.1, 0.4)], 5),
        ({}, [(0.5, 0.3, 0.7), (0.3, 0.1, 0.4), (0.4, 0.2, 0.6), (0.3, 0.1, 0.4)], 4),
        ({}, [(0.5, 0.3, 0.7), (0.3, 0.1, 0.4), (0.6, 0.4, 0.8), (0.3, 0.1, 0.4)], None),
        ({}, [(0.5, 0.3, 0.7), *[(0.5, 0.3, 0.7)] * 9], None),
        ({"mode": "min"}, [(0.5, 0.3, 0.7), (0.6, 0.4, 0.8), (0.8, 0.6, 0.9), (0.9, 0.6, 0.9)], 4),
        ({"patience": None, "patience_steps": 1}, [(0.5, 0.3, 0.7), (0.4, 0.2, 0.6), (0.3, 0.1, 0.4)], 3),
        ({"use_interval": False}, [(0.5, 0.3, 0.7), (0.4, 0.2, 0.6), (0.4, 0.2, 0.6)], 3),
        ({}, [(0.5, 0.3, 0.7), (NAN, NAN, NAN), (NAN, NAN, NAN)], 3),
    ],
)
def test_an_interval_that_holds_the_best_is_no_reason_to_stop(options, evaluations, stopped):
    callback = MetricEarlyStoppingCallback(**{"use_interval": True, "patience": 2} | options)
    run = Run(callback)
    for step, (value, low, high) in enumerate(evaluations, start=1):
        run.state.global_step = step
        run.evaluate({METRIC: value, f"{METRIC}_low": low, f"{METRIC}_high": high})
        if run.control.should_training_stop:
            break
    assert callback.stopped_step == stopped


@pytest.mark.parametrize("prefix", ["eval_", "eval_calls_"])
def test_evaluations_of_few_turns_do_not_count(prefix):
    metric = f"{prefix}tool_call_exact_match"
    callback = MetricEarlyStoppingCallback(metric, patience=1, min_samples=10, target=0.9)
    run = Run(callback)
    for step, (value, turns) in enumerate([(0.95, 4), (0.5, 10), (0.1, 9), (0.4, 12)], start=1):
        run.state.global_step = step
        run.evaluate({metric: value, f"{prefix}tool_call_turns": turns})
    assert (callback.best, callback.stopped_step) == (0.5, 4)


def test_a_stop_is_an_event_of_the_run():
    run = Run(MetricEarlyStoppingCallback(patience=1))
    run.play([0.5, NAN])
    (event,) = journal_of(run.control).since(0)
    assert (event.kind, event.step, event.action, event.severity) == ("early_stop", 2, "stop", "info")
    assert event.message == f"Training stopped: {METRIC} has not been better than 0.5 (step 1) for 1 evaluations."
    assert event.evidence["best"] == 0.5
    assert json.dumps(event.evidence, allow_nan=False)
    assert event.advice == "Use the checkpoint of step 1."
    run = Run(MetricEarlyStoppingCallback(target=0.5))
    run.play([0.6])
    (event,) = journal_of(run.control).since(0)
    assert event.cause == "The metric has reached its target."


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
    "options",
    [
        *({"mode": "best"}, {"patience": 0}, {"patience": 1.5}, {"patience_steps": 0}, {"patience_steps": 2.5}),
        *({"min_delta": -0.1}, {"min_delta": NAN}, {"min_samples": -1}),
    ],
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

    def test_two_of_one_metric(self):
        patient, hasty = (MetricEarlyStoppingCallback(patience=patience) for patience in (5, 2))
        Run(patient).play([0.9, 0.8, 0.7])
        Run(hasty).play([0.9])
        saved = TrainerState(stateful_callbacks=[patient, hasty]).stateful_callbacks
        for callback, bad in ((patient, 2), (hasty, 0)):
            resumed = MetricEarlyStoppingCallback(patience=callback.patience)
            Run(resumed, global_step=3, stateful_callbacks=saved)
            assert resumed.bad_evaluations == bad

    def test_the_newest_state_counts_and_settings_may_change(self):
        callback = MetricEarlyStoppingCallback(patience=3)
        states = []
        for values in ([0.5], [0.5, 0.4]):
            Run(callback).play(values)
            states.append(callback.state())
        name = type(callback).__name__
        resumed = MetricEarlyStoppingCallback(patience=7)
        Run(resumed, global_step=2, stateful_callbacks={name: states})
        assert (resumed.patience, resumed.bad_evaluations) == (7, 1)
        other = MetricEarlyStoppingCallback(mode="min")
        Run(other, global_step=2, stateful_callbacks={name: states})
        assert other.best is None

    def test_a_checkpoint_of_a_run_without_it_can_be_gone_on_from(self):
        """The trainer saves the state of those callbacks only that the checkpoint knows."""
        resumed = MetricEarlyStoppingCallback()
        run = Run(resumed, global_step=2, stateful_callbacks={})
        assert run.state.stateful_callbacks == {"MetricEarlyStoppingCallback": resumed.state()}


class Feed(TrainerCallback):
    """Gives evaluations a metric."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        metrics[METRIC] = self.values[state.global_step - 1]


@pytest.mark.slow
@pytest.mark.parametrize("restore", [False, True])
def test_two_survive_a_resume(make_sft_trainer, tool_rows, restore):
    """Transformers restores the oldest of their states, and keeps the newest in the checkpoint."""
    values = (0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
    options = {
        "eval_dataset": Dataset.from_list(tool_rows),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "restore_callback_states_from_checkpoint": restore,
    }

    def make(steps: int) -> Any:
        stops = [MetricEarlyStoppingCallback(patience=4), MetricEarlyStoppingCallback("eval_loss", patience=5)]
        return make_sft_trainer(tool_rows, callbacks=[Feed(*values), *stops], max_steps=steps, **options)

    make(3).train()
    trainer = make(6)
    trainer.train(resume_from_checkpoint=True)
    callbacks = trainer.callback_handler.callbacks
    stops = {it.metric: it for it in callbacks if isinstance(it, MetricEarlyStoppingCallback)}
    assert trainer.state.global_step == 5
    assert (stops[METRIC].best, stops[METRIC].bad_evaluations) == (0.5, 4)
    assert stops["eval_loss"].best_step == 1


class Scripted(SampleGenerationCallback):
    """Finds what the script says, instead of generating."""

    script = (0.2, 0.7, 0.4, 0.3)

    def _measure(self, model: Any, processing_class: Any, state: Any) -> GenerationResult:
        return GenerationResult(state.global_step, {METRIC: self.script[state.global_step - 1]}, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer_class", "config"), [(SFTTrainer, SFTConfig), (DeepFabricTrainer, DeepFabricSFTConfig)]
)
def test_the_best_checkpoint_by_generation_is_loaded(
    tiny_model, tiny_tokenizer, tool_rows, tmp_path, trainer_class, config
):
    args = config(
        output_dir=str(tmp_path),
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        max_steps=4,
        learning_rate=0.1,
        load_best_model_at_end=True,
        metric_for_best_model=METRIC,
        **(QUIET | {"save_strategy": "steps"}),
    )
    rows = to_dataset(tool_rows)
    stop = MetricEarlyStoppingCallback(patience=1)
    trainer = trainer_class(
        model=tiny_model,
        args=args,
        processing_class=tiny_tokenizer,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[Scripted(tool_rows, at_start=False), stop],
    )
    trainer.train()
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.7, 2)
    assert (stop.best_step, stop.stopped_step) == (2, 3)
    saved = [load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (2, 3)]
    weights = trainer.model.state_dict()
    same = [all(torch.equal(weights[name], value) for name, value in of.items()) for of in saved]
    assert same == [True, False]


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


@pytest.mark.parametrize(("patience", "stops"), [(1, True), (2, False)])
def test_a_run_that_was_killed_after_its_stop_is_at_its_end(patience, stops):
    """With more patience than it had, it goes on."""
    before = MetricEarlyStoppingCallback("eval_loss", mode="min", patience=1)
    state = TrainerState(global_step=4)
    control = TrainerControl()
    before.on_train_begin(TrainingArguments(), TrainerState(), control)
    for step, loss in ((2, 1.0), (4, 2.0)):
        before.on_evaluate(None, TrainerState(global_step=step), control, metrics={"eval_loss": loss})
    assert control.should_training_stop
    state.stateful_callbacks["MetricEarlyStoppingCallback"] = before.state()
    control = TrainerControl()
    after = MetricEarlyStoppingCallback("eval_loss", mode="min", patience=patience)
    after.on_train_begin(TrainingArguments(), state, control)
    assert control.should_training_stop == stops
