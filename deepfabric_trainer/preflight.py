"""What is looked at before a run, so that it does not fail hours later: its folder, its tokens, its examples.

With a `DeepFabricSFTConfig` what cannot go well is an error. With a plain `SFTConfig`, with which a script that works
with TRL must go on working, it is one only where the run would fail for certain; the rest is said in the log.
"""

import logging
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from deepfabric_trainer.config import DeepFabricSFTConfig
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.prepare.origin import differences
from deepfabric_trainer.processing import tokenizer_of

logger = logging.getLogger(__name__)

_CONTROL_TOKEN = re.compile(r"<\|[^\s<>|{}\"']{1,40}\|>")
_MOST_SECONDS = 10.0
"""How long examples that were encoded elsewhere are searched for ids that the model does not know."""


def look_at_settings(args: Any, processing_class: Any, data_collator: Any = None) -> None:
    """Look at what is known before anything is loaded or prepared.

    Args:
        args (`TrainingArguments`): Of the run.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`, *optional*): Of the run.
        data_collator (`Callable`, *optional*): The user's, who then sees to the padding.

    Raises:
        ConfigError: If the output folder takes no files, or there is nothing to pad with.
    """
    if args.should_save:
        _require_writable(Path(args.output_dir), args)
    tokenizer = tokenizer_of(processing_class)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    given = getattr(args, "pad_token", None) or tokenizer.pad_token
    stop = getattr(args, "eos_token", None) or tokenizer.eos_token
    if data_collator is None and given is None and stop is None:
        raise ConfigError(
            f"the tokenizer {type(tokenizer).__name__} has neither a pad token nor a stop token",
            expected="a token to pad batches with, and one that ends a turn",
            fix="set `tokenizer.pad_token` and `tokenizer.eos_token`, or `pad_token` and `eos_token` of the config, "
            "to tokens of its vocabulary",
        )
    if args.process_index != 0:
        return
    if stop is None:
        logger.warning(
            "the tokenizer has no stop token (`eos_token`): at inference nothing ends a turn, unless the model's "
            "`generation_config.eos_token_id` does"
        )
    if data_collator is None and given is None:
        logger.warning(
            "the tokenizer has no pad token: the stop token %r stands in for it. It is still trained where it ends a "
            "turn, since padding has no labels",
            stop,
        )


