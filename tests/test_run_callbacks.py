"""The callbacks that a trainer has of its own."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import ProgressCallback, TrainerCallback
from trl import SFTConfig

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.callbacks import (
    MetricsLoggerCallback,
    RunReportCallback,
    SampleGenerationCallback,
    TrainingHealthCallback,
    TrainingProgressCallback,
)
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

OURS = (TrainingHealthCallback, TrainingProgressCallback, RunReportCallback)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def make(kind: type = DeepFabricSFTConfig, callbacks: Any = None, **options: Any) -> DeepFabricTrainer:
        tokenizer = tiny_tokenizer()
        return DeepFabricTrainer(
            model=tiny_model(tokenizer),
            processing_class=tokenizer,
            args=kind(str(tmp_path / "run"), **{**QUIET, "max_steps": 1, **options}),
            train_dataset=to_dataset(tool_rows()),
            callbacks=callbacks,
        )

    return make


def own(trainer: DeepFabricTrainer) -> list[TrainerCallback]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, OURS)]


def kinds(trainer: DeepFabricTrainer) -> list[type]:
    return [type(callback) for callback in own(trainer)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [TrainingHealthCallback, RunReportCallback]),
        ({"health_checks": False}, [RunReportCallback]),
        ({"run_report": False}, [TrainingHealthCallback]),
        ({"push_to_hub": True}, [TrainingHealthCallback]),
    ],
)
def test_settings_say_what_there_is(make: Any, options: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeepFabricTrainer, "init_hf_repo", lambda self, token=None: None)
    assert kinds(make(**options)) == expected


def test_with_a_plain_config_the_watch_only_logs(make: Any) -> None:
    for kind, policy in ((SFTConfig, "log"), (DeepFabricSFTConfig, "stop")):
        health, _ = own(make(kind))
        assert health.state()["args"]["policies"]["nan"] == policy


def test_what_the_user_gives_is_not_doubled(make: Any) -> None:
    class MyReport(RunReportCallback):
        pass

    given = [MyReport(), TrainingHealthCallback({"nan": "skip_step"})]
    assert set(own(make(callbacks=given))) == set(given)


def test_the_samples_of_an_evaluation_after_the_training_are_written(make: Any, tmp_path: Path) -> None:
    trainer = make(callbacks=[MetricsLoggerCallback()])
    trainer.add_callback(SampleGenerationCallback(tool_rows(), num_samples=2, max_new_tokens=4))
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 0, 1, 1]


def test_a_bar_of_ours_stands_in_for_that_of_transformers_in_a_terminal(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_theirs(trainer: DeepFabricTrainer) -> bool:
        return any(type(callback) is ProgressCallback for callback in trainer.callback_handler.callbacks)

    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr("sys.stdout", io.StringIO())
    trainer = make(disable_tqdm=False)
    assert has_theirs(trainer)
    assert TrainingProgressCallback not in kinds(trainer)
    monkeypatch.setattr("sys.stderr", Terminal())
    trainer = make(disable_tqdm=False)
    assert not has_theirs(trainer)
    assert kinds(trainer) == [TrainingHealthCallback, TrainingProgressCallback, RunReportCallback]
    assert TrainingProgressCallback not in kinds(make(disable_tqdm=True))


def test_the_terminal_is_given_back_when_training_fails(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no more")

    monkeypatch.setattr("sys.stderr", Terminal())
    trainer = make(disable_tqdm=False, callbacks=[Fails()])
    (bar,) = [callback for callback in own(trainer) if isinstance(callback, TrainingProgressCallback)]
    with pytest.raises(RuntimeError, match="no more"):
        trainer.train()
    assert bar._display is None


def test_the_report_says_at_once_what_ended_the_training(make: Any, tmp_path: Path) -> None:
    class Interrupted(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    trainer = make(callbacks=[Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (report["status"], report["error"]) == ("interrupted", "KeyboardInterrupt")


def test_streams_that_know_nothing_of_terminals_do_not_matter(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tee:
        def write(self, text: str) -> None:
            pass

        def flush(self) -> None:
            pass

    monkeypatch.setattr("sys.stderr", Tee())
    monkeypatch.setattr("sys.stdout", Tee())
    assert TrainingProgressCallback not in kinds(make(disable_tqdm=False))


def test_the_report_holds_what_was_measured_and_what_became_of_the_data(make: Any, tmp_path: Path) -> None:
    sampling = SampleGenerationCallback(tool_rows(), num_samples=2, max_new_tokens=4)
    make(callbacks=[sampling]).train()
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["data"] == {"train: rows": "8", "train: examples": "8", "train: rejected": "0"}
    assert [measured["turns"] for measured in report["measurements"]] == [2]
    page = (tmp_path / "run" / "report.html").read_text()
    assert report["verdict"]["sentence"].split("(")[0] in page
