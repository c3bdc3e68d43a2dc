"""A run that is killed and goes on ends as one that was not killed: to the bit, and with the same logs."""

import json
import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.killed_run import Spec, run

pytestmark = pytest.mark.slow

_CLOCK = ("runtime", "per_second")
KINDS = {
    "auto": Spec(),
    "lazy": Spec(options={"preparation": "lazy"}),
    "stream": Spec(stream=True),
    "plain": Spec(plain=True),
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


def ends(processes: Any, folder: Path, spec: Spec) -> int:
    """Run in a process of its own; return its exit code."""
    process = processes.Process(target=run, args=(folder, spec))
    process.start()
    process.join(300)
    return process.exitcode


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
        ("auto", "evaluation", 10),
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
