"""Checking and encoding one row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.encode import ConversationEncoder, EncodedRow
from deepfabric_trainer.encode.examples import PackedExample
from deepfabric_trainer.errors import DataFormatError, DeepFabricTrainerError, RowTooLongError, TemplateError
from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.schema.shared_tools import SharedTools
from deepfabric_trainer.validate import Finding, Rule, Severity
from deepfabric_trainer.validate.control_tokens import ControlTokens
from deepfabric_trainer.validate.conversation import RowChecker


@dataclass(frozen=True)
class PreparedRow:
    """What became of a row.

    Args:
        findings (`list[Finding]`): The rules that it breaks.
        encoded (`EncodedRow`, *optional*): Its examples; `None` when it is rejected.
    """

    findings: list[Finding]
    encoded: EncodedRow[PackedExample] | None = None

    @property
    def examples(self) -> list[PackedExample]:
        """Its examples, none when it is rejected."""
        return [] if self.encoded is None else self.encoded.examples


class RowPreparer:
    """Checks rows against the rules and encodes them; what it learns of tools it keeps for the rows to come.

    Args:
        encoder (`ConversationEncoder`): Encodes them.
        tokens (`ControlTokens`): What only the chat template may write.
        check (`bool`): Whether a row that breaks a rule is rejected; otherwise only one that cannot be encoded is.
    """

    def __init__(self, encoder: ConversationEncoder, tokens: ControlTokens, *, check: bool) -> None:
        self._encoder = encoder
        self._check = check
        self._tools = SharedTools()
        self._checker = RowChecker(tokens)

    def prepare(self, number: int, row: Mapping[str, Any]) -> PreparedRow:
        """Return what becomes of a row, whose tools nobody changes as long as there are more rows.

        Args:
            number (`int`): The row's number in its dataset.
            row (`Mapping[str, Any]`): The row.
        """
        try:
            return self._prepare(number, row)
        except Exception as error:
            error.add_note(f"while row {number} of the dataset was prepared")
            raise

    def _prepare(self, number: int, row: Mapping[str, Any]) -> PreparedRow:
        try:
            conversation = normalize_row(row, self._tools.read)
        except DataFormatError as error:
            return PreparedRow([_finding(number, error, Rule.FORMAT)])
        findings = [Finding(number, *broken) for broken in self._checker.check(row, conversation)]
        if self._check and any(finding.severity is Severity.ERROR for finding in findings):
            return PreparedRow(findings)
        try:
            encoded = self._encoder.encode_packed(conversation, row.get("chat_template_kwargs"))
            return PreparedRow(findings, encoded)
        except RowTooLongError as error:
            return PreparedRow([*findings, _finding(number, error, Rule.TOO_LONG)])
        except TemplateError as error:
            return PreparedRow([*findings, _finding(number, error, Rule.TEMPLATE)])
        except DataFormatError as error:
            return PreparedRow([*findings, _finding(number, error, Rule.NOTHING_TO_TRAIN)])


def _finding(number: int, error: DeepFabricTrainerError, rule: Rule) -> Finding:
    return Finding(number, error.path, rule, error.found, error.fix or f"give it {error.expected}")
