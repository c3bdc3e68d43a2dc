"""When one process fails, the run ends soon, with a code that says so and the message of that process."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepfabric_trainer.checkpoints import last_checkpoint
from tests.examples.test_train_tool_calling import free_port
from tests.fixtures.failing_run import PLACES
from tests.fixtures.processes import run_command, run_to_its_end

SOON = 150.0
"""Seconds: most of them are spent on starting. Processes that wait for each other wait for half an hour."""

MESSAGES = {"folder": "another run writes to", "killed": "Signal 9 (SIGKILL)"}


def launch_from_config(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module with `accelerate launch` and the example's config for CPUs, whatever becomes of it."""
    accelerate = Path(sys.executable).with_name("accelerate")
    config = ["--config_file", "examples/accelerate/ddp_cpu.yaml", "--main_process_port", str(free_port())]
    return run_command([accelerate, "launch", *config, "-m", module, *arguments])


@pytest.mark.slow
@pytest.mark.parametrize(("place", "process"), PLACES.items())
def test_a_failure_of_one_process_ends_all(place: str, process: str, tmp_path: Path) -> None:
    launch = launch_from_config if place == "step" else run_to_its_end
    begin = time.monotonic()
    run = launch("tests.fixtures.failing_run", str(tmp_path), place)
    assert time.monotonic() - begin < SOON
    assert run.returncode != 0
    assert MESSAGES.get(place, f"[rank{process}]: OSError: the disk of this process is gone") in run.stderr
    if place not in ("preparation", "folder"):
        assert (tmp_path / "run" / "report.md").is_file(), "the first process leaves its report"
    if place == "killed":
        # It dies in the evaluation after the second step, which comes before the save.
        assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-1")
