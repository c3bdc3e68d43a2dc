import json
from pathlib import Path
from typing import Any

import pytest

from docs import make_benchmarks_page
from docs.benchmark_tables import TABLES
from docs.make_benchmarks_page import BENCHMARKS, PATH, TITLES, load_results, page

_MACHINE: dict[str, Any] = {"cpus": 2, "cpu": "Some CPU", "python": "3.11.7", "versions": {"trl": "1.16.0"}}


def _first_step(seconds: float) -> dict[str, Any]:
    figure = {
        "rows": 100_000,
        "file_mib": 1600.0,
        "constructor_seconds": 1.0,
        "our_seconds": seconds,
        "step_seconds": 9.0,
        "trl_rows": 200,
        "trl_measured_seconds": 4.0,
        "trl_calculated_seconds": 2000.0,
        "goal": 5.0,
    }
    return {**_MACHINE, "figures": [figure]}


def test_the_page_is_what_the_results_say() -> None:
    assert PATH.read_text(encoding="utf-8") == page(load_results(BENCHMARKS / "results"))


def test_a_goal_that_is_missed_is_said_twice() -> None:
    assert "| start to first batch, 100,000 rows | under 5 s | 4.2 s | yes |" in page({"first_step": _first_step(4.2)})
    missed = page({"first_step": _first_step(6.0)})
    assert "| start to first batch, 100,000 rows | under 5 s | 6.0 s | **no** |" in missed
    assert "- start to first batch, 100,000 rows: 6.0 s; under 5 s was the goal." in missed


def test_each_machine_is_named() -> None:
    one, other = _first_step(4.0), {**_first_step(4.0), "cpu": "Another CPU"}
    assert "Measured on 2 cores of Some CPU, Python 3.11.7, trl 1.16.0." in page({"first_step": one})
    validate = {**other, "figures": []}
    both = page({"first_step": one, "validate": validate})
    assert "- `first_step`: 2 cores of Some CPU" in both
    assert "- `validate`: 2 cores of Another CPU" in both


def test_every_benchmark_has_a_section_that_says_how_it_measures() -> None:
    assert set(TITLES) == set(TABLES)
    for name in TITLES:
        assert f"python -m benchmarks.{name}" in make_benchmarks_page._docstring(name)


def test_results_are_read_by_the_name_of_their_benchmark(tmp_path: Path) -> None:
    (tmp_path / "epoch.json").write_text(json.dumps({"figures": []}), encoding="utf-8")
    (tmp_path / "another.json").write_text("{}", encoding="utf-8")
    assert load_results(tmp_path) == {"epoch": {"figures": []}}


def test_a_page_that_differs_is_written_and_only_said_with_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "benchmarks.md"
    monkeypatch.setattr(make_benchmarks_page, "PATH", path)
    monkeypatch.setattr("sys.argv", ["make_benchmarks_page", "--check"])
    assert make_benchmarks_page.main() == 1
    assert not path.exists()
    monkeypatch.setattr("sys.argv", ["make_benchmarks_page"])
    assert make_benchmarks_page.main() == 0
    monkeypatch.setattr("sys.argv", ["make_benchmarks_page", "--check"])
    assert make_benchmarks_page.main() == 0
    assert capsys.readouterr().out == "differs: benchmarks.md\nwritten: benchmarks.md\n"
