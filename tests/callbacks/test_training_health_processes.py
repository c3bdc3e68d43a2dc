import json
from pathlib import Path

import pytest

from tests.fixtures.processes import run_processes


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
