import json
import math
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState

from deepfabric_trainer.callbacks import MetricsLoggerCallback
from deepfabric_trainer.callbacks._journal import journal_of
from deepfabric_trainer.errors import ConfigError
from tests.fixtures.failing_server import failing_server
from tests.fixtures.journal_entries import Measures, event, measurement

KEY = "df-secret-0123456789"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEEPFABRIC_API_KEY", "DEEPFABRIC_API_URL", "DEEPFABRIC_PIPELINE_ID"):
        monkeypatch.delenv(name, raising=False)


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


class Run:
    """Plays a run's events to a callback, without training."""

    def __init__(self, callback: MetricsLoggerCallback, folder: Path, step: int = 0, **state: Any) -> None:
        self.callback = callback
        self.args = SimpleNamespace(output_dir=str(folder), report_to=[], learning_rate=0.1)
        self.state = TrainerState(**({"is_world_process_zero": True, "global_step": step, "max_steps": 9} | state))
        self.control = TrainerControl()
        self.folder = folder

    def begin(self) -> "Run":
        self.callback.on_train_begin(self.args, self.state, self.control)
        return self

    def step(self, *entries: Any, logs: dict[str, Any] | None = None) -> None:
        self.callback.on_step_begin(self.args, self.state, self.control)
        self.state.global_step += 1
        self.state.epoch = self.state.global_step / 10
        for entry in entries:
            journal_of(self.control).add(entry)
        self.callback.on_step_end(self.args, self.state, self.control)
        if logs is not None:
            self.callback.on_log(self.args, self.state, self.control, logs=logs)

    def evaluate(self, metrics: dict[str, Any], added: dict[str, Any]) -> None:
        self.callback.on_log(self.args, self.state, self.control, logs=metrics)
        self.callback.on_evaluate(self.args, self.state, self.control, metrics=metrics | added)

    def end(self) -> None:
        self.callback.on_train_end(self.args, self.state, self.control)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return read(self.folder / f"{name}.jsonl")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(MetricsLoggerCallback(), tmp_path / "run").begin()


def test_writes_metrics_as_logged_before_the_hook_returns(run: Run) -> None:
    run.step(logs={"loss": 1.5, "grad_norm": math.nan, "epoch": 0.1})
    (line,) = run.lines("metrics")
    assert set(line) == {"run_id", "step", "epoch", "time", "source", "metrics"}
    assert (line["step"], line["epoch"], line["source"]) == (1, 0.1, "log")
    assert line["metrics"] == {"loss": 1.5, "grad_norm": "NaN"}


