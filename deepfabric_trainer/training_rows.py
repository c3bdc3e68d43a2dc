"""The rows of a trainer: which are ours to encode, how, and what the log says of them."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import AutoConfig, GenerationConfig, TrainingArguments
from trl.data_utils import get_dataset_column_names, is_conversational, is_conversational_from_value
from trl.trainer.utils import global_then_local_main_first

from deepfabric_trainer.config import DeepFabricSFTConfig, Preparation
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.grouping import encoded_codes
from deepfabric_trainer.prepare import encode_dataset, settle, stream_dataset, tolerated_by, write_rejected
from deepfabric_trainer.prepare.lazy import EncodedOnDemand
from deepfabric_trainer.prepare.writing import EXAMPLE_FEATURES
from deepfabric_trainer.schema import conversation_key, is_conversation, is_conversational_completion
from deepfabric_trainer.training_order import Grouping, codes_of_rows, groups, shuffled
from deepfabric_trainer.validate import Rule

logger = logging.getLogger(__name__)


def holds_conversations(dataset: Any, text_column: str | None = None) -> bool:
    """Tell whether a dataset's rows are ours to encode; all others go TRL's way.

    Prompts with completions are ours only where TRL would train on tool results, or encode arguments twice.

    Args:
        dataset (`Dataset` or `IterableDataset`): The rows.
        text_column (`str`, *optional*): Where it is there, and TRL would read the text in it and not the conversation
            beside it, the rows are TRL's.

    Raises:
        DataFormatError: If the dataset is empty.
    """
    first = next(iter(dataset), None)
    if first is None:
        raise DataFormatError("the dataset is empty", expected="at least one row", fix="look at how it is loaded")
    columns = set(get_dataset_column_names(dataset))
    if {"input_ids", "image", "images"} & columns:
        return False
    key = conversation_key(first)
    if key is None or {"prompt", "completion"} <= columns:
        rows = [first] if isinstance(dataset, IterableDataset) else dataset
        return is_conversational_completion(first) and any(_calls_tools(row["completion"]) for row in rows)
    # A row without its messages is ours to name, where TRL would look for a text in it.
    messages = first[key]
    if messages is None or (isinstance(messages, Sized) and not len(messages)):
        return True
    read_by_trl = is_conversational({key: messages}) or is_conversational_from_value({key: messages})
    return is_conversation(first) and (text_column not in columns or bool(read_by_trl))


def text_column_of(args: Any) -> str | None:
    """Return the column that TRL reads where it finds no conversation; ours are read with our own config."""
    return None if isinstance(args, DeepFabricSFTConfig) else getattr(args, "dataset_text_field", "text")


def trains_completions_only(dataset: Any, args: Any) -> bool:
    """Tell whether rows are completions, of which TRL trains nothing else unless it is told to."""
    completes = {"prompt", "completion"} <= set(get_dataset_column_names(dataset))
    return completes and getattr(args, "completion_only_loss", None) is not False


def rows_to_generate(eval_dataset: Any) -> Any:
    """Return the evaluation rows as they came, for callbacks that generate from them; the first of several sets."""
    if isinstance(eval_dataset, dict):
        eval_dataset = next(iter(eval_dataset.values()), None)
    if not isinstance(eval_dataset, Dataset) or not len(eval_dataset) or not holds_conversations(eval_dataset):
        return None
    return eval_dataset


def facts_of(model: Any, args: TrainingArguments) -> tuple[int | None, tuple[int, ...]]:
    """Return the model's context length (tokens) and the ids at which its generation stops."""
    if isinstance(model, str):
        init_kwargs = getattr(args, "model_init_kwargs", None) or {}
        trust = init_kwargs.get("trust_remote_code", getattr(args, "trust_remote_code", False))
        revision = init_kwargs.get("revision")
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust)
        try:
            generation = GenerationConfig.from_pretrained(model, revision=revision)
        except OSError:  # not every model has the file; the tokenizer's stop token is known anyway
            generation = None
    else:
        config, generation = model.config, getattr(model, "generation_config", None)
    stop = getattr(generation, "eos_token_id", None)
    stops = () if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
    return getattr(config.get_text_config(), "max_position_embeddings", None), stops


def encoder_for(
    processing_class: Any,
    args: Any,
    *,
    context_length: int | None,
    stop_token_ids: Iterable[int],
    assistant_only: bool,
    packing: bool,
) -> ConversationEncoder:
    """Return the encoder that a trainer's settings ask for.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Of the trainer.
        args (`TrainingArguments`): A `DeepFabricSFTConfig`, or a plain `SFTConfig`, with which TRL's choices hold.
        context_length (`int`, *optional*): Of the model, in tokens.
        stop_token_ids (`Iterable[int]`): The ids at which the model's generation stops.
        assistant_only (`bool`): Whether a plain config asks for `assistant_only_loss`.
        packing (`bool`): Whether TRL packs the examples.
    """
    if isinstance(args, DeepFabricSFTConfig):
        return ConversationEncoder(
            processing_class,
            train_on=args.train_on,
            tool_strategy=args.tool_strategy,
            reasoning=args.reasoning,
            max_length=args.max_length or context_length,
            truncation=args.truncation,
            max_tool_result_length=args.max_tool_result_length,
            min_tools=args.min_tools,
            num_distractors=args.num_distractors,
            tool_seed=args.seed,
            stop_token_ids=stop_token_ids,
        )
    # These strategies lose nothing of what is too long: it goes on in the next row.
    goes_on = packing and args.packing_strategy in ("bfd_split", "wrapped")
    return ConversationEncoder(
        processing_class,
        train_on="assistant" if assistant_only else "all",
        max_length=None if goes_on else args.max_length,
        stop_token_ids=stop_token_ids,
    )


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