def look_at_run(trainer: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Look at a trainer that is complete.

    Args:
        trainer (`SFTTrainer`): The trainer.
        train_dataset (`Dataset` or `IterableDataset`): As it was given, before it was prepared.
        eval_dataset (`Dataset`, `IterableDataset` or `dict`, *optional*): Likewise.

    Raises:
        ConfigError: If examples hold ids that the model has no embedding for, or were encoded with something else
            than the trainer's tokenizer.
    """
    if trainer.args.process_index == 0:
        _tell_of_missing_control_tokens(trainer.processing_class)
    encoded = [*_named(train_dataset, eval_dataset)]
    for name, dataset in encoded:
        _compare_origin(name, dataset, trainer)
    rows = _embedding_rows(trainer.model)
    if rows is None:
        return
    tokenizer = tokenizer_of(trainer.processing_class)
    largest = max(tokenizer.vocab_size - 1, *getattr(tokenizer, "added_tokens_decoder", ()), 0)
    prepared = encoded if largest < rows else [*_named(trainer.train_dataset, trainer.eval_dataset)]
    deadline = time.monotonic() + _MOST_SECONDS
    for name, dataset in prepared:
        _require_embeddings(name, dataset, rows, tokenizer, largest, deadline)
    if largest >= rows:
        _judge_larger_vocabulary(trainer, largest, rows)


def _require_writable(folder: Path, args: Any) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        found = f"nothing can be written to the output folder {folder} ({error.strerror or error})"
        if folder.is_dir() and not isinstance(args, DeepFabricSFTConfig) and args.save_strategy == "no":
            logger.warning("%s; the run saves nothing, and goes on", found)
            return
        raise ConfigError(
            found,
            expected="a folder for checkpoints and reports",
            fix="set another `output_dir`, make room, or mend its rights",
        ) from error


def _tell_of_missing_control_tokens(processing_class: Any) -> None:
    """Say which tokens a chat template writes that the tokenizer cuts into pieces, as one of another model does."""
    template = getattr(processing_class, "chat_template", None)
    texts = template.values() if isinstance(template, dict) else [template]
    written = {token for text in texts if isinstance(text, str) for token in _CONTROL_TOKEN.findall(text)}
    tokenizer = tokenizer_of(processing_class)
    missing = sorted(token for token in written if len(tokenizer.encode(token, add_special_tokens=False)) != 1)
    if missing:
        logger.warning(
            "the chat template writes %s, which the tokenizer has no token for and cuts into pieces: does it "
            "belong to another model?",
            ", ".join(missing),
        )


def _compare_origin(name: str, dataset: Dataset, trainer: Any) -> None:
    changed = differences(dataset, trainer.processing_class)
    if not changed:
        return
    found = (
        f"{name} dataset: its examples were encoded with another {' and another '.join(changed)} than the trainer's"
    )
    if not isinstance(trainer.args, DeepFabricSFTConfig):
        if trainer.args.process_index == 0:
            logger.warning("%s: at inference the model will see other prompts than in training", found)
        return
    raise ConfigError(
        found,
        expected="the tokenizer and chat template that are saved with the model, and used at inference",
        fix="give the trainer the rows themselves, prepare them anew with its tokenizer, or give the tokenizer the "
        "chat template that they were prepared with",
    )


def _require_embeddings(name: str, dataset: Dataset, rows: int, tokenizer: Any, largest: int, deadline: float) -> None:
    found = _first_beyond(dataset, rows, deadline)
    if found is None:
        return
    number, token = found
    text = tokenizer.convert_ids_to_tokens(token) if token <= largest else None
    raise ConfigError(
        f"the id {token}{f' ({text!r})' if text else ''} has no embedding: the model has {rows} embeddings, the "
        f"tokenizer {largest + 1} ids",
        expected="the tokenizer that belongs to the model",
        fix="load the tokenizer of this model and prepare the rows with it, or, to train new tokens, call "
        "`model.resize_token_embeddings(len(tokenizer))`",
        where=f"{name} dataset, example {number}",
    )


def _judge_larger_vocabulary(trainer: Any, largest: int, rows: int) -> None:
    pad = tokenizer_of(trainer.processing_class).pad_token_id
    found = f"the tokenizer has {largest + 1} ids, the model {rows} embeddings"
    if pad is not None and pad >= rows and isinstance(trainer.args, DeepFabricSFTConfig):
        raise ConfigError(
            f"{found}, and the pad token (id {pad}) has none",
            expected="a pad token that the model knows",
            fix="set `pad_token` to a token of the model, or call `model.resize_token_embeddings(len(tokenizer))`",
        )
    if trainer.args.process_index == 0:
        logger.warning("%s: is it the tokenizer of another model? No example that was looked at shows it", found)


def _first_beyond(dataset: Dataset, rows: int, deadline: float) -> tuple[int, int] | None:
    """Return the first example with an id that is too large, and the id; `None` where there is none, or no time."""
    table = dataset.data.column("input_ids")
    for chunk in table.chunks:
        if time.monotonic() > deadline:
            return None
        largest = pc.max(chunk.flatten()).as_py()
        if largest is not None and largest >= rows:
            break
    else:
        return None
    # The table may hold more than the dataset, which may be a selection.
    for number, ids in enumerate(dataset.with_format(None)["input_ids"]):
        beyond = [token for token in ids if token >= rows]
        if beyond:
            return number, beyond[0]
        if time.monotonic() > deadline:
            break
    return None


def _embedding_rows(model: Any) -> int | None:
    """Return how many tokens a model has embeddings for; `None` where that cannot be seen."""
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    rows = getattr(embeddings, "num_embeddings", None)
    return rows if isinstance(rows, int) and rows > 0 else None


def _named(train_dataset: Any, eval_dataset: Any) -> Iterator[tuple[str, Dataset]]:
    """Give the datasets of examples that can be read as tables, each with its name."""
    evaluated: Iterable[tuple[str, Any]] = (
        eval_dataset.items() if isinstance(eval_dataset, dict) else [("eval", eval_dataset)]
    )
    for name, dataset in [("train", train_dataset), *evaluated]:
        if isinstance(dataset, Dataset) and "input_ids" in dataset.column_names:
            yield name, dataset
