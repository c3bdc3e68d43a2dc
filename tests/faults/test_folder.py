"""The output folder takes nothing, is somebody else's, or goes away."""

import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from trl import SFTConfig

from deepfabric_trainer import ConfigError, DeepFabricSFTConfig
from deepfabric_trainer.callbacks import MetricsLoggerCallback, run_report
from deepfabric_trainer.callbacks._sinks import run_file
from deepfabric_trainer.run_folder import LOCK_NAME, own_folder
from tests.faults.runs import At, make_trainer
from tests.fixtures.processes import ROOT

_HOLDER = """
import os, sys, time
from trl import SFTConfig
from deepfabric_trainer.run_folder import own_folder
with own_folder(SFTConfig(sys.argv[1], use_cpu=True, bf16=False)):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(300)
"""


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with mock.patch("deepfabric_trainer.trainer.own_examples") as prepare:
        for config in (DeepFabricSFTConfig, SFTConfig):
            with pytest.raises(
                ConfigError, match=r"nothing can be written to the output folder .*file/run .Not a dir"
            ):
                make_trainer(tmp_path / "file" / "run", config)
    assert not prepare.called


def test_a_folder_that_takes_no_files_is_refused_where_something_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch("deepfabric_trainer.preflight.tempfile.TemporaryFile", side_effect=full):
        for config, options in ((DeepFabricSFTConfig, {}), (SFTConfig, {"save_strategy": "steps"})):
            with pytest.raises(ConfigError, match=r"No space left on device.*another `output_dir`"):
                make_trainer(tmp_path, config, **options)
        make_trainer(tmp_path, SFTConfig, max_length=None)
    assert [message for message in caplog.messages if "the run saves nothing, and goes on" in message]


def test_two_runs_in_a_folder_are_kept_apart_and_one_after_the_other_is_fine(tmp_path: Path) -> None:
    second = make_trainer(tmp_path / "run")
    met: list[Any] = []

    def start_second() -> None:
        met.append(json.loads((tmp_path / "run" / LOCK_NAME).read_text()))
        with pytest.raises(ConfigError) as error:
            second.train()
        met.append(str(error.value))

    make_trainer(tmp_path / "run", callbacks=[At(1, start_second)]).train()
    holder, words = met
    assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
    assert f"process {holder['pid']} on {holder['host']}, since {holder['started']}" in words
    assert not (tmp_path / "run" / LOCK_NAME).exists()
    second.train()
    assert second.state.global_step == 2


def test_with_a_plain_config_that_saves_nothing_two_runs_are_only_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    with own_folder(args):
        args.save_strategy = "no"
        with own_folder(args):
            assert [message for message in caplog.messages if "another run writes to" in message]
        with pytest.raises(ConfigError), own_folder(SFTConfig(str(tmp_path), use_cpu=True, bf16=False)):
            pass
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_of_a_run_takes_the_folder(tmp_path: Path) -> None:
    args = mock.Mock(output_dir=str(tmp_path), process_index=1)
    with own_folder(args), own_folder(args):
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[Any, int]]:
    """Another process that holds the folder, and has forked one that lives on after it; and that one's id."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        yield process, worker
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.kill(worker, signal.SIGKILL)


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_its_folder_free(tmp_path: Path, holder: tuple[Any, int]) -> None:
    process, worker = holder
    args = DeepFabricSFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ConfigError, match=f"process {process.pid} on"), own_folder(args):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(worker, 0)
    with own_folder(args):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_without_locks_a_run_goes_on_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = DeepFabricSFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    no_locks = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    with mock.patch.object(fcntl, "flock", side_effect=no_locks), own_folder(args):
        pass
    assert [message for message in caplog.messages if "cannot be locked" in message and "No locks" in message]


def warnings_of(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


def test_a_folder_that_vanishes_is_said_and_the_model_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    vanish = At(1, lambda: shutil.rmtree(folder))
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(
            folder, callbacks=[vanish, MetricsLoggerCallback()], save_strategy="steps", save_steps=2
        )
        trainer.train()
    assert trainer.state.global_step == 2
    assert len(warnings_of(caplog, f"the report in {folder} is gone, perhaps with the folder")) == 1
    assert len(warnings_of(caplog, "the JSON lines: not everything can be written")) == 1
    assert (folder / "checkpoint-2" / "model.safetensors").is_file()
    assert json.loads((folder / "metrics.json").read_text())["status"] == "finished"


def test_a_full_disk_for_reports_and_metrics_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Any, mode: str = "r", **options: Any) -> Any:
        if any(letter in mode for letter in "wax"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, mode, **options)

    for module in (run_file, run_report):
        monkeypatch.setattr(module, "open", full, raising=False)
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(tmp_path / "run", callbacks=[MetricsLoggerCallback()])
        trainer.train()
    assert trainer.state.global_step == 2
    assert len(warnings_of(caplog, "the JSON lines: not everything can be written")) == 1
    assert len(warnings_of(caplog, "the report cannot be written, and the run goes on without it")) == 1
    assert len(warnings_of(caplog, "No space left on device")) == 2


def test_a_page_that_cannot_be_written_does_not_keep_back_the_others(tmp_path: Path) -> None:
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    make_trainer(tmp_path / "run").train()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "finished"
    assert (tmp_path / "run" / "report.md").is_file()
