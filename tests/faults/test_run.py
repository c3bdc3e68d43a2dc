"""What happens to the process, its memory, its numbers, its clock and its terminal while it trains."""

import errno
import io
import json
import logging
import math
import os
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ProgressCallback

from deepfabric_trainer.callbacks import RunReportCallback
from deepfabric_trainer.callbacks._report import followed_run
from deepfabric_trainer.callbacks._report.record import RunStatus
from deepfabric_trainer.checkpoints import begin_checkpoint
from deepfabric_trainer.cli import main
from deepfabric_trainer.prepare.lazy import EncodedOnDemand
from deepfabric_trainer.rows import to_dataset
from tests.faults.runs import At, make_trainer
from tests.fixtures.tiny import tiny_model, tiny_tokenizer, tool_rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_loader_process_ends_the_run_with_its_likely_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL is what the kernel sends to a process when memory runs out."""
    encode = EncodedOnDemand._examples
    main_process = os.getpid()
    marker = tmp_path / "killed"

    def die_later(self: EncodedOnDemand, numbers: list[int]) -> Any:
        if os.getpid() != main_process and (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, numbers)

    monkeypatch.setattr(EncodedOnDemand, "_examples", die_later)
    trainer = make_trainer(
        tmp_path / "run",
        preparation="lazy",
        dataloader_num_workers=1,
        per_device_train_batch_size=1,
        max_steps=100,
        save_strategy="steps",
        save_steps=1,
    )
    begin_checkpoint(tmp_path / "run" / "checkpoint-500")  # of an earlier run, and not whole
    with pytest.raises(RuntimeError, match="DataLoader worker") as error:
        trainer.train()
    assert marker.exists()
    cause, way_on = error.value.__notes__
    assert "was killed, mostly by the system when memory ran out: take fewer `dataloader_num_workers`" in cause
    assert f"goes on from {tmp_path / 'run' / 'checkpoint-'}" in way_on
    assert "checkpoint-500" not in way_on
    assert "DataLoader worker" in json.loads((tmp_path / "run" / "metrics.json").read_text())["error"]


def test_when_memory_runs_out_the_step_is_done_anew_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, batching="padded")
    failed: list[int] = []

    def fail_once(module: Any, args: Any, options: Any) -> None:
        rows = options["input_ids"].shape[0]
        if rows > 2:
            failed.append(rows)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer.model.model.register_forward_pre_hook(fail_once, with_kwargs=True)
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer.train()
    assert failed
    assert trainer.state.global_step == 2
    assert len([message for message in caplog.messages if "out of memory" in message]) == len(failed)


@pytest.mark.slow
def test_nan_stops_the_run_before_it_reaches_the_weights_and_the_command_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("K")] = math.nan  # of one row: Köln
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, tool_rows())))
    options = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name_or_path": rows,
        "output_dir": tmp_path / "run",
        "max_steps": 20,
        "use_cpu": "true",
        "bf16": "false",
        "report_to": "none",
        "per_device_train_batch_size": 1,
    }
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        code = main(["train", *(word for name, value in options.items() for word in (f"--{name}", str(value)))])
    assert code == 1
    assert len([message for message in caplog.messages if "nan" in message.lower() and "Likely" in message]) == 1
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["step"] < 20
    assert [event["kind"] for event in report["events"] if event["action"] == "stop"] == ["nan"]
    saved = type(model).from_pretrained(tmp_path / "run")
    assert all(torch.isfinite(weight).all() for name, weight in saved.named_parameters() if "embed" not in name)


class Jumping:
    """A clock on the wall that somebody sets back by a day, or ahead, each time it is asked."""

    def __init__(self, days: int) -> None:
        self.days = days
        self.asked = 0

    def seconds(self) -> float:
        self.asked += 1
        return 1.7e9 + 86400.0 * self.days * self.asked


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_jumps_changes_no_duration_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    clock = Jumping(days)

    class Moments(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=clock.seconds() - 1.7e9)

    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=1, eval_dataset=to_dataset(tool_rows()))
    (report,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, RunReportCallback)]
    monkeypatch.setattr(followed_run, "datetime", Moments)
    monkeypatch.setattr(time, "time", clock.seconds)
    began = time.monotonic()
    trainer.train()
    took = time.monotonic() - began
    monkeypatch.undo()
    assert trainer.state.global_step == 2
    assert clock.asked > 4
    speeds = json.loads((tmp_path / "metrics.json").read_text())["tokens_per_second"]
    assert all(0 < speed < 1e9 for _, speed in speeds)
    assert 0 < report._run.record(RunStatus.FINISHED).duration < took + 60


class GoneTerminal(io.StringIO):
    """A terminal that is closed after a while."""

    gone: OSError | None = None

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.gone is not None:
            raise self.gone
        return super().write(text)


@pytest.mark.parametrize("code", [errno.EIO, errno.EPIPE])
def test_a_terminal_that_is_lost_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    terminal = GoneTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    lose = At(1, lambda: setattr(terminal, "gone", OSError(code, os.strerror(code))))
    trainer = make_trainer(tmp_path, disable_tqdm=False, callbacks=[lose])
    assert ProgressCallback not in map(type, trainer.callback_handler.callbacks)
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer.train()
    assert trainer.state.global_step == 2
    said = [message for message in caplog.messages if "the run goes on without a bar" in message]
    assert len(said) == 1
