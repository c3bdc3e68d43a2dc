"""Going over the rows of a dataset with the rules."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deepfabric_trainer.errors import ConfigError, DataFormatError, TemplateError
from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.validate.broken import Broken
from deepfabric_trainer.validate.control_tokens import ControlTokens, control_tokens_of
from deepfabric_trainer.validate.conversation import check_row
from deepfabric_trainer.validate.report import Finding, Rule, Severity, ValidationReport

if TYPE_CHECKING:
    from deepfabric_trainer.encode import ConversationEncoder


def validate_dataset(dataset: Iterable[Mapping[str, Any]], processing_class: Any = None) -> ValidationReport:
    """Check every row of a dataset against the rules, without stopping at the first that is broken.

    Args:
        dataset (`Dataset`, `IterableDataset` or an iterable of rows): Rows of `messages` and `tools`. They are
            normalized first, as they are for the training: what that repairs (arguments as text, padding by Arrow) is
            no finding.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`, *optional*): Also encode every row with this
            tokenizer's chat template, which shows what the template drops, and look for this tokenizer's control
            tokens in the text. Without it the control tokens of the common model families are looked for.

    Returns:
        `ValidationReport`: One finding for each row, path and rule, in the order of the rows.

    Raises:
        ConfigError: If the dataset is several datasets or the name of one, or the processing class has no chat
            template.
        DataFormatError: If the dataset has no rows, as `None`.

    Example:
    ```python
    >>> from deepfabric_trainer import validate_dataset
    >>> report = validate_dataset([{"messages": [{"role": "user", "content": "Hi"}]}])
    >>> print(report)
    1 of 1 row is broken.
      no-assistant: 1 row (no assistant turn: there is nothing to train)

    ```
    """
    require_rows(dataset)
    encoder, tokens = None, ControlTokens()
    if processing_class is not None:
        from deepfabric_trainer.encode import ConversationEncoder  # imports torch; rows alone need none of it

        encoder, tokens = ConversationEncoder(processing_class), control_tokens_of(processing_class)
    findings: list[Finding] = []
    number = -1
    for number, row in enumerate(dataset):
        findings.extend(Finding(number, *broken) for broken in _check_row(row, tokens, encoder))
    return ValidationReport(rows=number + 1, findings=findings)


def require_rows(dataset: Any) -> None:
    """Require the rows of one dataset.

    Raises:
        ConfigError: If it is several datasets or the name of one.
        DataFormatError: If it has no rows at all, as `None` has none.
    """
    if not hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__"):
        raise DataFormatError(
            f"the dataset is of type {type(dataset).__name__}",
            expected="rows: a `Dataset`, a list or an iterable of them",
            fix="pass the rows, such as those of `load_dataset(..., split='train')`",
        )
    if isinstance(dataset, Mapping | str):
        kind = f"splits ({', '.join(map(str, dataset))})" if isinstance(dataset, Mapping) else "a text"
        raise ConfigError(
            f"the dataset is {kind}", expected="rows", fix='pass one split, such as `dataset["train"]`, or load it'
        )


def _check_row(row: Any, tokens: ControlTokens, encoder: "ConversationEncoder | None") -> Iterator[Broken]:
    if not isinstance(row, Mapping):
        yield Broken(
            "", Rule.FORMAT, f"the row is of type {type(row).__name__}", "make it an object with a list of `messages`"
        )
        return
    try:
        conversation = normalize_row(row)
    except DataFormatError as error:
        yield _unreadable(error)
        return
    broken = check_row(row, conversation, tokens)
    yield from broken
    if encoder is None:
        return
    try:
        encoder.encode(row)
    except TemplateError as error:
        yield Broken(error.path, Rule.TEMPLATE, error.found, error.fix or f"give it {error.expected}")
    except DataFormatError as error:
        if not any(one.severity is Severity.ERROR for one in broken):  # else the rules have said why
            yield _unreadable(error, Rule.NOTHING_TO_TRAIN)


def _unreadable(error: DataFormatError, rule: Rule = Rule.FORMAT) -> Broken:
    fix = error.fix or f"give it {error.expected}"
    return Broken(_printable(error.path), rule, _printable(error.found), _printable(fix))


def _printable(text: str) -> str:
    """Return a text without halves of characters, which cannot be printed or written: data may hold such."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
