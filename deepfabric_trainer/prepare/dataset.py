"""Datasets of rows to datasets of encoded examples."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset

from deepfabric_trainer.encode import ConversationEncoder, Truncation
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.prepare.report import (
    OnInvalid,
    PreparationReport,
    RejectedRow,
    describe_rejected,
    parse_on_invalid,
    settle,
    write_rejected,
)
from deepfabric_trainer.prepare.rows import (
    ACCOUNT_FEATURES,
    EXAMPLE_FEATURES,
    columns_of,
    example_columns,
    prepare_row,
)
from deepfabric_trainer.validate import Rule
from deepfabric_trainer.validate.control_tokens import ControlTokens, control_tokens_of

logger = logging.getLogger(__name__)


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
    mapped = dataset.map(
        _encode_rows,
        batched=True,
        batch_size=64,
        with_indices=True,
        fn_kwargs={"encoder": encoder, "tokens": control_tokens_of(encoder.processing_class), "check": check},
        remove_columns=dataset.column_names,
        features=Features({**EXAMPLE_FEATURES, **ACCOUNT_FEATURES}),
        num_proc=num_proc,
        desc=f"Encoding {name} dataset",
    )
    account = mapped.select_columns(list(ACCOUNT_FEATURES)).to_list()
    report = PreparationReport.from_account(account, len(dataset))
    if report.rejected:
        mapped = mapped.select([number for number, entry in enumerate(account) if not entry["rejected"]])
    columns = list(EXAMPLE_FEATURES)
    if not any(mapped["weights"]):
        columns.remove("weights")
    return mapped.select_columns(columns), report


def stream_dataset(
    dataset: IterableDataset,
    encoder: ConversationEncoder,
    *,
    check: bool = True,
    on_invalid: str = "raise",
    tolerated: Iterable[Rule] = (),
    name: str = "train",
) -> IterableDataset:
    """Encode the rows of a stream as they come; rows that break only tolerated rules are left out in any case.

    Raises:
        DataFormatError: While the stream is read, at the first row that cannot be trained on, unless
            `on_invalid="drop"`: then it is said in the log.
    """
    drops = parse_on_invalid(on_invalid) is OnInvalid.DROP
    columns = dataset.column_names or list(next(iter(dataset)))
    return dataset.map(
        _encode_stream,
        batched=True,
        batch_size=16,
        with_indices=True,
        remove_columns=columns,
        features=Features(EXAMPLE_FEATURES),
        fn_kwargs={
            "encoder": encoder,
            "tokens": control_tokens_of(encoder.processing_class),
            "check": check,
            "tolerated": set(Rule) if drops else {*tolerated, *tolerated_by(encoder)},
            "name": name,
        },
    )


def tolerated_by(encoder: ConversationEncoder) -> tuple[Rule, ...]:
    """Return the rules because of which rows are left out whatever the policy says."""
    return (Rule.TOO_LONG,) if encoder.truncation is Truncation.DROP else ()


def _encode_rows(
    batch: Mapping[str, list[Any]],
    indices: list[int],
    encoder: ConversationEncoder,
    tokens: ControlTokens,
    check: bool,
) -> dict[str, list[Any]]:
    numbered = zip(indices, _rows(batch), strict=True)
    return columns_of([(number, prepare_row(number, row, encoder, tokens, check=check)) for number, row in numbered])


def _encode_stream(
    batch: Mapping[str, list[Any]],
    indices: list[int],
    encoder: ConversationEncoder,
    tokens: ControlTokens,
    check: bool,
    tolerated: set[Rule],
    name: str,
) -> dict[str, list[Any]]:
    examples = []
    for number, row in zip(indices, _rows(batch), strict=True):
        prepared = prepare_row(number, row, encoder, tokens, check=check)
        examples += prepared.examples
        if prepared.examples:
            continue
        rejected = RejectedRow(number, prepared.findings)
        words = describe_rejected([rejected], 1).partition("\n  ")[2]
        if not rejected.rules <= tolerated:
            raise DataFormatError(words, fix='mend the row, or leave it out with `on_invalid="drop"`')
        logger.warning("%s dataset: left out: %s", name, words)
    return example_columns(examples)


def _rows(batch: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    names = list(batch)
    for values in zip(*(batch[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))
