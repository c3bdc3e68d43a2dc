from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers.integrations import WandbCallback

from deepfabric_trainer.callbacks import MetricsLoggerCallback
from tests.fixtures.journal_entries import Measures
from tests.fixtures.wandb_file import OfflineRun, read_offline_runs

wandb = pytest.importorskip("wandb", reason="wandb is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path), "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    write_out()  # the settings of an earlier run are kept until then
    yield
    write_out()


def write_out() -> None:
    """End the run and the process that writes for it."""
    wandb.finish()
    wandb.teardown()


@pytest.fixture
def train(make_sft_trainer: Any, tool_rows: list[dict[str, Any]], tmp_path: Path) -> Any:
    def train(*, ours_first: bool = False, **options: Any) -> OfflineRun:
        callbacks = [Measures(), MetricsLoggerCallback(samples_per_log=2)]
        evaluation = {"eval_dataset": Dataset.from_list(tool_rows), "eval_strategy": "steps", "eval_steps": 1}
        trainer = make_sft_trainer(
            tool_rows, callbacks=callbacks, max_steps=3, report_to=["wandb"], **(evaluation | options)
        )
        if ours_first:
            handler = trainer.callback_handler
            handler.callbacks.sort(key=lambda callback: isinstance(callback, WandbCallback))
        trainer.train()
        write_out()
        (run,) = read_offline_runs(tmp_path)
        return run

    return train


def test_shows_measurements_in_the_run_that_transformers_has_started(train: Any) -> None:
    run = train()
    assert run.values("eval/tool_call_exact_match") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert [step for step, _ in run.values("train/loss")] == [1, 2, 3]
    samples = run.tables("deepfabric/samples")
    assert len(samples) == 3
    assert samples[0]["columns"] == ["step", "row", "prompt", "expected", "generated", "exact_match", "error"]
    assert [row[:2] for row in samples[1]["data"]] == [[2, 0], [2, 1]]
    assert samples[0]["data"][0][2:5] == [
        "user: Weather in Köln?",
        '{"name": "get_weather", "arguments": {"city": "Köln"}}',
        "<tool_call>…</tool_call>",
    ]
    assert run.tables("deepfabric/tools")[2]["data"] == [[3, "get_weather", 3, 3, 1]]
    assert run.tables("deepfabric/confusions")[2]["data"] == [[3, "get_weather", None, 2]]
    ((event,),) = (table["data"] for table in run.tables("deepfabric/events"))
    assert event[:3] == [2, "critical", "loss_spike"]
    assert event[-1] == '{"loss": "NaN", "rows": [1, 2]}'


def test_keeps_the_best_and_the_last_in_the_summary(train: Any) -> None:
    run = train(metric_for_best_model="entropy", greater_is_better=False)
    assert run.summary["best/eval_tool_call_exact_match"] == 0.3
    assert run.summary["best_step/eval_tool_call_exact_match"] == 3
    assert run.summary["eval/tool_call_exact_match"] == 0.3
    assert run.summary["best/eval_entropy"] == min(value for _, value in run.values("eval/entropy"))
    losses = [value for _, value in run.values("eval/loss")]
    assert run.summary["best/eval_loss"] == min(losses)
    assert "best/loss" not in run.summary
    assert set(run.config["deepfabric"]) == {"run_id"}


def test_copes_with_being_called_before_transformers(train: Any) -> None:
    run = train(ours_first=True, eval_dataset=None, eval_strategy="no")
    assert run.values("eval/tool_call_exact_match") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert len(run.tables("deepfabric/samples")) == 3
    assert "learning_rate" in run.config


def test_stays_out_of_a_run_that_does_not_report_to_it(make_sft_trainer: Any, tool_rows: Any, tmp_path: Path) -> None:
    with wandb.init(project="mine"):
        make_sft_trainer(tool_rows, callbacks=[Measures(), MetricsLoggerCallback()]).train()
    write_out()
    (run,) = read_offline_runs(tmp_path)
    assert run.history == []
    assert "deepfabric" not in run.config