def test_writes_each_generated_turn_beside_the_recorded_one(run: Run) -> None:
    run.step(measurement(1))
    lines = run.lines("samples")
    assert [(line["row"], line["conversation"]) for line in lines] == [
        (0, None),
        (1, None),
        (2, None),
        (7, {"turn": 0, "turns": 2, "turns_right": 1, "success": False}),
        (7, {"turn": 1, "turns": 2, "turns_right": 1, "success": False}),
    ]
    assert lines[0]["expected_calls"][0]["function"]["arguments"] == {"city": "Köln"}
    assert lines[0]["predicted_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    assert lines[0]["score"]["name"] == 1
    assert lines[0]["score"]["exact_match"] == 0
    assert "Köln" in (run.folder / "samples.jsonl").read_text(encoding="utf-8")
    (table,) = run.lines("tables")
    assert table["tools"] == [{"name": "get_weather", "support": 3, "called": 3, "right": 1}]
    assert table["confusions"] == [{"expected": "get_weather", "called": None, "count": 2}]
    assert table["seconds"] == 0.25


def test_writes_metrics_measured_between_evaluations(run: Run) -> None:
    run.step(measurement(1, epoch=0.09), logs={"loss": 1.0})
    lines = run.lines("metrics")
    assert [(line["source"], line["step"], line["epoch"]) for line in lines] == [
        ("generation", 1, 0.09),
        ("log", 1, 0.1),
    ]
    assert run.lines("metrics")[0]["metrics"]["eval_tool_call_exact_match"] == 0.5


def test_does_not_write_again_what_an_evaluation_has_logged(run: Run) -> None:
    run.step()
    journal_of(run.control).add(measurement(1))
    run.evaluate({"eval_loss": 1.0, "eval_tool_call_exact_match": 0.5, "eval_tool_call_turns": 3}, {})
    assert [line["source"] for line in run.lines("metrics")] == ["log"]
    assert len(run.lines("samples")) == 5


def test_writes_what_other_callbacks_add_to_an_evaluation(run: Run) -> None:
    run.step()
    run.evaluate({"eval_loss": 1.0}, {"eval_mine": 2})
    assert [(line["source"], line["metrics"]) for line in run.lines("metrics")] == [
        ("log", {"eval_loss": 1.0}),
        ("evaluate", {"eval_mine": 2}),
    ]


def test_writes_a_predictions_metrics(run: Run) -> None:
    run.callback.on_predict(run.args, run.state, run.control, metrics={"test_loss": 1.0})
    assert [line["source"] for line in run.lines("metrics")] == ["predict"]


def test_writes_events_between_start_and_end(run: Run) -> None:
    run.step(event(1))
    run.end()
    start, middle, end = run.lines("events")
    assert (start["kind"], start["evidence"]) == ("run_start", {"max_steps": 9, "set_aside": []})
    assert (middle["kind"], middle["step"], middle["severity"]) == ("loss_spike", 1, "critical")
    assert middle["evidence"] == {"loss": "NaN", "rows": [1, 2]}
    assert (end["kind"], end["step"]) == ("run_end", 1)
    assert {line["run_id"] for line in (start, middle, end)} == {start["run_id"]}


@pytest.mark.parametrize("order", ["before", "after"])
def test_reads_each_entry_once_whatever_the_order_of_callbacks(tmp_path: Path, order: str) -> None:
    run = Run(MetricsLoggerCallback(), tmp_path)
    if order == "before":
        journal_of(run.control).add(measurement(0))
    run.begin()
    if order == "after":
        journal_of(run.control).add(measurement(0))
    for _ in range(3):
        run.step()
    run.end()
    assert len(run.lines("samples")) == 5


def test_reads_a_journal_anew_when_the_control_is_replaced(run: Run) -> None:
    run.step(event(1), event(1))
    run.control = TrainerControl()
    run.step(event(2))
    assert [line["step"] for line in run.lines("events")] == [0, 1, 1, 2]


def test_a_new_run_in_the_folder_sets_the_files_aside(run: Run) -> None:
    run.step(logs={"loss": 1.0})
    first = run.lines("metrics")[0]["run_id"]
    again = Run(MetricsLoggerCallback(), run.folder).begin()
    again.step(logs={"loss": 2.0})
    assert [line["metrics"]["loss"] for line in again.lines("metrics")] == [2.0]
    assert [line["metrics"]["loss"] for line in read(run.folder / f"metrics.{first}.jsonl")] == [1.0]
    assert again.lines("events")[0]["evidence"]["set_aside"] == [f"metrics.{first}.jsonl", f"events.{first}.jsonl"]
    run.step(logs={"loss": 3.0})
    assert [line["metrics"]["loss"] for line in again.lines("metrics")] == [2.0]
    assert [line["metrics"]["loss"] for line in read(run.folder / f"metrics.{first}.jsonl")] == [1.0, 3.0]


def test_a_resumed_run_goes_on_behind_its_checkpoint(run: Run) -> None:
    for step in range(1, 5):
        run.step(event(step), logs={"loss": float(step)})
    first = run.lines("metrics")[0]["run_id"]
    resumed = Run(MetricsLoggerCallback(), run.folder, step=2).begin()
    resumed.step(logs={"loss": 30.0})
    assert [line["metrics"]["loss"] for line in resumed.lines("metrics")] == [1.0, 2.0, 30.0]
    assert [line["metrics"]["loss"] for line in read(run.folder / "metrics.superseded.jsonl")] == [3.0, 4.0]
    start = resumed.lines("events")[-1]
    assert start["evidence"]["resumed_from"] == {"run_id": first, "step": 2}
    assert start["evidence"]["superseded_lines"] == {"metrics": 2, "events": 2}


def test_an_evaluation_after_training_belongs_to_the_run(run: Run) -> None:
    run.step(logs={"loss": 1.0})
    run.end()
    run.evaluate({"eval_loss": 2.0}, {})
    assert [list(line["metrics"]) for line in run.lines("metrics")] == [["loss"], ["eval_loss"]]


def test_an_evaluation_in_another_process_leaves_the_runs_files_alone(run: Run) -> None:
    run.step(logs={"loss": 1.0})
    other = Run(MetricsLoggerCallback(), run.folder, step=1)
    other.evaluate({"eval_loss": 2.0}, {})
    assert [list(line["metrics"]) for line in run.lines("metrics")] == [["loss"]]
    assert len(list(run.folder.glob("metrics.*.jsonl"))) == 1


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    run = Run(MetricsLoggerCallback(api_key=KEY), tmp_path / "run", is_world_process_zero=False).begin()
    run.step(measurement(1), logs={"loss": 1.0})
    run.callback.on_save(run.args, run.state, run.control)
    run.end()
    assert not run.folder.exists()


def test_a_folder_that_takes_nothing_is_named_once_and_the_run_goes_on(tmp_path: Path, caplog) -> None:
    (tmp_path / "run").write_text("a file, not a folder")
    run = Run(MetricsLoggerCallback(), tmp_path / "run").begin()
    for _ in range(3):
        run.step(event(1), logs={"loss": 1.0})
    run.end()
    first, last = (record.message for record in caplog.records)
    assert first.startswith("the JSON lines: not everything can be written (FileExistsError")
    assert last == "the JSON lines: 8 writes failed in this run"


def test_a_full_disk_is_named_once_and_later_lines_are_written(run: Run, caplog, monkeypatch) -> None:
    from deepfabric_trainer.callbacks._sinks import run_file

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_file, "open", full, raising=False)
        for _ in range(3):
            run.step(logs={"loss": 1.0})
    run.step(logs={"loss": 2.0})
    assert [line["metrics"]["loss"] for line in run.lines("metrics")] == [2.0]
    assert sum("No space left" in record.message for record in caplog.records) == 1


