import json
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import SFTConfig

from deepfabric_trainer.callbacks import RunReportCallback, run_report
from deepfabric_trainer.callbacks._journal import RunEvent, journal_of
from deepfabric_trainer.callbacks._measurements import GenerationResult
from deepfabric_trainer.callbacks._report.environment import describe_environment, non_default_settings
from deepfabric_trainer.callbacks._report.followed_run import describe_data
from deepfabric_trainer.callbacks._throughput import Throughput
from deepfabric_trainer.errors import ConfigError
from tests.fixtures.run_records import measured, samples
from tests.fixtures.tiny import QUIET

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _writing_costs_nothing(monkeypatch):
    monkeypatch.setattr(run_report, "_SHARE", 0)


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


class Run:
    """Plays the trainer: calls a callback as a trainer would, without training."""

    def __init__(self, folder: Path, callback: RunReportCallback, *, step: int = 0, is_main: bool = True) -> None:
        self.callback = callback
        self.args = SFTConfig(**QUIET, output_dir=str(folder))
        self.state = TrainerState(global_step=step, max_steps=10, is_world_process_zero=is_main)
        self.control = TrainerControl()
        self.tell("train_begin")

    def tell(self, event: str, **kwargs: Any) -> None:
        getattr(self.callback, f"on_{event}")(self.args, self.state, self.control, **kwargs)

    def step(self, **logs: float) -> None:
        self.tell("step_begin")
        self.state.global_step += 1
        self.tell("step_end")
        if logs:
            self.state.log_history.append({**logs, "step": self.state.global_step})
            self.tell("log", logs=logs)


