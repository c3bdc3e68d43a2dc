import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.validate import Finding, Rule, ValidationReport, validate_dataset
from tests.fixtures.tiny import TOOLS, call, tool_rows
from tests.validate.rows import DONE, USER, assistant

ROWS: list[dict[str, Any]] = [
    tool_rows()[0],
    {"messages": [USER, assistant(call("fly"), call("fly"))], "tools": TOOLS},
    {"messages": [USER, DONE, DONE], "tools": TOOLS},
    {"messages": [USER, DONE, USER, assistant(call("flü"))], "tools": TOOLS},
]


def test_rows_are_counted_once_a_rule_and_warnings_do_not_break_them() -> None:
    report = validate_dataset(ROWS)
    assert report.rows == 4
    assert report.counts() == {Rule.UNDECLARED_TOOL: 2, Rule.ROLE_ORDER: 1}
    assert next(iter(report.counts())) is Rule.UNDECLARED_TOOL
    assert report.broken_rows == [1, 3]
    assert [finding.row for finding in report.errors] == [1, 1, 3]
    assert not report.ok


def test_it_sums_itself_up_in_words() -> None:
    assert str(validate_dataset(ROWS)) == (
        "2 of 4 rows are broken, 1 more has warnings.\n"
        "  undeclared-tool: 2 rows (a call of a tool that the row does not list)\n"
        "  role-order: 1 row (a message whose role cannot follow the one before)"
    )
    assert str(validate_dataset(ROWS[2:3])).splitlines()[0] == "All 1 rows can be trained on, 1 with warnings."
    assert str(validate_dataset(ROWS[:1])) == "All 1 rows can be trained on."
    assert str(validate_dataset(ROWS[1:2])).splitlines()[0] == "1 of 1 row is broken."
    assert str(validate_dataset([])) == "There are no rows."


def test_broken_rows_raise_with_counts_and_the_first_fixes() -> None:
    with pytest.raises(DataFormatError) as caught:
        validate_dataset([*ROWS, *[{"messages": []}] * 5]).raise_if_broken()
    message = str(caught.value)
    assert message.startswith(
        "7 of 9 rows are broken (5 format, 2 undeclared-tool):\n  row 1, `messages[1].tool_calls"
    )
    assert "'fly' is called" in message
    assert "To fix it: list the tool in `tools`" in message
    assert message.count("\n  row ") == 5
    assert "... and 3 more" in message


def test_warnings_and_good_rows_do_not_raise() -> None:
    report = validate_dataset([ROWS[0], ROWS[2]])
    report.raise_if_broken()
    assert report.findings
    assert not report.errors


def test_findings_are_written_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "findings.jsonl"
    report = validate_dataset(ROWS)
    report.to_jsonl(path)
    text = path.read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.splitlines()]
    assert [Finding(**{**entry, "rule": Rule(entry["rule"])}) for entry in entries] == report.findings
    assert list(entries[0]) == ["row", "path", "rule", "found", "fix", "severity"]
    assert (entries[0]["rule"], entries[0]["severity"]) == ("undeclared-tool", "error")
    assert "flü" in text
    ValidationReport(rows=0, findings=[]).to_jsonl(path)
    assert path.read_text(encoding="utf-8") == ""


def test_reports_can_be_pickled() -> None:
    report = validate_dataset(ROWS)
    assert pickle.loads(pickle.dumps(report)) == report
