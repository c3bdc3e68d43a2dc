"""TRL's own tests, once with `SFTTrainer` and once with `DeepFabricTrainer` in its place:

    python -m tests.parity.trl_suite.run path/to/trl/tests/test_sft_trainer.py --stand-ins

Fails if a test that passes with `SFTTrainer` does not pass with ours.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.parity.trl_suite.stand_ins import FOLDER, make_stand_ins

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests twice, print what became of them, and return 1 if ours lose one, else 0."""
    parser = argparse.ArgumentParser(description="Run TRL's tests of SFTTrainer with DeepFabricTrainer in its place.")
    parser.add_argument("tests", type=Path, help="the file of tests, in a checkout of TRL of the installed version")
    parser.add_argument("--stand-ins", action="store_true", help="make models and rows here instead of asking the hub")
    parser.add_argument("-k", dest="only", default="", help="run tests that match, as pytest does")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.stand_ins:
            make_stand_ins(folder)
        environment = stand_in_environment(folder) if options.stand_ins else {}
        plugins = ["stand_ins"] if options.stand_ins else []
        theirs = run_tests(options.tests, folder / "theirs.xml", plugins, environment, options.only)
        ours = run_tests(options.tests, folder / "ours.xml", [*plugins, "in_place"], environment, options.only)
    print(table(theirs, ours))
    losses = lost(theirs, ours)
    for test in losses:
        print(f"passes with SFTTrainer only: {test} ({ours.get(test, 'not run')})")
    return 1 if losses or not theirs else 0


def stand_in_environment(folder: Path) -> dict[str, str]:
    """Return the variables that lead to the stand-ins, and away from the hub."""
    return {
        FOLDER: str(folder),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # the models are so small that threads only wait for each other
    }


def run_tests(
    tests: Path, report: Path, plugins: Sequence[str], environment: Mapping[str, str], only: str = ""
) -> dict[str, str]:
    """Run tests in a process of their own, and return what became of each: see `read_outcomes`."""
    # TRL's tests are a package of the same name as ours, so the plugins are found by folder.
    paths = [str(_HERE), str(_ROOT), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", str(tests.resolve()), "-q", "--tb=short", f"--junitxml={report}"]
    command += ["-p", "no:cacheprovider", *(part for plugin in plugins for part in ("-p", plugin))]
    command += ["-k", only] if only else []
    variables = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run(command, cwd=tests.resolve().parent.parent, env=variables, check=False)
    return read_outcomes(report.read_text(encoding="utf-8"))


def read_outcomes(report: str) -> dict[str, str]:
    """Return what became of each test of a JUnit report: `"passed"`, `"failed"`, `"error"` or `"skipped"`."""
    outcomes = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        found = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = {"failure": "failed"}.get(found[0], found[0]) if found else "passed"
        outcomes[f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"] = outcome
    return outcomes


def lost(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """Return the tests that pass with their trainer and not with ours."""
    return [test for test, outcome in theirs.items() if outcome == "passed" and ours.get(test) != "passed"]


def table(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Return the counts of each outcome with either trainer."""
    lines = [f"{'':20}{'passed':>8}{'failed':>8}{'error':>8}{'skipped':>8}"]
    for name, outcomes in (("SFTTrainer", theirs), ("DeepFabricTrainer", ours)):
        counts = Counter(outcomes.values())
        lines.append(f"{name:20}" + "".join(f"{counts[kind]:>8}" for kind in ("passed", "failed", "error", "skipped")))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
