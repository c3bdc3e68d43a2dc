import argparse
import json
from pathlib import Path

from benchmarks.report import Bars, draw_bars, machine, write_result


def test_a_result_says_what_it_was_taken_with(tmp_path: Path) -> None:
    path = tmp_path / "new" / "some.json"
    options = argparse.Namespace(rows=3, data=Path("folder/rows.jsonl"), output=path, plot=None)
    write_result(path, "some", options, [{"ratio": 2.5}])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert set(result) == {"benchmark", "rows", "data", *machine(), "figures"}
    assert (result["benchmark"], result["rows"], result["figures"]) == ("some", 3, [{"ratio": 2.5}])
    assert result["data"] == "rows.jsonl"  # where the file lies is nobody's business
    assert {"torch", "trl", "transformers"} < set(result["versions"])
    assert result["cpu"]
    assert result["memory_gib"] > 0


def test_bars_are_drawn_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "some.png"
    bars = Bars("one", {"TRL": 4.0, "deepfabric-trainer": 1.0, "another": 2.0}, {"deepfabric-trainer": "4.0x"})
    draw_bars(path, [bars, Bars("two", {"TRL": 1.0}, {})], "seconds")
    assert path.read_bytes().startswith(b"\x89PNG")
