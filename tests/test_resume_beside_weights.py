"""What a run that is stopped and goes on leaves beside weights and logs, and from where it goes on."""

import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from transformers.trainer_utils import HPSearchBackend

from deepfabric_trainer.callbacks import (
    MetricEarlyStoppingCallback,
    MetricsLoggerCallback,
    SampleGenerationCallback,
    TrainingHealthCallback,
)
from deepfabric_trainer.checkpoints import checkpoints_of, find_defect
from tests.fixtures.stopped_run import (
    Kind,
    Stopped,
    assert_same,
    make_trainer,
    run,
    short_rows,
    without_times,
)

pytestmark = pytest.mark.slow

BEST_FIRST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "best",
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
    "load_best_model_at_end": True,
}
"""The loss gets smaller, so that the first checkpoint stays the best, and the only one."""


def callbacks() -> dict[str, Any]:
    """Return all that keep something from step to step; the third evaluation that is not better ends the run."""
    generating = SampleGenerationCallback(short_rows(), num_samples=2, max_new_tokens=3, every_n_steps=2)
    stopping = MetricEarlyStoppingCallback("eval_loss", mode="max", patience=4)
    health = TrainingHealthCallback({"loss_spike": "rollback"}, rollback_every=2)
    return {"callbacks": [generating, stopping, health, MetricsLoggerCallback()]}


def lines_of(path: Path) -> list[Any]:
    """Return the lines of a run's file, without times and the run's name."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        for name in ("time", "run_id", "seconds"):
            line.pop(name, None)
        line["metrics"] = without_times([line.get("metrics", {})])
    return lines


def test_callbacks_go_on_where_they_were_and_no_line_is_written_twice(tmp_path: Path) -> None:
    kind = Kind({"eval_strategy": "steps", "eval_steps": 1}, evaluates=True, trainer=callbacks)
    whole, stopped = run(tmp_path / "whole", kind), run(tmp_path / "stopped", kind, (2, 4, 5))
    assert whole.state.global_step == 5, "stopped early"
    assert_same(stopped, whole)
    for name in ("metrics.jsonl", "samples.jsonl", "tables.jsonl"):
        assert lines_of(tmp_path / "stopped" / name) == lines_of(tmp_path / "whole" / name)
    reports = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("stopped", "whole")]
    for report in reports:
        report["history"] = without_times(report["history"])
        report["events"] = [event for event in report["events"] if event["kind"] != "resumed"]
        report["checkpoints"] = [Path(path).name for path in report["checkpoints"]]
    for name in ("history", "events", "checkpoints", "status", "step"):
        assert reports[0][name] == reports[1][name]


def test_a_run_goes_on_in_a_folder_that_has_another_name_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a relative path from another folder, through a link, and after it was moved."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    kind = Kind(BEST_FIRST, evaluates=True)
    whole = run("whole", kind)
    with pytest.raises(Stopped):
        make_trainer("run", kind, stop=3).train()
    assert [path.name for path in checkpoints_of("run")] == ["checkpoint-1"]
    monkeypatch.chdir(tmp_path / "there")
    os.symlink(tmp_path / "here" / "run", "link")
    for folder in ("../here/run", "link", "moved"):
        if folder == "moved":
            shutil.move(tmp_path / "here" / "run", folder)
        trainer = make_trainer(folder, kind)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.best_model_checkpoint == f"{folder}/checkpoint-1"
        assert without_times(trainer.state.log_history) == whole.logged
        assert all(torch.equal(value, whole.weights[name]) for name, value in trainer.model.state_dict().items())


def test_a_checkpoint_without_the_state_of_the_run_is_said_to_be_none_to_go_on_from_as_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = Kind({"save_only_model": True, "max_steps": 3})
    with pytest.raises(Stopped):
        make_trainer(tmp_path, kind, stop=2).train()
    assert "holds the model only" not in caplog.text
    trainer = make_trainer(tmp_path, kind)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert f"{tmp_path / 'checkpoint-1'} holds the model only" in caplog.text
    assert trainer.state.global_step == 3


def test_trials_of_a_search_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hyperparameter_search` calls the trainer in a sweep of W&B."""
    trainer = make_trainer(tmp_path, Kind({"max_steps": 2, "save_total_limit": 1}))
    model = trainer.model
    trainer.model_init, trainer.hp_search_backend = lambda: model, HPSearchBackend.WANDB
    for name, rate in (("slow", 1e-3), ("fast", 1e-2)):
        monkeypatch.setattr(wandb, "run", SimpleNamespace(id=name, url=None))
        trainer.train(resume_from_checkpoint=None, trial={"learning_rate": rate})
        assert trainer.state.log_history[0]["learning_rate"] == rate / 2
        (checkpoint,) = checkpoints_of(tmp_path / f"run-{name}")
        assert checkpoint.name == "checkpoint-2"
        assert find_defect(checkpoint) is None
