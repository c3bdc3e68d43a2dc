import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "as_after"), [("skip_step", 2), ("rollback", 0)])
def test_two_processes_do_the_same_and_one_reports(tmp_path: Path, policy: str, as_after: int) -> None:
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.fixtures.health_run"]
    run = subprocess.run(
        [sys.executable, "-m", *command, str(tmp_path), policy],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1))
    assert first["steps"] == second["steps"] == 6
    assert first["sums"] == second["sums"]
    assert first["sums"][3] == first["sums"][as_after]
    assert len(set(first["sums"])) == 6
    assert second["events"] == []
    (event,) = first["events"]
    assert (event["kind"], event["step"], event["action"]) == ("nan", 3, policy)
    assert (event["evidence"]["rows"], event["evidence"]["process"]) == ([10, 11], 1)
    assert run.stderr.count("step 3, nan: ") == 1
