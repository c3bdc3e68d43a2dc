"""Datasets of rows to datasets of encoded examples, with an account of every row."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value

from deepfabric_trainer import errors
from deepfabric_trainer.encode import ConversationEncoder, EncodedRow
from deepfabric_trainer.errors import ConfigError, DataFormatError, DeepFabricTrainerError
from deepfabric_trainer.schema import Repair

logger = logging.getLogger(__name__)

_EXAMPLE_FEATURES = {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "regions": List(Value("int8"))}
_ACCOUNT_FEATURES = {
    "row": Value("int64"),
    "error": Value("string"),
    "repairs": List(Value("string")),
    "dropped_messages": Value("int32"),
    "inexact_turns": Value("int32"),
    "lost_reasoning": Value("int32"),
    "dropped_reasoning": Value("bool"),
}
_SHOWN = 5


class OnInvalid(StrEnum):
    """What happens when rows cannot be trained on."""

    RAISE = "raise"
    """Nothing is trained: one error counts the rows by cause and shows the first."""
    DROP = "drop"
    """The rows are left out, counted in the log, and written to `rejected.jsonl`."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be trained on.

    Args:
        row (`int`): Its number in the dataset, counted from 0.
        error (`DeepFabricTrainerError`): Why.
    """

    row: int
    error: DeepFabricTrainerError


@dataclass(frozen=True)
class PreparationReport:
    """What became of the rows of a dataset.

    Args:
        rows (`int`): The rows that went in.
        examples (`int`): The examples that came out; more than rows where a template rewrites history.
        rejected (`list[RejectedRow]`): The rows that gave none.
        repairs (`Counter[Repair]`): How many rows needed each repair.
        shortened_rows (`int`): The rows that lost their oldest exchanges to `max_length`.
        dropped_messages (`int`): The messages in those exchanges.
        inexact_turns (`int`): Trained turns that do not stand right after the prompt that inference shows.
        lost_reasoning (`int`): Assistant messages whose reasoning the template leaves out of a row that is trained
            whole.
        dropped_reasoning (`int`): Rows whose `reasoning` column found no place.
    """

    rows: int
    examples: int
    rejected: list[RejectedRow] = field(default_factory=list)
    repairs: Counter[Repair] = field(default_factory=Counter)
    shortened_rows: int = 0
    dropped_messages: int = 0
    inexact_turns: int = 0
    lost_reasoning: int = 0
    dropped_reasoning: int = 0

    def sentences(self, name: str) -> list[str]:
        """Return what a user must know of it, a sentence a cause; empty when every row went in as it is."""
        lines = [f"{name} dataset: {count} of {self.rows} rows: {repair}" for repair, count in self.repairs.items()]
        if self.shortened_rows:
            lines.append(
                f"{name} dataset: {self.shortened_rows} of {self.rows} rows are longer than `max_length`; their "
                f"oldest exchanges were dropped, {self.dropped_messages} messages in all"
            )
        if self.inexact_turns:
            lines.append(
                f"{name} dataset: {self.inexact_turns} trained turns do not stand right after the prompt that "
                "inference shows, because the chat template or the tokenizer joins them differently"
            )
        if self.lost_reasoning:
            lines.append(
                f"{name} dataset: the chat template leaves out the reasoning of {self.lost_reasoning} assistant "
                "messages, as it does with all but the last; `DeepFabricSFTConfig` trains each in its own context"
            )
        if self.dropped_reasoning:
            lines.append(
                f"{name} dataset: {self.dropped_reasoning} of {self.rows} rows: the `reasoning` column is not "
                'trained: the chat template has no place for it (`reasoning="inline"` makes one), or the messages '
                "have reasoning of their own"
            )
        if self.rejected:
            lines.append(f"{name} dataset: {describe_rejected(self.rejected, self.rows)}")
        return lines


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    encoder: ConversationEncoder,
    *,
    num_proc: int | None = None,
    on_invalid: str = "raise",
    name: str = "train",
) -> Dataset | IterableDataset:
    """Encode every row of a dataset.

    Args:
        dataset (`Dataset` or `IterableDataset`): Rows of `messages`, `tools`, `reasoning`; other columns are left out.
        encoder (`ConversationEncoder`): Encodes them.
        num_proc (`int`, *optional*): Processes to spread the work over; not for an `IterableDataset`.
        on_invalid (`str`, *optional*, defaults to `"raise"`): An [`OnInvalid`].
        name (`str`, *optional*, defaults to `"train"`): What the log calls the dataset.

    Returns:
        `Dataset` or `IterableDataset`: `input_ids`, `labels` and `regions`, in the order of the rows.

    Raises:
        DataFormatError: If rows cannot be trained on and `on_invalid="raise"`, or when no row is left.
    """
    if isinstance(dataset, IterableDataset):
        return stream_dataset(dataset, encoder, on_invalid=on_invalid, name=name)
    prepared, report = encode_dataset(dataset, encoder, num_proc=num_proc, name=name)
    settle(report, on_invalid)
    for sentence in report.sentences(name):
        logger.warning(sentence)
    return prepared


def encode_dataset(
    dataset: Dataset, encoder: ConversationEncoder, *, num_proc: int | None = None, name: str = "train"
) -> tuple[Dataset, PreparationReport]:
    """Encode every row of a dataset, and account for each; rows that cannot be trained on give no example.

    Args:
        dataset (`Dataset`): Rows of `messages`, `tools`, `reasoning`.
        encoder (`ConversationEncoder`): Encodes them.
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
        fn_kwargs={"encoder": encoder},
        remove_columns=dataset.column_names,
        features=Features({**_EXAMPLE_FEATURES, **_ACCOUNT_FEATURES}),
        num_proc=num_proc,
        desc=f"Encoding {name} dataset",
    )
    account = mapped.select_columns(list(_ACCOUNT_FEATURES)).to_list()
    report = _report(account, len(dataset))
    if report.rejected:
        mapped = mapped.select([number for number, entry in enumerate(account) if not entry["error"]])
    return mapped.select_columns(list(_EXAMPLE_FEATURES)), report