def test_says_what_cannot_work_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="samples_per_log"):
        MetricsLoggerCallback(samples_per_log=-1)
    with pytest.raises(ConfigError, match="read the key"):
        MetricsLoggerCallback(api_url="http://example.com")


def test_without_a_key_nothing_is_sent(tmp_path: Path) -> None:
    with failing_server() as server:
        run = Run(MetricsLoggerCallback(api_url=server.url), tmp_path).begin()
        run.step(logs={"loss": 1.0})
        run.end()
    assert server.requests == []
    assert not any(thread.name == "deepfabric-sender" for thread in threading.enumerate())


def test_a_bad_url_in_the_environment_is_named_and_the_run_goes_on(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setenv("DEEPFABRIC_API_KEY", KEY)
    monkeypatch.setenv("DEEPFABRIC_API_URL", "http://example.com")
    run = Run(MetricsLoggerCallback(), tmp_path).begin()
    run.step(logs={"loss": 1.0})
    assert "nothing is sent to the DeepFabric server" in caplog.text
    assert KEY not in caplog.text
    assert len(run.lines("metrics")) == 1


def test_posts_start_metrics_checkpoints_and_end(tmp_path: Path, monkeypatch) -> None:
    with failing_server() as server:
        monkeypatch.setenv("DEEPFABRIC_API_KEY", KEY)
        monkeypatch.setenv("DEEPFABRIC_API_URL", server.url)
        run = Run(MetricsLoggerCallback(), tmp_path / "my-run", best_model_checkpoint="/home/me/run/checkpoint-1")
        run.begin()
        run.step(measurement(1), event(1), logs={"loss": 1.0, "grad_norm": math.inf, "nothing": None, "note": "é"})
        run.evaluate({"eval_loss": 2.0}, {})
        run.callback.on_save(run.args, run.state, run.control)
        run.callback.on_predict(run.args, run.state, run.control, metrics={"test_loss": 1.0})
        run.end()
    start, *metrics, end = server.messages()
    assert (start["event_type"], end["event_type"]) == ("run_start", "run_end")
    assert start["model_name"] == "my-run"
    assert start["training_config"] == {"learning_rate": 0.1}
    assert start["state"] == {"max_steps": 9, "num_train_epochs": 0, "is_world_process_zero": True}
    assert (end["final_step"], end["best_model_checkpoint"]) == (1, "checkpoint-1")
    assert [(message["type"], message["global_step"], message["metrics"]) for message in metrics] == [
        ("eval", 1, {"eval_tool_call_exact_match": 0.5, "eval_tool_call_turns": 3}),
        ("log", 1, {"loss": 1.0, "grad_norm": "Infinity", "note": "é"}),
        ("eval", 1, {"eval_loss": 2.0}),
        ("checkpoint", 1, {"checkpoint_step": 1}),
    ]
    messages = server.messages()
    assert len({message["message_id"] for message in messages}) == len(messages)
    assert {message["run_id"] for message in messages} == {run.lines("metrics")[0]["run_id"]}
    assert "Rome" not in json.dumps(server.taken)
    assert {path for path, _ in server.taken} == {"/v1/training/runs", "/v1/training/metrics"}


def test_the_key_is_not_copied(tmp_path: Path) -> None:
    callback = MetricsLoggerCallback(samples_per_log=3, api_key=KEY, api_url="https://example.com")
    data = pickle.dumps(callback)
    assert KEY.encode() not in data
    assert KEY not in repr(callback)
    assert pickle.loads(data).samples_per_log == 3


class _Fails(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise RuntimeError("out of memory")


@pytest.mark.slow
def test_a_run_that_crashes_leaves_complete_lines(make_sft_trainer, tool_rows, tmp_path: Path) -> None:
    trainer = make_sft_trainer(tool_rows, callbacks=[MetricsLoggerCallback(), _Fails()], max_steps=4)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert [line["step"] for line in read(tmp_path / "run" / "metrics.jsonl")] == [1]
    assert [line["kind"] for line in read(tmp_path / "run" / "events.jsonl")] == ["run_start"]


@pytest.mark.slow
def test_a_resumed_training_has_each_step_once(make_sft_trainer, tool_rows, tmp_path: Path) -> None:
    def train(checkpoint: str | None, **options: Any) -> None:
        callbacks = [MetricsLoggerCallback(), Measures()]
        trainer = make_sft_trainer(
            tool_rows, callbacks=callbacks, max_steps=3, save_strategy="steps", save_steps=1, **options
        )
        trainer.train(resume_from_checkpoint=checkpoint)

    folder = tmp_path / "run"
    train(None)
    train(str(folder / "checkpoint-2"))
    logged = [line for line in read(folder / "metrics.jsonl") if "loss" in line["metrics"]]
    assert [line["step"] for line in logged] == [1, 2, 3]
    assert len({line["run_id"] for line in logged}) == 2
    assert [line["step"] for line in read(folder / "samples.jsonl")] == [1] * 5 + [2] * 5 + [3] * 5


@pytest.mark.slow
def test_what_is_queued_is_sent_or_kept_when_the_process_ends_early(tmp_path: Path) -> None:
    """A crash calls no `on_train_end`."""
    code = """
import sys
from types import SimpleNamespace
from transformers import TrainerControl, TrainerState
from deepfabric_trainer.callbacks import MetricsLoggerCallback
key, folder, *urls = sys.argv[1:]
for number, url in enumerate(urls):
    callback = MetricsLoggerCallback(api_key=key, api_url=url)
    args = SimpleNamespace(output_dir=f"{folder}/{number}", report_to=[])
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    callback.on_train_begin(args, state, control)
    for _ in range(3):
        callback.on_log(args, state, control, logs={"loss": 1.0})
raise RuntimeError("out of memory")
"""
    with failing_server() as server:
        command = [sys.executable, "-c", code, KEY, str(tmp_path), server.url, "http://127.0.0.1:9"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert "out of memory" in done.stderr
    spool = tmp_path / "1" / "deepfabric_spool.jsonl"
    expected = ["run_start", *["metrics"] * 3]
    assert [message.get("event_type", "metrics") for message in server.messages()] == expected
    assert [entry["body"].get("event_type", "metrics") for entry in read(spool)] == expected
    assert not (tmp_path / "0" / "deepfabric_spool.jsonl").exists()
    assert KEY not in done.stderr + done.stdout + spool.read_text()
