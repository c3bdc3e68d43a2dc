import json
import random
from pathlib import Path

import pytest

from benchmarks.validate import main, make_rows
from deepfabric_trainer.validate import Rule, validate_dataset


def test_its_rows_are_good_but_for_those_that_are_broken_on_purpose() -> None:
    rows = make_rows(101, 20, 200, random.Random(0))
    assert rows == make_rows(101, 20, 200, random.Random(0))
    assert all(len(row["tools"]) == 20 for row in rows)
    report = validate_dataset(rows)
    assert [(finding.row, finding.rule) for finding in report.findings] == [
        (0, Rule.INVALID_ARGUMENTS),
        (100, Rule.INVALID_ARGUMENTS),
    ]


def test_it_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "validate.json"
    main(["--rows", "4", "--tools", "3", "--catalogue", "5", "--output", str(output)])
    assert "3 tools of 5" in " ".join(capsys.readouterr().out.split())
    result = json.loads(output.read_text(encoding="utf-8"))
    assert (result["benchmark"], result["rows"]) == ("validate", 4)
    assert [figure["rows_of"] for figure in result["figures"]] == ["3 tools of 5", "3 tools of 3"]
    assert all(figure["rows_per_second"] > 0 for figure in result["figures"])