def prepare_rows(
    dataset: Any, encoder: ConversationEncoder, args: Any, name: str, *, packing: bool = False
) -> TrainerRows:
    """Encode a trainer's dataset, write what is rejected into its output folder, and say in the log what was done.

    With a plain `SFTConfig` a script that works with TRL must go on working: rows that break a rule are counted, rows
    that TRL would cut are left out, with a word, and the columns of a dataset that is no stream stay.

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
    tolerated = tolerated_by(encoder) if is_ours else (Rule.TOO_LONG,)
    if isinstance(dataset, IterableDataset):
        streamed = stream_dataset(
            dataset, encoder, check=is_ours, on_invalid=on_invalid, tolerated=tolerated, name=name
        )
        return TrainerRows(streamed.shuffle(seed=args.seed) if shuffles else streamed, None, {})
    rejected_path = Path(args.output_dir) / ("rejected.jsonl" if name == "train" else f"rejected_{name}.jsonl")
    is_main = args.process_index == 0
    wants_groups = name == "train" and groups(args)
    if is_ours and args.preparation == Preparation.LAZY:
        if args.shuffle_dataset:
            dataset = dataset.shuffle(seed=args.seed)
        lazy = EncodedOnDemand(
            dataset, encoder, on_invalid=on_invalid, rejected_path=rejected_path, starts_run=is_main, name=name
        )
        grouping = Grouping(lazy, codes_of_rows(dataset, encoder)) if wants_groups else None
        return TrainerRows(lazy, grouping, {"rows": len(dataset)})
    with global_then_local_main_first():
        workers = args.dataset_num_proc
        prepared, report = encode_dataset(dataset, encoder, check=is_ours, num_proc=workers, name=name)
    if report.rejected and is_main:
        write_rejected(rejected_path, dataset, report.rejected)
    settle(report, on_invalid, tolerated=tolerated)
    sentences = report.sentences(name)
    for sentence in sentences if is_main else ():
        logger.warning(sentence)
    account = {"rows": report.rows, "examples": report.examples, "rejected": len(report.rejected)}
    rows = report.rows_of_examples
    if not is_ours:
        prepared = _beside_columns_of(dataset.select(rows), prepared)
    if shuffles:
        prepared, order = shuffled(prepared, args.seed)
        rows = rows[order]
    grouping = Grouping(prepared, codes_of_rows(dataset, encoder)[rows], rows) if wants_groups else None
    return TrainerRows(prepared, grouping, {**account, "remarks": sentences})


def _beside_columns_of(dataset: Dataset, prepared: Dataset) -> Dataset:
    """Return examples with the columns of the rows that they come from, which collators of the user's may read."""
    kept = dataset.remove_columns([name for name in dataset.column_names if name in EXAMPLE_FEATURES])
    return concatenate_datasets([kept, prepared], axis=1) if kept.column_names else prepared


def is_encoded(dataset: Any) -> bool:
    """Tell whether a dataset holds examples that this library encoded."""
    return {"input_ids", "labels", "regions"} <= set(get_dataset_column_names(dataset))


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


def drop_untrained(dataset: Any, args: Any, name: str) -> Any:
    """Leave out packed rows in which nothing is trained, and count them in the log.

    A packing strategy that cuts examples makes such rows: a stretch of tool schemas, say. They cost a step's time and
    weigh nothing.
    """
    if isinstance(dataset, IterableDataset):
        return dataset.filter(_is_trained, input_columns=["labels"])
    kept = dataset.filter(_is_trained, input_columns=["labels"], desc=f"Looking for trained tokens in {name} dataset")
    if len(kept) < len(dataset) and args.process_index == 0:
        logger.warning(
            "%s dataset: %d of %d packed rows have no trained token, because the packing cut through examples; they "
            'were left out (`packing_strategy="bfd"` cuts none)',
            name,
            len(dataset) - len(kept),
            len(dataset),
        )
    return kept


def _is_trained(labels: list[int]) -> bool:
    return any(label != -100 for label in labels)


def _calls_tools(completion: Iterable[Mapping[str, Any]]) -> bool:
    return any(
        message.get("role") in ("tool", "function") or message.get("tool_calls") or message.get("function_call")
        for message in completion
    )
