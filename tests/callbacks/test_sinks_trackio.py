import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from deepfabric_trainer.callbacks import MetricsLoggerCallback
from tests.fixtures.journal_entries import Measures

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio import sqlite_storage, utils

    folder = tmp_path / "trackio"
    for module in (trackio, utils, sqlite_storage):
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    (database,) = folder.glob("*.db")
    connection = sqlite3.connect(database)
    try:
        return [json.loads(row) for (row,) in connection.execute("SELECT metrics FROM metrics ORDER BY step")]
    finally:
        connection.close()


def test_shows_measurements_in_the_run_that_transformers_has_started(
    make_sft_trainer: Any, tool_rows: Any, folder: Path
) -> None:
    callbacks = [Measures(), MetricsLoggerCallback(samples_per_log=2)]
    make_sft_trainer(tool_rows, callbacks=callbacks, max_steps=3, report_to=["trackio"]).train()
    logged = rows(folder)
    measured = [(row["train/global_step"], row["eval/tool_call_exact_match"]) for row in logged if len(row) == 3]
    assert [entry for entry in measured] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    samples = [row["deepfabric/samples"]["_value"] for row in logged if "deepfabric/samples" in row]
    assert len(samples) == 3
    assert [(row["step"], row["row"], row["prompt"]) for row in samples[1]] == [
        (2, 0, "user: Weather in Köln?"),
        (2, 1, "user: Weather in Köln?"),
    ]
    (events,) = (row["deepfabric/events"]["_value"] for row in logged if "deepfabric/events" in row)
    assert events[0]["kind"] == "loss_spike"
