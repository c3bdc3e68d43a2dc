"""What a trainer's rows are: ours to encode, encoded by us, or TRL's."""

from collections.abc import Iterable, Mapping, Sized
from typing import Any

from datasets import Dataset, IterableDataset
from trl.data_utils import get_dataset_column_names, is_conversational, is_conversational_from_value

from deepfabric_trainer.config import DeepFabricSFTConfig
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema import conversation_key, is_conversation, is_conversational_completion


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


def is_encoded(dataset: Any) -> bool:
    """Tell whether a dataset holds examples that this library encoded."""
    return {"input_ids", "labels", "regions"} <= set(get_dataset_column_names(dataset))


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


def _calls_tools(completion: Iterable[Mapping[str, Any]]) -> bool:
    return any(
        message.get("role") in ("tool", "function") or message.get("tool_calls") or message.get("function_call")
        for message in completion
    )