def stream_dataset(
    dataset: IterableDataset,
    encoder: ConversationEncoder,
    *,
    on_invalid: str = "raise",
    tolerated: tuple[type[DeepFabricTrainerError], ...] = (),
    name: str = "train",
) -> IterableDataset:
    """Encode the rows of a stream as they come; rows with a tolerated error are left out in any case.

    Raises:
        DataFormatError: While the stream is read, at the first row that cannot be trained on, unless
            `on_invalid="drop"`: then it is said in the log.
    """
    columns = dataset.column_names or list(next(iter(dataset)))
    return dataset.map(
        _encode_stream,
        batched=True,
        batch_size=16,
        with_indices=True,
        remove_columns=columns,
        features=Features(_EXAMPLE_FEATURES),
        fn_kwargs={
            "encoder": encoder,
            "tolerated": (DeepFabricTrainerError,) if parse_on_invalid(on_invalid) is OnInvalid.DROP else tolerated,
            "name": name,
        },
    )


def settle(
    report: PreparationReport, on_invalid: str, *, tolerated: tuple[type[DeepFabricTrainerError], ...] = ()
) -> None:
    """Raise when the rejected rows are more than the policy allows.

    Args:
        report (`PreparationReport`): What became of the rows.
        on_invalid (`str`): An [`OnInvalid`].
        tolerated (`tuple[type[DeepFabricTrainerError], ...]`, *optional*): Errors for which rows are dropped anyway.

    Raises:
        DataFormatError: If there are any and the policy is to raise, or when no row is left.
    """
    if not report.rejected:
        return
    drops = parse_on_invalid(on_invalid) is OnInvalid.DROP or all(
        isinstance(entry.error, tolerated) for entry in report.rejected
    )
    if not drops or not report.examples:
        raise DataFormatError(
            describe_rejected(report.rejected, report.rows),
            expected="rows that can be trained on" if report.examples else "at least one row that can be trained on",
            fix="mend these rows (`deepfabric-trainer check` lists them all)"
            + (', or leave them out with `on_invalid="drop"` in `DeepFabricSFTConfig`' if report.examples else ""),
        )


def describe_rejected(rejected: list[RejectedRow], rows: int) -> str:
    """Say how many rows were rejected, for which causes, and show the first few."""
    kinds = Counter(type(entry.error).__name__ for entry in rejected)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    shown = "".join(f"\n  {entry.error.at(f'row {entry.row}')}" for entry in rejected[:_SHOWN])
    more = f"\n  ... and {len(rejected) - _SHOWN} more" if len(rejected) > _SHOWN else ""
    return f"{len(rejected)} of {rows} rows cannot be trained on ({counts}):{shown}{more}"


