"""`EncodedOnDemand`: rows that are encoded when a batch wants them."""

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features

from deepfabric_trainer.encode import ConversationEncoder, EncodedExample
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.prepare.dataset import tolerated_by
from deepfabric_trainer.prepare.reading import RowReader
from deepfabric_trainer.prepare.reject_log import RejectLog
from deepfabric_trainer.prepare.remarks import remarks
from deepfabric_trainer.prepare.report import OnInvalid, RejectedRow, parse_on_invalid
from deepfabric_trainer.prepare.rows import PreparedRow, RowPreparer
from deepfabric_trainer.prepare.writing import EXAMPLE_FEATURES
from deepfabric_trainer.validate import Finding, Rule, Severity
from deepfabric_trainer.validate.control_tokens import control_tokens_of

logger = logging.getLogger(__name__)

Example = dict[str, list[Any]]


class EncodedOnDemand(torch.utils.data.Dataset[Example]):
    """A dataset of conversations whose rows are checked and encoded in the moment in which they are asked for.

    Nothing is done for a row before: training starts at once, whatever the size, and a data loader's workers encode
    the next batches while the model computes. Each pass encodes anew. The examples are those of
    [`prepare_dataset`], and so are the rules. What had to be repaired or dropped is said once a kind and worker, with
    the first row that shows it; counted it is not.

    Args:
        dataset (`Dataset`): Rows of `messages`, `tools`, `reasoning`; other columns are left out.
        encoder (`ConversationEncoder`): Encodes them.
        check (`bool`, *optional*, defaults to `True`): Whether rows that break a rule are rejected; otherwise only
            those that cannot be encoded are.
        on_invalid (`str`, *optional*, defaults to `"raise"`): An [`OnInvalid`]: whether a row that cannot be trained
            on stops the run when its turn comes, or is left out, with a line in the log.
        tolerated (`Iterable[Rule]`, *optional*): Rules because of which rows are left out in any case, besides those
            that the encoder's settings say.
        rejected_path (`str` or `Path`, *optional*): A JSON Lines file for the rows that are left out, with their
            findings. The processes of a run share it.
        starts_run (`bool`, *optional*, defaults to `True`): Whether this process begins that file, keeping what an
            earlier run wrote under another name: in a run of several, the first process and no other.
        name (`str`, *optional*, defaults to `"train"`): What the log calls the dataset.

    Raises:
        ConfigError: If `on_invalid` is not a policy.
    """

    def __init__(
        self,
        dataset: Dataset,
        encoder: ConversationEncoder,
        *,
        check: bool = True,
        on_invalid: str = "raise",
        tolerated: Iterable[Rule] = (),
        rejected_path: str | Path | None = None,
        starts_run: bool = True,
        name: str = "train",
    ) -> None:
        drops = parse_on_invalid(on_invalid) is OnInvalid.DROP
        # Other formats than Python's values are the user's own, and their rows are what he sees.
        is_plain = dataset.format["type"] is None
        self._features = dataset.features if is_plain else None
        self._dataset = dataset
        self._read = dataset.with_format("arrow", columns=dataset.format["columns"]) if is_plain else dataset
        self._encoder = encoder
        self._check = check
        self._left_out = set(Rule) if drops else {*tolerated, *tolerated_by(encoder)}
        self._name = name
        self._log = RejectLog(None if rejected_path is None else Path(rejected_path))
        if starts_run:
            self._log.start()
        self._look: Callable[[Example], Any] | None = None
        self._own: tuple[RowReader, RowPreparer] | None = None
        self._said: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # What is remembered of tools is worth less than the way to another process.
        return {**self.__dict__, "_own": None}

    @property
    def column_names(self) -> list[str]:
        """The columns of an example; `weights` only where messages have a weight of their own."""
        return list(EXAMPLE_FEATURES)

    @property
    def features(self) -> Features:
        """The types of the columns."""
        return Features(EXAMPLE_FEATURES)

    def looked_at_by(self, look: Callable[[Example], Any]) -> "EncodedOnDemand":
        """Return the same dataset, of which each example is shown to a function, which may raise.

        Args:
            look (`Callable`): Picklable, if the data loader starts its workers anew. What it returns is not used.
        """
        looked_at = copy.copy(self)
        looked_at._look = look
        return looked_at

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        """Return the example of a row: the first, if the template rewrites history so that the row gives several.

        Raises:
            IndexError: If there is no such row.
            DataFormatError: If the row cannot be trained on, whatever the policy: there is nothing to return.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no row {index}: the dataset has {len(self)}")
        number = index % len(self)
        (prepared,) = self._prepare([number])
        if not prepared.examples:
            raise self._refusal(number, prepared)
        return self._shown(prepared.examples[0].unpacked())

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Return all the examples of rows, in order: those of a row one after the other.

        Rows that cannot be trained on give none. When that leaves nothing, the next row that can be trained on takes
        the place of the batch, so that there is one.

        Args:
            indices (`Sequence[int]`): The numbers of the rows.

        Raises:
            DataFormatError: At a row that cannot be trained on, unless it may be left out; when no row is left.
        """
        examples = self._examples(list(indices))
        if examples or not len(indices):
            return examples
        for step in range(1, len(self)):
            number = (indices[-1] + step) % len(self)
            examples = self._examples([number])
            if examples:
                rows = ", ".join(map(str, indices))
                logger.warning(
                    "%s dataset: no row of a batch (%s) can be trained on; row %d takes its place",
                    self._name,
                    rows,
                    number,
                )
                return examples
        raise DataFormatError(
            f"{self._name} dataset: none of the {len(self)} rows can be trained on",
            expected="at least one row that can be trained on",
            fix="mend these rows (`deepfabric-trainer check` lists them all)",
        )

    def _examples(self, numbers: list[int]) -> list[Example]:
        examples: list[Example] = []
        for number, prepared in zip(numbers, self._prepare(numbers), strict=True):
            if not prepared.examples:
                self._leave_out(number, prepared)
            for remark in remarks(prepared):
                self._say_once(number, remark)
            examples += [self._shown(example.unpacked()) for example in prepared.examples]
        return examples

    def _prepare(self, numbers: list[int]) -> list[PreparedRow]:
        if self._own is None:
            preparer = RowPreparer(self._encoder, control_tokens_of(self._encoder.processing_class), check=self._check)
            self._own = RowReader(self._features), preparer
        reader, preparer = self._own
        rows = reader.rows(self._read[numbers])
        return [preparer.prepare(number, row) for number, row in zip(numbers, rows, strict=True)]

    def _leave_out(self, number: int, prepared: PreparedRow) -> None:
        rejected = RejectedRow(number, prepared.findings)
        if not rejected.rules <= self._left_out:
            raise self._refusal(number, prepared)
        if self._log.add(rejected, self._dataset[number]):
            first = _first_error(prepared.findings)
            where = f"row {number}" + (f", `{first.path}`" if first.path else "")
            words = f"{where}: {first.found.rstrip('.')}. To fix it: {first.fix.rstrip('.')}."
            logger.warning("%s dataset: left out: %s", self._name, words)

    def _shown(self, example: EncodedExample) -> Example:
        names = [name for name in EXAMPLE_FEATURES if name != "weights" or example.weights]
        columns = {name: getattr(example, name) for name in names}
        if self._look is not None:
            self._look(columns)
        return columns

    def _say_once(self, number: int, remark: str) -> None:
        if remark not in self._said:
            self._said.add(remark)
            logger.warning("%s dataset: row %d, and perhaps more: %s", self._name, number, remark)

    def _refusal(self, number: int, prepared: PreparedRow) -> DataFormatError:
        first = _first_error(prepared.findings)
        return DataFormatError(
            first.found,
            fix=f'{first.fix.rstrip(".")}, or leave such rows out with `on_invalid="drop"`',
            where=f"{self._name} dataset, row {number}",
            path=first.path,
        )


def _first_error(findings: Iterable[Finding]) -> Finding:
    return next(finding for finding in findings if finding.severity is Severity.ERROR)
