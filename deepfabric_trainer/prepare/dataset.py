"""Datasets of rows to datasets of encoded examples."""

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset

from deepfabric_trainer.arrow_files import is_damage
from deepfabric_trainer.encode import ConversationEncoder, EncodedExample, Truncation
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.prepare.accounts import Accounts, read_accounts
from deepfabric_trainer.prepare.cache import cache_file_for, fingerprint_of
from deepfabric_trainer.prepare.forked import inherited
from deepfabric_trainer.prepare.origin import with_mark
from deepfabric_trainer.prepare.pages import give_back_pages
from deepfabric_trainer.prepare.reading import RowReader
from deepfabric_trainer.prepare.report import (
    OnInvalid,
    PreparationReport,
    RejectedRow,
    describe_rejected,
    parse_on_invalid,
    settle,
    write_rejected,
)
from deepfabric_trainer.prepare.rows import PreparedRow, RowPreparer
from deepfabric_trainer.prepare.writing import ACCOUNT_FEATURES, EXAMPLE_FEATURES, example_columns, table_of
from deepfabric_trainer.validate import Rule
from deepfabric_trainer.validate.control_tokens import control_tokens_of

logger = logging.getLogger(__name__)

_BATCH = 256
"""Rows that are written at once: enough to compare their tools all together, few enough to be held in memory."""
_STREAM_BATCH = 16


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    encoder: ConversationEncoder,
    *,
    num_proc: int | None = None,
    on_invalid: str = "raise",
    rejected_path: str | Path | None = None,
    name: str = "train",
) -> Dataset | IterableDataset:
    """Check and encode every row of a dataset.

    Args:
        dataset (`Dataset` or `IterableDataset`): Rows of `messages`, `tools`, `reasoning`; other columns are left out.
        encoder (`ConversationEncoder`): Encodes them.
        num_proc (`int`, *optional*): Processes to spread the work over; not for an `IterableDataset`.
        on_invalid (`str`, *optional*, defaults to `"raise"`): An [`OnInvalid`].
        rejected_path (`str` or `Path`, *optional*): A JSON Lines file for the rows that are left out, with their
            findings; not for an `IterableDataset`, whose rows are named in the log.
        name (`str`, *optional*, defaults to `"train"`): What the log calls the dataset.

    Returns:
        `Dataset` or `IterableDataset`: `input_ids`, `labels` and `regions`, in the order of the rows; with `weights`
        where messages have a weight of their own.

    Raises:
        DataFormatError: If rows cannot be trained on and `on_invalid="raise"`, or when no row is left.
    """
    if isinstance(dataset, IterableDataset):
        return stream_dataset(dataset, encoder, on_invalid=on_invalid, name=name)
    prepared, report = encode_dataset(dataset, encoder, num_proc=num_proc, name=name)
    if rejected_path is not None and report.rejected:
        write_rejected(Path(rejected_path), dataset, report.rejected)
    settle(report, on_invalid, tolerated=tolerated_by(encoder))
    for sentence in report.sentences(name):
        logger.warning(sentence)
    return prepared


def encode_dataset(
    dataset: Dataset,
    encoder: ConversationEncoder,
    *,
    check: bool = True,
    num_proc: int | None = None,
    name: str = "train",
) -> tuple[Dataset, PreparationReport]:
    """Encode every row of a dataset, and account for each; rows that cannot be trained on give no example.

    Args:
        dataset (`Dataset`): Rows of `messages`, `tools`, `reasoning`.
        encoder (`ConversationEncoder`): Encodes them.
        check (`bool`, *optional*, defaults to `True`): Whether rows that break a rule are rejected; otherwise they are
            counted, and only rows that cannot be encoded are rejected.
        num_proc (`int`, *optional*): Processes to spread the work over.
        name (`str`, *optional*, defaults to `"train"`): What the progress bar calls the dataset.

    Returns:
        `tuple[Dataset, PreparationReport]`: The examples in the order of the rows, and the account.
    """
    fingerprint = fingerprint_of(dataset, encoder, check=check)
    encoding = _Encoding(encoder, dataset.features, check, [file["filename"] for file in dataset.cache_files])
    try:
        mapped, accounts = _entries(dataset, encoding, fingerprint, num_proc=num_proc, name=name)
    except Exception as error:
        if not is_damage(error):
            if "abruptly died" in str(error):
                error.add_note("mostly the system ends it when memory runs out: take fewer `dataset_num_proc`")
            raise
        path = cache_file_for(dataset, fingerprint) or dataset._get_cache_file_path(fingerprint)
        logger.warning("%s dataset: what is cached in %s is damaged (%s), and is made anew", name, path, error)
        mapped, accounts = _entries(dataset, encoding, fingerprint, num_proc=num_proc, name=name, anew=True)
    if accounts.kept is not None:
        mapped = mapped.select(accounts.kept)
    columns = [column for column in EXAMPLE_FEATURES if column != "weights" or accounts.have_weights]
    prepared = with_mark(mapped.select_columns(columns), encoder.processing_class, encoder.chat_template)
    return prepared, PreparationReport.from_accounts(accounts, len(dataset))