def write_rejected(path: Path, dataset: Dataset, rejected: list[RejectedRow]) -> None:
    """Write rejected rows to a JSON Lines file: the row's number, why, and the row itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for entry in rejected:
            finding = {
                "row": entry.row,
                "error": type(entry.error).__name__,
                "path": entry.error.path,
                "found": entry.error.found,
                "fix": entry.error.fix,
                "data": dataset[entry.row],
            }
            file.write(json.dumps(finding, ensure_ascii=False, default=str) + "\n")


def parse_on_invalid(value: str) -> OnInvalid:
    """Return the policy of this name.

    Raises:
        ConfigError: If there is none.
    """
    try:
        return OnInvalid(value)
    except ValueError:
        raise ConfigError(f"on_invalid is {value!r}", expected="'raise' or 'drop'") from None


def _encode_rows(
    batch: Mapping[str, list[Any]], indices: list[int], encoder: ConversationEncoder
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in (*_EXAMPLE_FEATURES, *_ACCOUNT_FEATURES)}
    for index, row in zip(indices, _rows(batch), strict=True):
        try:
            entries = _entries(encoder.encode_row(row))
        except DeepFabricTrainerError as error:
            entries = [_entry(error=_pack(error))]
        for entry in entries:
            for name, value in {**entry, "row": index}.items():
                columns[name].append(value)
    return columns


def _encode_stream(
    batch: Mapping[str, list[Any]],
    indices: list[int],
    encoder: ConversationEncoder,
    tolerated: tuple[type[DeepFabricTrainerError], ...],
    name: str,
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {key: [] for key in _EXAMPLE_FEATURES}
    for index, row in zip(indices, _rows(batch), strict=True):
        try:
            examples = encoder.encode(row)
        except DeepFabricTrainerError as error:
            if not isinstance(error, tolerated):
                raise error.at(f"row {index}") from error
            logger.warning("%s dataset: left out: %s", name, error.at(f"row {index}"))
            continue
        for example in examples:
            for key in columns:
                columns[key].append(getattr(example, key))
    return columns


def _rows(batch: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    names = list(batch)
    for values in zip(*(batch[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def _entries(encoded: EncodedRow) -> list[dict[str, Any]]:
    """Return an entry for each example; what concerns the row as a whole stands in the first."""
    entries = [
        _entry(
            input_ids=example.input_ids,
            labels=example.labels,
            regions=example.regions,
            inexact_turns=example.inexact_turns,
            lost_reasoning=example.lost_reasoning,
        )
        for example in encoded.examples
    ]
    entries[0].update(
        repairs=sorted(repair.name for repair in encoded.repairs),
        dropped_messages=encoded.dropped_messages,
        dropped_reasoning=encoded.dropped_reasoning,
    )
    return entries


def _entry(**values: Any) -> dict[str, Any]:
    lists = {"input_ids": [], "labels": [], "regions": [], "error": "", "repairs": []}
    counts = {"dropped_messages": 0, "inexact_turns": 0, "lost_reasoning": 0, "dropped_reasoning": False}
    return {**lists, **counts, **values}


def _pack(error: DeepFabricTrainerError) -> str:
    return json.dumps([type(error).__name__, error.found, error.expected, error.fix, error.path])


def _unpack(text: str) -> DeepFabricTrainerError:
    kind, found, expected, fix, path = json.loads(text)
    rebuilt: DeepFabricTrainerError = getattr(errors, kind)(found, expected=expected, fix=fix, path=path)
    return rebuilt


def _report(account: list[dict[str, Any]], rows: int) -> PreparationReport:
    return PreparationReport(
        rows=rows,
        examples=sum(not entry["error"] for entry in account),
        rejected=[RejectedRow(entry["row"], _unpack(entry["error"])) for entry in account if entry["error"]],
        repairs=Counter(Repair[name] for entry in account for name in entry["repairs"]),
        shortened_rows=sum(entry["dropped_messages"] > 0 for entry in account),
        dropped_messages=sum(entry["dropped_messages"] for entry in account),
        inexact_turns=sum(entry["inexact_turns"] for entry in account),
        lost_reasoning=sum(entry["lost_reasoning"] for entry in account),
        dropped_reasoning=sum(entry["dropped_reasoning"] for entry in account),
    )