class TestWhenItIsWritten:
    def test_while_it_runs_and_at_its_end(self, tmp_path):
        run = Run(tmp_path, RunReportCallback(every_seconds=0))
        run.step(loss=2.0)
        assert read(tmp_path)["status"] == "running"
        assert read(tmp_path)["step"] == 0
        run.step(loss=1.0)
        assert read(tmp_path)["metrics"]["loss"] == 2.0
        run.tell("train_end")
        assert read(tmp_path)["status"] == "finished"
        assert read(tmp_path)["metrics"]["loss"] == 1.0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report.html", "report.md"]

    def test_not_more_often_than_asked(self, tmp_path):
        run = Run(tmp_path, RunReportCallback(every_seconds=1000))
        for loss in (3.0, 2.0, 1.0):
            run.step(loss=loss)
        assert read(tmp_path)["step"] == 0

    def test_writing_that_takes_long_is_rare(self, tmp_path, monkeypatch):
        """Each look at the clock is a second later, so writing takes a second."""
        seconds = iter(range(10_000))
        monkeypatch.setattr(run_report, "_SHARE", 100)
        monkeypatch.setattr(run_report, "monotonic", lambda: float(next(seconds)))
        written = []
        monkeypatch.setattr(run_report, "_write_whole", lambda path, text: written.append(path.name))
        run = Run(tmp_path, RunReportCallback(every_seconds=0))
        for _ in range(90):
            run.step(loss=1.0)
        assert len(written) == 3
        for _ in range(20):
            run.step(loss=1.0)
        assert len(written) == 6
        for _ in range(100):
            journal_of(run.control).add(RunEvent("spike", 1, "A spike."))
            run.tell("evaluate")
            run.step(loss=1.0)
        assert len(written) == 9

    def test_after_an_evaluation_when_all_callbacks_have_seen_it(self, tmp_path):
        run = Run(tmp_path, RunReportCallback(every_seconds=1000))
        run.step()
        run.state.log_history.append({"eval_loss": 1.0, "step": 1})
        run.tell("evaluate", metrics={"eval_loss": 1.0})
        run.state.log_history[-1] |= measured(1, 0.5)
        run.step()
        assert read(tmp_path)["measurements"][0]["exact_match"] == 0.5

    def test_after_an_entry_in_the_journal(self, tmp_path):
        run = Run(tmp_path, RunReportCallback(every_seconds=1000))
        run.step()
        journal_of(run.control).add(RunEvent("plateau", 1, "Nothing moves."))
        journal_of(run.control).add(GenerationResult(1, {}, samples(1.0)))
        run.step()
        assert [event["kind"] for event in read(tmp_path)["events"]] == ["plateau"]
        assert "What will the weather be in Oslo" in (tmp_path / "report.html").read_text()

    def test_after_an_evaluation_behind_the_end(self, tmp_path):
        run = Run(tmp_path, RunReportCallback())
        run.tell("train_end")
        run.state.log_history.append(measured(0, 0.75))
        run.tell("evaluate", metrics={})
        assert read(tmp_path)["measurements"][0]["exact_match"] == 0.75
        assert read(tmp_path)["status"] == "finished"

    def test_an_evaluation_behind_the_end_is_of_the_best_model(self, tmp_path):
        """It is loaded then, while the global step stays that of the last one."""
        run = Run(tmp_path, RunReportCallback())
        run.args.load_best_model_at_end = True
        run.tell("train_begin")
        for exact in (0.75, 0.25):
            run.step(loss=1.0)
            run.state.log_history.append(measured(run.state.global_step, exact))
        run.state.best_model_checkpoint, run.state.best_global_step = str(tmp_path / "checkpoint-1"), 1
        run.tell("train_end")
        run.state.log_history.append(measured(2, 0.8))
        journal_of(run.control).add(GenerationResult(2, {}, samples(1.0)))
        run.tell("evaluate", metrics={})
        seen = [(one["step"], one["exact_match"]) for one in read(tmp_path)["measurements"]]
        assert seen == [(1, 0.8), (2, 0.25)]
        assert run.state.log_history[-1]["step"] == 2, "the trainer's own log is left alone"

    def test_readable_by_who_may_read_new_files(self, tmp_path):
        before = os.umask(0o077)
        try:
            Run(tmp_path, RunReportCallback()).tell("train_end")
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}

    def test_measurements_of_two_names_are_not_mixed(self, tmp_path):
        run = Run(tmp_path, RunReportCallback())
        for step, (name, made) in enumerate((("eval", 1.0), ("held", 0.0), ("eval", 1.0), ("held", 0.0))):
            metrics = {f"{name}_tool_call_exact_match": made, f"{name}_tool_call_turns": 24}
            run.state.log_history.append({**metrics, "step": step // 2})
            journal_of(run.control).add(GenerationResult(step // 2, metrics, samples(made)))
        run.tell("train_end")
        assert (
            "Of the 24 turns measured both first and last, 0 became right and 0 became wrong."
            in (tmp_path / "report.md").read_text()
        )

    def test_only_by_the_main_process(self, tmp_path):
        run = Run(tmp_path, RunReportCallback(every_seconds=0), is_main=False)
        run.step(loss=1.0)
        run.tell("train_end")
        assert list(tmp_path.iterdir()) == []


class TestEndings:
    def test_a_run_that_is_gone(self, tmp_path):
        run = Run(tmp_path, RunReportCallback())
        run.step(loss=2.0)
        run.state = None
        assert read(tmp_path)["status"] == "ended unexpectedly"
        assert read(tmp_path)["step"] == 1
        assert "ended unexpectedly at step 1 of 10" in (tmp_path / "report.md").read_text()

    def test_a_finished_run_that_is_gone(self, tmp_path):
        run = Run(tmp_path, RunReportCallback())
        run.tell("train_end")
        run.state = None
        assert read(tmp_path)["status"] == "finished"

    def test_an_exception_that_is_told(self, tmp_path):
        run = Run(tmp_path, RunReportCallback(every_seconds=1000))
        run.step(loss=2.0)
        journal_of(run.control).add(RunEvent("spike", 1, "A spike."))
        run.callback.failed(RuntimeError("boom with hf_abcdefghijkl\nand more"))
        content = read(tmp_path)
        assert (content["status"], content["error"]) == (
            "ended unexpectedly",
            "RuntimeError: boom with [redacted]",
        )
        assert [event["kind"] for event in content["events"]] == ["spike"]

    def test_an_exception_outside_of_a_run_changes_nothing(self, tmp_path):
        run = Run(tmp_path, RunReportCallback())
        run.tell("train_end")
        run.callback.failed(RuntimeError("boom"))
        assert read(tmp_path)["status"] == "finished"

    def test_a_run_that_is_gone_leaves_the_report_of_the_next_one_alone(self, tmp_path):
        first = Run(tmp_path, RunReportCallback())
        first.step(loss=2.0)
        second = Run(tmp_path, RunReportCallback())
        second.tell("train_end")
        first.state = None
        assert read(tmp_path)["status"] == "finished"

    def test_a_child_that_was_forked_says_nothing(self, tmp_path):
        run = Run(tmp_path, RunReportCallback(every_seconds=0))
        run.step(loss=2.0)
        process = os.getpid()
        run.callback._unfinished = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: process + 1)
            run.state = None
        assert read(tmp_path)["status"] == "running"

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("failure", "status", "error"),
        [
            (
                "raise RuntimeError('boom with hf_abcdefghijkl')",
                "ended unexpectedly",
                "RuntimeError: boom with [redacted]",
            ),
            ("raise KeyboardInterrupt", "ended unexpectedly", "KeyboardInterrupt"),
            ("os.kill(os.getpid(), 9)", "running", None),
        ],
    )
    def test_a_process_that_ends(self, tmp_path, failure, status, error):
        code = f"""
import os
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer
from deepfabric_trainer.callbacks import RunReportCallback
from tests.fixtures import tiny

class Fail(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            {failure}

tokenizer = tiny.tiny_tokenizer()
SFTTrainer(
    model=tiny.tiny_model(tokenizer),
    args=SFTConfig(**{{**tiny.QUIET, "output_dir": {str(tmp_path)!r}, "max_steps": 4, "max_length": 64}}),
    processing_class=tokenizer,
    train_dataset=Dataset.from_list(tiny.tool_rows()),
    callbacks=[RunReportCallback(every_seconds=0), Fail()],
).train()
"""
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode != 0
        content = read(tmp_path)
        assert (content["status"], content["error"]) == (status, error), run.stderr
        assert content["step"] == 2 or status == "running"


class TestFailures:
    def test_a_folder_that_cannot_be_written_is_said_once(self, tmp_path, monkeypatch, caplog):
        def fail(*args: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(run_report, "_write_whole", fail)
        run = Run(tmp_path, RunReportCallback(every_seconds=0))
        for _ in range(3):
            run.step(loss=1.0)
        run.tell("train_end")
        assert caplog.text.count("the report cannot be written") == 1
        assert "no space left on device" in caplog.text

    def test_half_a_file_is_never_there(self, tmp_path, monkeypatch):
        run = Run(tmp_path, RunReportCallback(every_seconds=0))
        run.step(loss=1.0)
        before = (tmp_path / "report.html").read_text()

        def fail(*args: Any) -> None:
            raise OSError

        monkeypatch.setattr(os, "replace", fail)
        run.step(loss=1.0)
        assert (tmp_path / "report.html").read_text() == before
        assert len(list(tmp_path.iterdir())) == 3

    def test_a_negative_time(self):
        with pytest.raises(ConfigError, match="every_seconds"):
            RunReportCallback(every_seconds=-1)


class TestSeveralRuns:
    def test_a_resumed_run_goes_on(self, tmp_path):
        first = Run(tmp_path, RunReportCallback(every_seconds=0))
        for loss in (3.0, 2.0, 1.0):
            first.step(loss=loss, num_tokens=100 * first.state.global_step)
            journal_of(first.control).add(RunEvent("spike", first.state.global_step, "A spike."))
        first.tell("train_end")
        began = read(tmp_path)["started"]
        again = Run(tmp_path, RunReportCallback(every_seconds=0), step=2)
        again.state.log_history.extend(first.state.log_history[:2])
        again.step()
        content = read(tmp_path)
        assert content["started"] == began
        assert [(event["kind"], event["step"]) for event in content["events"]] == [
            ("spike", 1),
            ("spike", 2),
            ("resumed", 2),
        ]
        assert [entry["loss"] for entry in content["history"]] == [3.0, 2.0]
        assert [step for step, _ in content["tokens_per_second"]] == [2]

    def test_a_second_run_begins_anew(self, tmp_path):
        run = Run(tmp_path, RunReportCallback(every_seconds=0))
        journal_of(run.control).add(RunEvent("spike", 0, "A spike."))
        run.step(loss=1.0)
        run.tell("train_end")
        run.state = TrainerState(max_steps=10, is_world_process_zero=True)
        run.tell("train_begin")
        run.tell("train_end")
        assert read(tmp_path)["events"] == []
        assert read(tmp_path)["history"] == []

    @pytest.mark.parametrize("history", [[], [{"step": 1, "loss": 9.0}]])
    def test_the_report_of_another_run_is_kept(self, tmp_path, history):
        first = Run(tmp_path, RunReportCallback(every_seconds=0))
        first.step(loss=3.0)
        first.step(loss=math.nan)
        first.tell("train_end")
        before = read(tmp_path)
        other = Run(tmp_path, RunReportCallback(every_seconds=0), step=len(history))
        other.state.log_history.extend(history)
        other.tell("train_begin")
        other.step(loss=5.0)
        other.tell("train_end")
        stamp = before["started"][:19].replace(":", "-")
        assert json.loads((tmp_path / f"metrics.{stamp}.json").read_text()) == before
        assert len(list(tmp_path.glob(f"report.{stamp}.*"))) == 2
        assert [entry["loss"] for entry in read(tmp_path)["history"]] == [*(one["loss"] for one in history), 5.0]

    def test_picklable_in_a_run(self, tmp_path):
        run = Run(tmp_path, RunReportCallback(every_seconds=7))
        run.callback.trainer_data = {"train": {"rows": 3}}
        again = pickle.loads(pickle.dumps(run.callback))
        assert (again.every_seconds, again.trainer_data) == (7, {"train": {"rows": 3}})
        run.tell("train_end")


class TestData:
    def test_what_the_trainer_told(self, tmp_path):
        told = {"train": {"rows": 4812, "rejected": 3, "remarks": ["3 rows were left out"]}}
        assert describe_data(told, tmp_path, None) == [
            ("train: rows", "4,812"),
            ("train: rejected", "3"),
            ("train: remark", "3 rows were left out"),
        ]

    def test_rejected_rows_of_this_run(self, tmp_path):
        lines = [{"row": row, "findings": [{"rule": "unknown-tool", "severity": "error"}]} for row in range(3)]
        (tmp_path / "rejected.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nno JSON\n")
        (tmp_path / "rejected.previous.jsonl").write_text("{}")
        assert describe_data(None, tmp_path, None) == [("rejected.jsonl", "4 rows left out (3 unknown-tool)")]
        os.utime(tmp_path / "rejected.jsonl", (0, 0))
        assert describe_data(None, tmp_path, None) == []


class TestSettings:
    def test_only_what_is_not_the_default_and_no_secret(self, tmp_path):
        args = SFTConfig(**QUIET, output_dir=str(tmp_path), learning_rate=3e-4, hub_token="hf_abcdefghijkl")
        settings = non_default_settings(args)
        assert settings["learning_rate"] == "0.0003"
        assert settings["hub_token"] == "[redacted]"
        assert "weight_decay" not in settings
        assert "hf_abc" not in str(settings)

    def test_environment(self, tmp_path, tiny_model, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["train.py", "--hub_token", "abc"])
        facts = describe_environment(SFTConfig(**QUIET, output_dir=str(tmp_path)), tiny_model)
        assert facts["command"].endswith("train.py --hub_token [redacted]")
        assert re.fullmatch(r"no name \(LlamaForCausalLM, [\d,]+ parameters, [\d,]+ trained\)", facts["model"])
        assert {"python", "torch", "transformers", "device", "memory"} <= set(facts)


def test_throughput_leaves_evaluations_out():
    now = [0.0]
    throughput = Throughput(clock=lambda: now[0])

    def after(seconds: float, event: str) -> None:
        now[0] += seconds
        getattr(throughput, event)()

    assert throughput.rate(0) is None
    after(0, "step_begins")
    after(2, "step_ends")
    after(1, "step_begins")  # waiting for data
    after(2, "step_ends")
    assert throughput.rate(100) == 20
    after(50, "interrupted")
    after(50, "step_begins")
    after(4, "step_ends")
    assert throughput.rate(200) == 25
    assert throughput.rate(200) is None


class Measure(TrainerCallback):
    """Measures without generating."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        found = measured(state.global_step, 0.25 * state.global_step)
        state.log_history[-1].update(found)
        journal_of(control).add(GenerationResult(state.global_step, found, samples(1.0)))


@pytest.mark.slow
def test_in_a_trainer(make_sft_trainer, tool_rows, tmp_path):
    trainer = make_sft_trainer(
        tool_rows,
        callbacks=[RunReportCallback(every_seconds=0), Measure()],
        eval_dataset=Dataset.from_list(tool_rows),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    content = read(tmp_path / "run")
    assert content["status"] == "finished"
    assert [one["step"] for one in content["measurements"]] == [1, 2]
    assert [Path(name).name for name in content["checkpoints"]] == ["checkpoint-1", "checkpoint-2"]
    assert content["settings"]["max_steps"] == "2"
    assert content["data"] == {"train: examples": "8"}
    assert "tiny" not in content["environment"]["model"]
