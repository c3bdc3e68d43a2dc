from collections import Counter
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """The row cannot be trained on, or would teach something wrong."""
    WARNING = "warning"
    """The row can be trained on; somebody should look at it."""


class Rule(StrEnum):
    """The rules. Their values are stable: other people's scripts filter by them."""

    FORMAT = "format"
    """The row cannot be read as a conversation."""
    NO_ASSISTANT = "no-assistant"
    """No assistant turn: there is nothing to train."""
    EMPTY_TURN = "empty-turn"
    """An assistant turn without content and calls."""
    ROLE_ORDER = "role-order"
    """A message whose role cannot follow the one before."""
    UNDECLARED_TOOL = "undeclared-tool"
    """A call of a tool that the row does not list."""
    INVALID_ARGUMENTS = "invalid-arguments"
    """Arguments that the called tool's schema forbids."""
    INVALID_SCHEMA = "invalid-schema"
    """A tool whose parameters are no valid JSON Schema."""
    DUPLICATE_TOOL = "duplicate-tool"
    """Two tools of one name."""
    DUPLICATE_CALL_ID = "duplicate-call-id"
    """Two calls of one id."""
    ORPHAN_RESULT = "orphan-result"
    """A tool result that answers no call."""
    MISSING_RESULT = "missing-result"
    """A call that the conversation goes on without a result of."""
    CONTROL_TOKEN = "control-token"
    """A special token of the tokenizer inside the text of a user, a system or a tool message."""
    TEMPLATE = "template"
    """The chat template drops or refuses something of the row."""


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
    """Every rule that the rows of a dataset break.

    Args:
        rows (`int`): The number of rows that were looked at.
        findings (`list[Finding]`): In the order of the rows.
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
        rows = {(finding.rule, finding.row) for finding in self.findings}
        return Counter(dict(Counter(rule for rule, _ in rows).most_common()))
