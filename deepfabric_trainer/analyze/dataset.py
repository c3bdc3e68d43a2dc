"""Going once over the rows of a dataset and counting what is in them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from deepfabric_trainer.analyze.conversations import ConversationCounts
from deepfabric_trainer.analyze.duplicates import Duplicates
from deepfabric_trainer.analyze.report import DatasetReport
from deepfabric_trainer.errors import DataFormatError, TemplateError
from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.schema.shared_tools import SharedTools
from deepfabric_trainer.validate import Rule, Severity
from deepfabric_trainer.validate.control_tokens import ControlTokens, control_tokens_of
from deepfabric_trainer.validate.conversation import RowChecker
from deepfabric_trainer.validate.dataset import require_rows

if TYPE_CHECKING:
    from deepfabric_trainer.analyze.tokens import TokenCounts


def analyze_dataset(dataset: Iterable[Mapping[str, Any]], processing_class: Any = None) -> DatasetReport:
    """Count what is in a dataset: turns, tools, catalogues, duplicates, broken rows and, with a tokenizer, tokens.

    The rows are read once, one at a time, and are not changed. Of each row a few numbers are kept, so a stream of any
    length will do.

    Args:
        dataset (`Dataset`, `IterableDataset` or an iterable of rows): Rows of `messages` and `tools`.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`, *optional*): Also encode every row that breaks
            no rule as it would be trained, every assistant turn, and count its tokens.

    Returns:
        `DatasetReport`: `print(report)` sums it up.

    Raises:
        ConfigError: If the dataset is several datasets or the name of one, or the processing class has no chat
            template.
        DataFormatError: If the dataset has no rows, as `None`.

    Example:
    ```python
    >>> from deepfabric_trainer import analyze_dataset
    >>> rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}]
    >>> print(analyze_dataset(rows * 2))
    2 rows, 4 messages (2 user, 2 assistant)
    turns       2 by the assistant: 0 make a call, 2 make none
    duplicates  1 row is a copy of an earlier one
    <BLANKLINE>
    What to look at
    - 1 row is a copy of an earlier one, such as row 1 of row 0. Leave copies out: they weigh double, and a split \
by chance puts them on both sides.
    - No turn calls a tool. If the model is to call tools, add rows in which it does.

    ```
    """
    require_rows(dataset)
    counts = _RowCounts(processing_class)
    for number, row in enumerate(dataset):
        counts.add(number, row)
    return counts.report()


class _RowCounts:
    """What was counted so far."""

    def __init__(self, processing_class: Any) -> None:
        self._rows = 0
        self._rows_by_rule: Counter[Rule] = Counter()
        self._broken: list[int] = []
        self._conversations = ConversationCounts()
        self._duplicates = Duplicates()
        self._tokens = None if processing_class is None else _token_counts(processing_class)
        tokens = ControlTokens() if processing_class is None else control_tokens_of(processing_class)
        self._checker = RowChecker(tokens)
        self._tools = SharedTools()

    def add(self, number: int, row: Any) -> None:
        """Count a row."""
        self._rows += 1
        try:
            conversation = normalize_row(row, self._tools.read)
        except DataFormatError:
            self._reject(number, {Rule.FORMAT})
            return
        self._conversations.add(number, conversation)
        self._duplicates.add(number, conversation)
        broken = self._checker.check(row, conversation)
        errors = {one.rule for one in broken if one.severity is Severity.ERROR}
        if not errors and self._tokens is not None:
            try:
                self._tokens.add(number, conversation, row.get("chat_template_kwargs"))
            except TemplateError:
                errors = {Rule.TEMPLATE}
            except DataFormatError:
                errors = {Rule.NOTHING_TO_TRAIN}
        if errors:
            self._reject(number, errors)

    def _reject(self, number: int, rules: set[Rule]) -> None:
        self._rows_by_rule.update(rules)
        self._broken.append(number)

    def report(self) -> DatasetReport:
        """Return what was counted."""
        counted = self._conversations
        return DatasetReport(
            rows=self._rows,
            messages=dict(counted.messages.most_common()),
            turns_with_call=counted.turns_with_call,
            turns_without_call=counted.turns_without_call,
            calls_by_tool=dict(counted.calls.most_common()),
            rows_by_tool=dict(counted.declared.most_common()),
            catalogues=counted.catalogues(),
            rejected_by_rule={str(rule): count for rule, count in self._rows_by_rule.most_common()},
            rejected_rows=tuple(self._broken),
            duplicate_rows=self._duplicates.rows(),
            repeated_prompts=self._duplicates.prompts(),
            conflicting_prompts=self._duplicates.conflicts(),
            tokens=None if self._tokens is None else self._tokens.report(),
        )


def _token_counts(processing_class: Any) -> "TokenCounts":
    from deepfabric_trainer.analyze.tokens import TokenCounts  # imports torch; rows alone need none of it

    return TokenCounts(processing_class)