def _entries(
    dataset: Dataset, encoding: "_Encoding", fingerprint: str, *, num_proc: int | None, name: str, anew: bool = False
) -> tuple[Dataset, Accounts]:
    """Return the examples of all rows with those of rejected rows, which are empty, and the accounts of them.

    Raises:
        pyarrow.ArrowInvalid: If what is cached is not whole; other errors of reading it pass as they are.
    """
    # Other formats than Python's values are the user's own, and their rows are what he sees.
    is_plain = dataset.format["type"] is None
    with inherited(encoding, num_proc) as function:
        mapped = (dataset.with_format("arrow") if is_plain else dataset).map(
            function,
            batched=True,
            batch_size=_BATCH,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=Features({**EXAMPLE_FEATURES, **ACCOUNT_FEATURES}),
            num_proc=num_proc,
            load_from_cache_file=False if anew else None,
            new_fingerprint=fingerprint,
            cache_file_name=cache_file_for(dataset, fingerprint),
            desc=f"Encoding {name} dataset",
        )
    if is_plain:
        mapped = mapped.with_format(None)
    accounts = read_accounts(mapped.select_columns(list(ACCOUNT_FEATURES)))
    # A file that is cut off between two batches can be read without an error.
    if accounts.rows != len(dataset):
        raise pa.ArrowInvalid(f"{accounts.rows} of {len(dataset)} rows are there")
    return mapped, accounts


def stream_dataset(
    dataset: IterableDataset,
    encoder: ConversationEncoder,
    *,
    check: bool = True,
    on_invalid: str = "raise",
    tolerated: Iterable[Rule] = (),
    keep_columns: bool = False,
    name: str = "train",
) -> IterableDataset:
    """Encode the rows of a stream as they come; rows that break only tolerated rules are left out in any case.

    With `keep_columns` the columns of the rows stay beside those of their examples.

    Raises:
        DataFormatError: While the stream is read, at the first row that cannot be trained on, unless
            `on_invalid="drop"`: then it is said in the log.
    """
    drops = parse_on_invalid(on_invalid) is OnInvalid.DROP
    columns = dataset.column_names or list(next(iter(dataset)))
    left_out = set(Rule) if drops else {*tolerated, *tolerated_by(encoder)}
    kept = [column for column in columns if keep_columns and column not in EXAMPLE_FEATURES]
    return dataset.map(
        _StreamEncoding(_Encoding(encoder, None, check), left_out, kept, name),
        batched=True,
        batch_size=_STREAM_BATCH,
        with_indices=True,
        remove_columns=columns,
        features=_types_of(kept, dataset.features),
    )


def _types_of(kept: Collection[str], known: Features | None) -> Features | None:
    """Return the types of examples and of the columns that stay, which not every stream knows."""
    if known is None:
        return None if kept else Features(EXAMPLE_FEATURES)
    return Features({**{column: known[column] for column in kept}, **EXAMPLE_FEATURES})


def tolerated_by(encoder: ConversationEncoder) -> tuple[Rule, ...]:
    """Return the rules because of which rows are left out whatever the policy says."""
    return (Rule.TOO_LONG,) if encoder.truncation is Truncation.DROP else ()


class _Encoding:
    """Encodes batches of rows; each process has one, which remembers the tools that it has seen.

    Args:
        encoder (`ConversationEncoder`): Encodes them.
        features (`Features`, *optional*): Of the dataset, if its batches may be Arrow tables.
        check (`bool`): Whether rows that break a rule are rejected.
        files (`Collection[str]`, *optional*): The files that hold the rows, whose pages are not held in memory.
    """

    def __init__(
        self, encoder: ConversationEncoder, features: Features | None, check: bool, files: Collection[str] = ()
    ) -> None:
        self._reader = RowReader(features)
        self._preparer = RowPreparer(encoder, control_tokens_of(encoder.processing_class), check=check)
        self._files = {os.path.realpath(file) for file in files}

    def __call__(self, batch: Any, indices: list[int]) -> pa.Table:
        table = table_of(self.prepare(batch, indices))
        give_back_pages(self._files)
        return table

    def prepare(self, batch: Any, indices: list[int]) -> Iterator[tuple[int, PreparedRow]]:
        """Give what becomes of the rows of a batch, each with its number."""
        for number, row in zip(indices, self._reader.rows(batch), strict=True):
            yield number, self._preparer.prepare(number, row)


class _StreamEncoding:
    """Encodes the rows of a stream, and leaves out those that break tolerated rules only.

    Args:
        encoding (`_Encoding`): Encodes them.
        tolerated (`set[Rule]`): The rules because of which a row is left out with a word.
        kept (`Collection[str]`): The columns of the rows that stay.
        name (`str`): What the log calls the dataset.
    """

    def __init__(self, encoding: _Encoding, tolerated: set[Rule], kept: Collection[str], name: str) -> None:
        self._encoding = encoding
        self._tolerated = tolerated
        self._kept = kept
        self._name = name

    def __call__(self, batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        examples: list[EncodedExample] = []
        rows: list[int] = []
        for place, (number, prepared) in enumerate(self._encoding.prepare(batch, indices)):
            examples += [example.unpacked() for example in prepared.examples]
            rows += [place] * len(prepared.examples)
            if prepared.examples:
                continue
            rejected = RejectedRow(number, prepared.findings)
            words = describe_rejected([rejected], 1).partition("\n  ")[2]
            if not rejected.rules <= self._tolerated:
                raise DataFormatError(words, fix='mend the row, or leave it out with `on_invalid="drop"`')
            logger.warning("%s dataset: left out: %s", self._name, words)
        return {**{column: [batch[column][row] for row in rows] for column in self._kept}, **example_columns(examples)}
