"""Of two processes the first one writes; batches of both hold rows that begin alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.processes import run_processes
from tests.fixtures.whole_run import BATCH, CATALOGUES, ROWS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    folder = tmp_path_factory.mktemp("whole_run")
    run_processes("tests.fixtures.whole_run", str(folder))
    return folder


def told_by(process: int, folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / f"{process}.json").read_text())
    return told


@pytest.mark.slow
def test_only_the_first_process_writes(folder: Path) -> None:
    first, second = (told_by(process, folder)["touched"] for process in (0, 1))
    written = {"rejected.jsonl", "report.md", "report.html", "metrics.json", "trainer_state.json"}
    assert written <= set(map(str, (path.relative_to(folder / "run") for path in (folder / "run").rglob("*"))))
    assert "rejected.jsonl" in first
    # A checkpoint keeps of each process its random state, which PyTorch writes unseen, and what it has not logged yet.
    assert [name for name in second if Path(name).name not in ("rng_state_1.pth", "between_logs_1.json")] == []


@pytest.mark.slow
def test_what_is_written_is_there_once(folder: Path) -> None:
    rejected = (folder / "run" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in rejected] == [ROWS]
    history = json.loads((folder / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in losses] == list(range(1, ROWS // (2 * BATCH) + 1))
    (evaluated,) = [entry for entry in history if "eval_loss" in entry]
    assert {"eval_tool_call_exact_match", "eval_token_accuracy_tool_name", "eval_token_accuracy_stop"} <= set(
        evaluated
    )


@pytest.mark.slow
def test_batches_of_each_process_hold_one_catalogue_and_all_rows_come_once(folder: Path) -> None:
    batches = [batch for process in (0, 1) for batch in told_by(process, folder)["batches"]]
    assert sorted(row for batch in batches for row in batch) == list(range(ROWS))
    assert all(len({row % CATALOGUES for row in batch}) == 1 for batch in batches)
