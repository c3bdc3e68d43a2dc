"""A run that is killed and goes on ends as one that was not killed: to the bit, and with the same logs."""

import json
import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from deepfabric_trainer.checkpoints import checkpoints_of, find_defect
from tests.fixtures.killed_run import Spec, as_argument, run
from tests.fixtures.processes import run_to_its_end

pytestmark = pytest.mark.slow

_CLOCK = ("runtime", "per_second")
KINDS = {
    "auto": Spec(),
    "lazy": Spec(options={"preparation": "lazy"}),
    "stream": Spec(stream=True),
    "plain": Spec(plain=True),
    "epochs": Spec(options={"eval_strategy": "epoch", "save_steps": 3, "logging_steps": 4}),
}


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that find everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fixtures.killed_run"])
    return context


@pytest.fixture(scope="module")
def whole(processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What runs leave that nobody has killed."""
    known: dict[str, Any] = {}

    def whole(name: str) -> Any:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            assert ends(processes, folder, KINDS[name]) == 0
            known[name] = left_in(folder)
        return known[name]

    return whole


def ends(processes: Any, folder: Path, spec: Spec) -> int | None:
    """Run in a process of its own; return its exit code."""
    process = processes.Process(target=run, args=(folder, spec))
    process.start()
    process.join(300)
    exit_code: int | None = process.exitcode
    return exit_code


def left_in(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    history = json.loads((folder / "history.json").read_text())
    logged = [{key: value for key, value in entry.items() if not key.endswith(_CLOCK)} for entry in history]
    return torch.load(folder / "weights.pt"), logged


def assert_same(found: Any, expected: Any) -> None:
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    assert all(torch.equal(found[0][name], expected[0][name]) for name in expected[0])


@pytest.mark.parametrize(
    ("kind", "at", "step"),
    [
        ("auto", "step", 6),
        ("auto", "substep", 8),
        ("auto", "save", 4),
        ("auto", "evaluation", 8),
        ("auto", "end", 10),
        ("epochs", "evaluation", 6),
        ("epochs", "end", 10),
        ("lazy", "step", 5),
        ("stream", "step", 5),
        ("plain", "save", 8),
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(
    processes: Any, whole: Any, tmp_path: Path, kind: str, at: str, step: int
) -> None:
    spec = replace(KINDS[kind], at=at, step=step)
    assert ends(processes, tmp_path, spec) == -signal.SIGKILL
    assert ends(processes, tmp_path, replace(KINDS[kind], resume=True)) == 0
    assert_same(left_in(tmp_path), whole(kind))


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="transformers restores no optimizer of several processes on CPUs before 5.18",
)
def test_two_processes_are_interrupted_then_killed_and_go_on_to_the_same_end(tmp_path: Path) -> None:
    """Only the second process gets the signals; all save, and all end."""
    spec = Spec(options={"max_steps": 7})
    assert launch(tmp_path / "whole", spec)[0] == 0
    folder = tmp_path / "ended"
    code, text = launch(folder, replace(spec, at="step", step=3, signal=signal.SIGTERM, rank=1))
    assert code != 0
    assert "SIGTERM ended the training after step 3 of 7; checkpoint-3 is saved" in text
    assert find_defect(folder / "run" / "checkpoint-3") is None
    assert json.loads((folder / "run" / "metrics.json").read_text())["status"] == "interrupted"
    code, _ = launch(folder, replace(spec, at="substep", step=4, rank=1, resume=True))
    assert code != 0
    assert [path.name for path in checkpoints_of(folder / "run")] == ["checkpoint-4", "checkpoint-3", "checkpoint-2"]
    code, text = launch(folder, replace(spec, resume=True))
    assert code == 0, text
    assert_same(left_in(folder), left_in(tmp_path / "whole"))


def launch(folder: Path, spec: Spec) -> tuple[int, str]:
    """Run in two processes; return the launcher's exit code, and what they wrote to stderr."""
    folder.mkdir(exist_ok=True)
    done = run_to_its_end("tests.fixtures.killed_run", str(folder), as_argument(spec))
    return done.returncode, done.stderr
