import json
from pathlib import Path

import pytest

from tests.fixtures.processes import run_processes, run_to_its_end


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "as_after"), [("skip_step", 2), ("rollback", 0)])
def test_two_processes_do_the_same_and_one_reports(tmp_path: Path, policy: str, as_after: int) -> None:
    said = run_processes("tests.fixtures.health_run", str(tmp_path), policy)
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1))
    assert first["steps"] == second["steps"] == 6
    assert first["sums"] == second["sums"]
    assert first["sums"][3] == first["sums"][as_after]
    assert len(set(first["sums"])) == 6
    assert second["events"] == []
    (event,) = first["events"]
    assert (event["kind"], event["step"], event["action"]) == ("nan", 3, policy)
    assert (event["evidence"]["rows"], event["evidence"]["process"]) == ([10, 11], 1)
    assert said.count("step 3, nan: ") == 1


@pytest.mark.slow
def test_if_one_process_cannot_go_back_none_does_and_the_run_goes_on(tmp_path: Path) -> None:
    said = run_processes("tests.fixtures.health_run", str(tmp_path), "rollback", "read")
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1))
    assert first["steps"] == second["steps"] == 6
    assert first["sums"] == second["sums"]
    assert first["sums"][3] == first["sums"][2], "the bad step changes nothing all the same"
    assert said.count("watching the run's health failed") == 2
    assert "failed in process 1" in said
    assert "the disk of this process is gone" in said


@pytest.mark.slow
def test_processes_with_different_weights_do_not_go_on(tmp_path: Path) -> None:
    run = run_to_its_end("tests.fixtures.health_run", str(tmp_path), "rollback", "restore")
    assert run.returncode != 0
    assert not list(tmp_path.glob("*.json"))
    assert (
        "failed in one process and not in others, which now hold other weights: the disk of this process" in run.stderr
    )
