"""Dashboards do not answer, or take nothing."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from deepfabric_trainer.callbacks import MetricsLoggerCallback, metrics_logger
from deepfabric_trainer.callbacks._journal import RunEvent, journal_of
from deepfabric_trainer.callbacks._sinks.patience import PatientSink
from deepfabric_trainer.callbacks._sinks.sink import Sink
from tests.faults.runs import make_trainer
from tests.fixtures.processes import ROOT

_SCRIPT = """
import sys
from pathlib import Path
from tests.faults.runs import make_trainer
make_trainer(Path(sys.argv[1]), report_to=["wandb"]).train()
"""


@pytest.mark.slow
def test_wandb_that_does_not_answer_ends_the_run_before_its_first_step_with_advice(tmp_path: Path) -> None:
    """The W&B client tries for `WANDB_INIT_TIMEOUT` seconds, as it does when nobody is there at all."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "WANDB_API_KEY": "a" * 40,
            "WANDB_INIT_TIMEOUT": "2",
            "WANDB_DIR": str(tmp_path),
            "WANDB_SILENT": "true",
        }
        run = subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(tmp_path / "run")],
            cwd=ROOT,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    assert run.returncode == 1
    assert "CommError: Timed out" in run.stderr
    assert run.stderr.count("W&B did not answer. With WANDB_MODE=offline it keeps the run on disk") == 1
    assert "'loss'" not in run.stdout, "nothing was trained, so nothing is lost"


class Stuck(Sink):
    """Hangs at events as long as it is told to, and remembers those that it got to know."""

    title = "a dashboard"

    def __init__(self) -> None:
        self.free = threading.Event()
        self.known: list[str] = []

    def event(self, event: RunEvent) -> None:
        self.free.wait(60)
        self.known.append(event.kind)


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    sink = Stuck()
    yield sink
    sink.free.set()


def event(kind: str) -> RunEvent:
    return RunEvent(kind, 1, "something happened")


def test_a_dashboard_that_hangs_is_waited_for_once_and_told_again_when_it_is_back(stuck: Stuck) -> None:
    patient = PatientSink(stuck, seconds=0.1)
    with pytest.raises(TimeoutError, match=r"no answer for 0\.1 seconds"):
        patient.event(event("first"))
    begin = time.monotonic()
    for _ in range(100):
        with pytest.raises(TimeoutError, match="still does not answer"):
            patient.event(event("refused"))
    assert time.monotonic() - begin < 5
    stuck.free.set()
    while stuck.known != ["first"]:
        time.sleep(0.01)
    patient.event(event("second"))
    assert stuck.known == ["first", "second"]
    patient.close()


def test_a_dashboard_that_hangs_in_mid_run_holds_up_no_run(
    tmp_path: Path, stuck: Stuck, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_logger, "PatientSink", partial(PatientSink, seconds=0.1))
    monkeypatch.setattr(metrics_logger, "WandbSink", lambda *_: stuck)
    logger = MetricsLoggerCallback()
    trainer = make_trainer(tmp_path, callbacks=[logger])
    trainer.args.report_to = ["wandb"]
    for number in range(3):
        journal_of(trainer.control).add(event(str(number)))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    first, last = [message for message in caplog.messages if message.startswith("a dashboard: ")]
    assert "not everything can be written (TimeoutError: no answer for 0.1 seconds" in first
    assert "writes failed in this run" in last
    assert (tmp_path / "events.jsonl").read_text().count("something happened") == 3


def fake_wandb(fail: Callable[..., None]) -> Any:
    return SimpleNamespace(run=SimpleNamespace(log=fail, config=mock.Mock(), summary=mock.Mock()), Table=mock.Mock())


def fake_trackio(fail: Callable[..., None]) -> Any:
    return SimpleNamespace(log=fail, Table=mock.Mock())


@pytest.mark.parametrize(
    ("name", "module", "title"), [("wandb", fake_wandb, "W&B"), ("trackio", fake_trackio, "Trackio")]
)
def test_a_dashboard_that_takes_nothing_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, module: Any, title: str
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", "the dashboard's folder")

    trainer = make_trainer(tmp_path, callbacks=[MetricsLoggerCallback()])
    trainer.args.report_to = [name]
    for number in range(2):
        journal_of(trainer.control).add(event(str(number)))
    with mock.patch.dict(sys.modules, {name: module(fail)}), caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    said = [message for message in caplog.messages if message.startswith(f"{title}: not everything can be written")]
    assert len(said) == 1
    assert "Permission denied" in said[0]


def test_a_folder_for_tensorboard_that_takes_nothing_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file" / "logs"))
    trainer = make_trainer(tmp_path / "run", callbacks=[MetricsLoggerCallback()])
    trainer.args.report_to = ["tensorboard"]
    journal_of(trainer.control).add(event("any"))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    said = [message for message in caplog.messages if message.startswith("TensorBoard: not everything can be written")]
    assert len(said) == 1
    assert "Not a directory" in said[0] or "File exists" in said[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tensorboard_of_transformers_that_takes_nothing_ends_the_run_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file" / "logs"))
    trainer = make_trainer(tmp_path / "run", report_to=["tensorboard"])
    with pytest.raises(OSError, match="file") as error:
        trainer.train()
    assert trainer.state.global_step == 0
    assert "TENSORBOARD_LOGGING_DIR" in error.value.__notes__[0]
