import json
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from deepfabric_trainer.errors import DataFormatError

_SHOWN = 5
"""Findings in the message of `raise_if_broken`."""


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """The row cannot be trained on, or would teach something wrong."""
    WARNING = "warning"
    """The row can be trained on; somebody should look at it."""


class Rule(StrEnum):
    """The rules, each with its meaning in words. The values are stable: other people's scripts filter by them."""

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:  # noqa: D102
        rule = str.__new__(cls, value)
        rule._value_ = value
        rule.meaning = meaning
        return rule

    FORMAT = "format", "the row cannot be read as a conversation"
    UNKNOWN_ROLE = "unknown-role", "a role that is none of system, developer, user, assistant, tool"
    ROLE_ORDER = "role-order", "a message whose role cannot follow the one before"
    NO_ASSISTANT = "no-assistant", "no assistant turn: there is nothing to train"
    EMPTY_TURN = "empty-turn", "an assistant turn without content and calls, or an empty user message"
    UNANSWERED_END = "unanswered-end", "messages after the last assistant turn: they are never trained"
    UNDECLARED_TOOL = "undeclared-tool", "a call of a tool that the row does not list"
    INVALID_ARGUMENTS = "invalid-arguments", "arguments that the called tool's schema forbids"
    CALL_IN_TEXT = "call-in-text", "a call written into the text, past the chat template"
    DUPLICATE_CALL_ID = "duplicate-call-id", "two calls of one id in a turn"
    ORPHAN_RESULT = "orphan-result", "a tool result that answers no call"
    MISSING_RESULT = "missing-result", "a call that the conversation goes on without a result of"
    RESULT_NAME = "result-name", "a tool result whose name is not that of the call it answers"
    INVALID_SCHEMA = "invalid-schema", "a tool whose parameters are no valid JSON Schema"
    DUPLICATE_TOOL = "duplicate-tool", "two tools of one name"
    CONTROL_TOKEN = "control-token", "a control token of the chat template inside text"
    TEMPLATE = "template", "the chat template drops or refuses something of the row"
    TOO_LONG = "too-long", "a row that does not fit into `max_length`"
    NOTHING_TO_TRAIN = "nothing-to-train", "no turn is left that the settings train"


@dataclass(frozen=True)
class Finding:
    """One rule broken at one place.

    Args:
        row (`int`): The row's number, counted from 0.
        path (`str`): The field, such as `"messages[2].tool_calls[0].function.arguments.city"`.
        rule (`Rule`): The rule.
        found (`str`): What was found.
        fix (`str`): The edit that mends it.
        severity (`Severity`): How bad it is.
    """

    row: int
    path: str
    rule: Rule
    found: str
    fix: str
    severity: Severity = Severity.ERROR


@dataclass(frozen=True)
class ValidationReport:
    """Every rule that the rows of a dataset break; `str(report)` sums it up in a few lines.

    Args:
        rows (`int`): The number of rows that were looked at.
        findings (`list[Finding]`): In the order of the rows; one for each row, path and rule.
    """

    rows: int
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        """The findings that make a row unfit for training."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]

    @property
    def broken_rows(self) -> list[int]:
        """The numbers of the rows with errors, ascending."""
        return sorted({finding.row for finding in self.errors})

    @property
    def ok(self) -> bool:
        """Whether no row has an error; warnings may be left."""
        return not self.errors

    def counts(self) -> Counter[Rule]:
        """Return how many rows break each rule, most first."""
        return _rows_by_rule(self.findings)

    def raise_if_broken(self) -> None:
        """Raise when rows have errors; warnings alone pass.

        Raises:
            DataFormatError: With the number of rows that break each rule, and the first findings with their fixes.
        """
        errors = self.errors
        if not errors:
            return
        counts = ", ".join(f"{count:,} {rule}" for rule, count in _rows_by_rule(errors).items())
        shown = "".join(
            f"\n  row {finding.row}{f', `{finding.path}`' if finding.path else ''}: {finding.found}. "
            f"To fix it: {finding.fix}"
            for finding in errors[:_SHOWN]
        )
        more = f"\n  ... and {len(errors) - _SHOWN:,} more" if len(errors) > _SHOWN else ""
        raise DataFormatError(
            f"{len(self.broken_rows):,} of {self.rows:,} rows are broken ({counts}):{shown}{more}",
            expected="rows that break no rule",
            fix="mend these rows or leave them out; `report.to_jsonl(path)` lists them all",
        )

    def to_jsonl(self, path: str | Path) -> None:
        """Write the findings to a JSON Lines file, one object each: row, path, rule, found, fix, severity.

        Args:
            path (`str` or `Path`): The file; it is overwritten, and its folder is made.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(asdict(finding), ensure_ascii=False) + "\n" for finding in self.findings)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(lines)

    def __str__(self) -> str:
        return "\n".join(
            [self.verdict(), *(f"  {rule}: {_rows(count)} ({rule.meaning})" for rule, count in self.counts().items())]
        )

    def verdict(self) -> str:
        """Return one sentence: how many rows are broken, and how many more have warnings."""
        if not self.rows:
            return "There are no rows."
        broken = set(self.broken_rows)
        warned = len({finding.row for finding in self.findings} - broken)
        if broken:
            more = f", {warned:,} more {'has' if warned == 1 else 'have'} warnings" if warned else ""
            return f"{len(broken):,} of {_rows(self.rows)} {'is' if len(broken) == 1 else 'are'} broken{more}."
        return f"All {self.rows:,} rows can be trained on" + (f", {warned:,} with warnings." if warned else ".")


def _rows(count: int) -> str:
    return f"{count:,} row" + ("" if count == 1 else "s")


def _rows_by_rule(findings: list[Finding]) -> Counter[Rule]:
    rows = dict.fromkeys((finding.rule, finding.row) for finding in findings)
    return Counter(dict(Counter(rule for rule, _ in rows).most_common()))
