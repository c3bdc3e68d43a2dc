"""From a trainer's rows to its examples, and what the log says of them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import TrainingArguments
from trl.data_utils import is_conversational_from_value, maybe_convert_to_chatml

from deepfabric_trainer.config import DeepFabricSFTConfig, Preparation
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.file_names import file_name
from deepfabric_trainer.grouping import encoded_codes
from deepfabric_trainer.prepare import encode_dataset, settle, stream_dataset, tolerated_by, write_rejected
from deepfabric_trainer.prepare.lazy import EncodedOnDemand
from deepfabric_trainer.prepare.writing import EXAMPLE_FEATURES
from deepfabric_trainer.training_order import Grouping, codes_of_rows, groups, shuffled
from deepfabric_trainer.training_rows.cutting import cut_examples, cut_stream, is_trained
from deepfabric_trainer.training_rows.encoder import ModelFacts, encoder_for
from deepfabric_trainer.training_rows.kinds import (
    holds_conversations,
    is_encoded,
    text_column_of,
    trains_completions_only,
)

logger = logging.getLogger(__name__)


class TrainerRows(NamedTuple):
    """The examples of a trainer's dataset.

    Args:
        dataset (`Dataset | IterableDataset | EncodedOnDemand`): The examples.
        grouping (`Grouping`, *optional*): Which of them begin alike, where the settings ask for it and the dataset is
            to be trained on.
        account (`dict[str, Any]`): What became of the rows, as far as it is known yet: `rows`, `examples`, `rejected`
            and `remarks`.
    """

    dataset: Any
    grouping: Grouping | None
    account: dict[str, Any]


def own_examples(
    dataset: Any,
    processing_class: Any,
    args: Any,
    name: str,
    facts: ModelFacts,
    *,
    assistant_only: bool,
    packing: bool,
    formatting_func: Callable[[dict[str, Any]], str] | None,
) -> TrainerRows | None:
    """Return the examples of rows that are ours to encode, or that we encoded; `None` where all is left to TRL.

    So are rows behind a transform, which may give others each time, unless they are encoded on demand: TRL refuses
    them, and says what to do.

    Args:
        dataset (`Dataset` or `IterableDataset`): The rows.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Of the trainer.
        args (`TrainingArguments`): Of the trainer.
        name (`str`): What the dataset is called.
        facts (`ModelFacts`): Of the model.
        assistant_only (`bool`): Whether a plain config asks for `assistant_only_loss`.
        packing (`bool`): Whether TRL packs the examples.
        formatting_func (`Callable`, *optional*): The user's, which makes texts of rows.

    Raises:
        DataFormatError: See `prepare_rows`.
    """
    if formatting_func is None and isinstance(args, DeepFabricSFTConfig) and not packing and is_encoded(dataset):
        return check_encoded(dataset, args, name)
    if formatting_func is not None or not holds_conversations(dataset, text_column_of(args)):
        return None
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom" and not _encodes_on_demand(args):
        return None
    assistant_only = assistant_only or trains_completions_only(dataset, args)
    encoder = encoder_for(processing_class, args, facts, assistant_only=assistant_only)
    return prepare_rows(dataset, encoder, args, name, packing=packing)


def prepare_rows(
    dataset: Any, encoder: ConversationEncoder, args: Any, name: str, *, packing: bool = False
) -> TrainerRows:
    """Encode a trainer's dataset, write what is rejected into its output folder, and say in the log what was done.

    With a plain `SFTConfig` a script that works with TRL must go on working: rows that break a rule are counted, what
    TRL cuts is cut, with a word, and the columns of the rows stay.

    Args:
        dataset (`Dataset` or `IterableDataset`): The rows.
        encoder (`ConversationEncoder`): From `encoder_for`.
        args (`TrainingArguments`): Of the trainer.
        name (`str`): What the dataset is called.
        packing (`bool`, *optional*, defaults to `False`): Whether TRL packs the examples, which then also shuffles.

    Raises:
        DataFormatError: If rows cannot be trained on and the policy is to raise, or when none is left.
    """
    is_ours = isinstance(args, DeepFabricSFTConfig)
    shuffles = args.shuffle_dataset and not packing
    on_invalid = args.on_invalid if is_ours else "raise"
    tolerated = tolerated_by(encoder)
    cuts = not is_ours and not packing and args.max_length is not None
    if isinstance(dataset, IterableDataset):
        streamed = stream_dataset(
            dataset,
            encoder,
            check=is_ours,
            on_invalid=on_invalid,
            tolerated=tolerated,
            keep_columns=not is_ours,
            name=name,
        )
        if cuts:
            streamed = cut_stream(streamed, args.max_length, args.truncation_mode, name)
        return TrainerRows(streamed.shuffle(seed=args.seed) if shuffles else streamed, None, {})
    rejected_path = Path(args.output_dir) / (
        "rejected.jsonl" if name == "train" else f"rejected_{file_name(name)}.jsonl"
    )
    is_main = args.process_index == 0
    wants_groups = name == "train" and groups(args)
    if _encodes_on_demand(args):
        if args.shuffle_dataset:
            dataset = dataset.shuffle(seed=args.seed)
        lazy = EncodedOnDemand(
            dataset, encoder, on_invalid=on_invalid, rejected_path=rejected_path, starts_run=is_main, name=name
        )
        grouping = Grouping(lazy, codes_of_rows(dataset, encoder)) if wants_groups else None
        return TrainerRows(lazy, grouping, {"rows": len(dataset)})
    with _main_processes_first():
        workers = args.dataset_num_proc
        prepared, report = encode_dataset(dataset, encoder, check=is_ours, num_proc=workers, name=name)
    if report.rejected and is_main:
        write_rejected(rejected_path, dataset, report.rejected)
    settle(report, on_invalid, tolerated=tolerated)
    sentences, rows = report.sentences(name), report.rows_of_examples
    if cuts:
        with _main_processes_first():
            prepared, kept, remarks = cut_examples(prepared, args.max_length, args.truncation_mode, name)
        sentences, rows = [*sentences, *remarks], rows[kept]
    for sentence in sentences if is_main else ():
        logger.warning(sentence)
    account = {"rows": report.rows, "examples": len(prepared), "rejected": len(report.rejected)}
    if not is_ours:
        with _main_processes_first():
            prepared = _beside_columns_of(dataset.select(rows), prepared, workers)
    if shuffles:
        prepared, order = shuffled(prepared, args.seed)
        rows = rows[order]
    grouping = Grouping(prepared, codes_of_rows(dataset, encoder)[rows], rows) if wants_groups else None
    return TrainerRows(prepared, grouping, {**account, "remarks": sentences})


def check_encoded(dataset: Any, args: Any, name: str) -> TrainerRows:
    """Return encoded examples as they are; see `prepare_rows`.

    Those over `max_length` are left out, with a word: cut ones would train half a turn.
    """
    if isinstance(dataset, IterableDataset):
        return TrainerRows(dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset, None, {})
    if args.max_length is not None:
        fitting = dataset.filter(
            lambda ids: len(ids) <= args.max_length, input_columns=["input_ids"], desc=f"Measuring {name} dataset"
        )
        if len(fitting) < len(dataset) and args.process_index == 0:
            logger.warning(
                "%s dataset: %d of %d encoded examples are longer than `max_length` (%d) and were left out",
                name,
                len(dataset) - len(fitting),
                len(dataset),
                args.max_length,
            )
        dataset = fitting
    if not len(dataset):
        raise DataFormatError(
            f"{name} dataset: every encoded example is longer than `max_length`", fix="raise `max_length`"
        )
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    grouping = Grouping(dataset, encoded_codes(dataset)) if name == "train" and groups(args) else None
    return TrainerRows(dataset, grouping, {"examples": len(dataset)})


def drop_untrained(dataset: Any, args: Any, name: str) -> Any:
    """Leave out packed rows in which nothing is trained, and count them in the log.

    A packing strategy that cuts examples makes such rows: a stretch of tool schemas, say. They cost a step's time and
    weigh nothing.
    """
    if isinstance(dataset, IterableDataset):
        return dataset.filter(is_trained, input_columns=["labels"])
    kept = dataset.filter(is_trained, input_columns=["labels"], desc=f"Looking for trained tokens in {name} dataset")
    if len(kept) < len(dataset) and args.process_index == 0:
        logger.warning(
            "%s dataset: %d of %d packed rows have no trained token, because the packing cut through examples; they "
            'were left out (`packing_strategy="bfd"` cuts none)',
            name,
            len(dataset) - len(kept),
            len(dataset),
        )
    return kept


@contextmanager
def without_assistant_only_loss(args: TrainingArguments, conversations: bool) -> Iterator[None]:
    """Hide the flag from the parent, which insists on templates that it knows; our labels are right on any."""
    if not conversations or not getattr(args, "assistant_only_loss", False):
        yield
        return
    args.assistant_only_loss = False
    try:
        yield
    finally:
        args.assistant_only_loss = True


def _encodes_on_demand(args: Any) -> bool:
    return isinstance(args, DeepFabricSFTConfig) and args.preparation == Preparation.LAZY


@contextmanager
def _main_processes_first() -> Iterator[None]:
    """Let the others find what the main processes have cached, whether the machines share a disk or not."""
    state = PartialState()
    with state.main_process_first(), state.local_main_process_first():
        yield


def _beside_columns_of(dataset: Dataset, prepared: Dataset, num_proc: int | None) -> Dataset:
    """Return examples with the columns of the rows that they come from, which collators of the user's may read."""
    if is_conversational_from_value(dataset[0]):
        # As TRL does, which so calls the column `messages`.
        dataset = dataset.map(
            maybe_convert_to_chatml, remove_columns="conversations", num_proc=num_proc, desc="Converting to ChatML"
        )
    kept = dataset.remove_columns([name for name in dataset.column_names if name in EXAMPLE_FEATURES])
    return concatenate_datasets([kept, prepared], axis=1) if kept.column_names else prepared
