"""Going over the rows of a dataset with the rules."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.errors import DataFormatError, TemplateError
from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.validate.report import Finding, Rule, ValidationReport
from deepfabric_trainer.validate.rules import Broken, check_control_tokens, check_conversation


def validate_dataset(dataset: Iterable[Mapping[str, Any]], processing_class: Any = None) -> ValidationReport:
    """Check every row of a dataset against the rules, without stopping at the first that is broken.

    Args:
        dataset (`Dataset` or an iterable of rows): Rows of `messages` and `tools`.
        processing_class (`PreTrainedTokenizerBase`, *optional*): Also encode every row with this tokenizer's chat
            template, which shows what the template drops.

    Returns:
        `ValidationReport`: One finding for each row, place and rule.

    Raises:
        ConfigError: If the processing class has no chat template.
    """
    encoder = ConversationEncoder(processing_class) if processing_class is not None else None
    findings: list[Finding] = []
    number = -1
    for number, row in enumerate(dataset):
        findings.extend(Finding(number, *broken) for broken in _check_row(row, encoder))
    return ValidationReport(rows=number + 1, findings=findings)


def _check_row(row: Mapping[str, Any], encoder: ConversationEncoder | None) -> Iterator[Broken]:
    try:
        conversation = normalize_row(row)
    except DataFormatError as error:
        yield Broken(error.path, Rule.FORMAT, error.found, error.fix or f"give it {error.expected}")
        return
    yield from check_conversation(conversation)
    if encoder is None:
        return
    yield from check_control_tokens(conversation.messages, encoder.tokenizer.all_special_tokens)
    try:
        encoder.encode(row)
    except TemplateError as error:
        yield Broken(error.path, Rule.TEMPLATE, error.found, error.fix)
    except DataFormatError:
        return  # nothing to train: the rules above have said so
