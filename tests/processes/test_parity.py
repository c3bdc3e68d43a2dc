"""Two processes train as one does with the same global batch."""

import json
from pathlib import Path

import pytest

from tests.fixtures.parity_run import SETTINGS, make_trainer, outcome, rows_of
from tests.fixtures.processes import run_processes


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of all runs, one after the other."""
    folder = tmp_path_factory.mktemp("two_processes")
    run_processes("tests.fixtures.parity_run", str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_log_and_learn_what_one_does(name: str, folder_of_two: Path, tmp_path: Path) -> None:
    first, second = (json.loads((folder_of_two / f"{name}.{process}.json").read_text()) for process in (0, 1))
    assert first["weights"] == second["weights"]
    rows = rows_of(name)
    # accelerate fills the last batch from the beginning.
    alone = outcome(make_trainer(name, tmp_path, [*rows, *rows[: 8 - len(rows)]], processes=1))
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-5)
    assert first["steps"] == [pytest.approx(step, rel=1e-4) for step in alone["steps"]]
    assert alone["steps"][0]["loss"] != pytest.approx(alone["steps"][-1]["loss"], rel=1e-2), "it must have learned"
