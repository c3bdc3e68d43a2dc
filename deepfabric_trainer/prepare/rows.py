"""Encoding and checking one row, and the account of it that a dataset of examples carries along."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datasets import List, Value

from deepfabric_trainer.encode import Context, ConversationEncoder, EncodedExample, EncodedRow
from deepfabric_trainer.errors import DataFormatError, DeepFabricTrainerError, RowTooLongError, TemplateError
from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.validate import Finding, Rule, Severity
from deepfabric_trainer.validate.control_tokens import ControlTokens
from deepfabric_trainer.validate.conversation import check_row

EXAMPLE_FEATURES = {
    "input_ids": List(Value("int32")),
    "labels": List(Value("int32")),
    "regions": List(Value("int8")),
    "weights": List(Value("float32")),
}
"""What training needs. `weights` is empty in examples whose tokens all weigh 1."""
ACCOUNT_FEATURES = {
    "row": Value("int64"),
    "rejected": Value("bool"),
    "findings": List(Value("string")),
    "repairs": List(Value("string")),
    "contexts": List(Value("string")),
    "dropped_messages": Value("int32"),
    "shortened_results": Value("int32"),
    "unstopped_turns": Value("int32"),
    "lost_reasoning": Value("int32"),
    "dropped_reasoning": Value("bool"),
    "leaves_no_choice": Value("bool"),
}


@dataclass(frozen=True)
class PreparedRow:
    """What became of a row.

    Args:
        findings (`list[Finding]`): The rules that it breaks.
        encoded (`EncodedRow`, *optional*): Its examples; `None` when it is rejected.
    """

    findings: list[Finding]
    encoded: EncodedRow | None = None

    @property
    def examples(self) -> list[EncodedExample]:
        """Its examples, none when it is rejected."""
        return [] if self.encoded is None else self.encoded.examples


def prepare_row(
    number: int, row: Mapping[str, Any], encoder: ConversationEncoder, tokens: ControlTokens, *, check: bool
) -> PreparedRow:
    """Check a row against the rules and encode it.

    Args:
        number (`int`): The row's number in its dataset.
        row (`Mapping[str, Any]`): The row.
        encoder (`ConversationEncoder`): Encodes it.
        tokens (`ControlTokens`): What only the chat template may write.
        check (`bool`): Whether a row that breaks a rule is rejected; otherwise only one that cannot be encoded is.
    """
    try:
        conversation = normalize_row(row)
    except DataFormatError as error:
        return PreparedRow([_finding(number, error, Rule.FORMAT)])
    findings = [Finding(number, *broken) for broken in check_row(row, conversation, tokens)]
    if check and any(finding.severity is Severity.ERROR for finding in findings):
        return PreparedRow(findings)
    try:
        return PreparedRow(findings, encoder.encode_conversation(conversation, row.get("chat_template_kwargs")))
    except RowTooLongError as error:
        return PreparedRow([*findings, _finding(number, error, Rule.TOO_LONG)])
    except TemplateError as error:
        return PreparedRow([*findings, _finding(number, error, Rule.TEMPLATE)])
    except DataFormatError as error:
        return PreparedRow([*findings, _finding(number, error, Rule.NOTHING_TO_TRAIN)])


def columns_of(rows: Sequence[tuple[int, PreparedRow]]) -> dict[str, list[Any]]:
    """Return the columns of examples and accounts; a rejected row has one entry, with an example of no tokens."""
    columns: dict[str, list[Any]] = {name: [] for name in (*EXAMPLE_FEATURES, *ACCOUNT_FEATURES)}
    for number, prepared in rows:
        for entry in _entries(number, prepared):
            for name, value in entry.items():
                columns[name].append(value)
    return columns


def example_columns(examples: Sequence[EncodedExample]) -> dict[str, list[Any]]:
    """Return the columns of examples alone."""
    return {name: [getattr(example, name) or [] for example in examples] for name in EXAMPLE_FEATURES}


def read_finding(text: str) -> Finding:
    """Return a finding from its JSON text."""
    fields = json.loads(text)
    return Finding(**{**fields, "rule": Rule(fields["rule"]), "severity": Severity(fields["severity"])})


def _entries(number: int, prepared: PreparedRow) -> list[dict[str, Any]]:
    """Return an entry for each example; what concerns the row as a whole stands in the first."""
    entries = [
        {
            **{name: values[0] for name, values in example_columns([example]).items()},
            **_account(number),
            "contexts": [context.name for context in example.contexts if context is not Context.EXACT],
            "unstopped_turns": example.unstopped_turns,
            "lost_reasoning": example.lost_reasoning,
        }
        for example in prepared.examples
    ] or [{**{name: [] for name in EXAMPLE_FEATURES}, **_account(number), "rejected": True}]
    entries[0]["findings"] = [json.dumps(asdict(finding)) for finding in prepared.findings]
    if prepared.encoded is not None:
        entries[0].update(
            repairs=sorted(repair.name for repair in prepared.encoded.repairs),
            dropped_messages=prepared.encoded.dropped_messages,
            shortened_results=prepared.encoded.shortened_results,
            dropped_reasoning=prepared.encoded.dropped_reasoning,
            leaves_no_choice=prepared.encoded.leaves_no_choice,
        )
    return entries


def _account(number: int) -> dict[str, Any]:
    lists: dict[str, Any] = {"findings": [], "repairs": [], "contexts": []}
    counts = dict.fromkeys(("dropped_messages", "shortened_results", "unstopped_turns", "lost_reasoning"), 0)
    flags = dict.fromkeys(("rejected", "dropped_reasoning", "leaves_no_choice"), False)
    return {"row": number, **lists, **counts, **flags}


def _finding(number: int, error: DeepFabricTrainerError, rule: Rule) -> Finding:
    return Finding(number, error.path, rule, error.found, error.fix or f"give it {error.expected}")
