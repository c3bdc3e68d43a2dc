"""The assistant turns that a generation callback asks the model for."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.schema import normalize_row

logger = logging.getLogger(__name__)

MAX_ROWS_READ = 4096
"""Rows looked at for turns: enough for any sample, and a second or two of a large dataset."""


@dataclass(frozen=True)
class Turn:
    """A recorded assistant turn and what came before it.

    Args:
        row (`int`): Its row in the dataset.
        prompt (`list[dict[str, Any]]`): The messages before the turn.
        tools (`list[dict[str, Any]]`, *optional*): The tools of the row.
        expected (`dict[str, Any]`): The recorded assistant message.
        template_kwargs (`dict[str, Any]`): The row's own variables for the chat template.
    """

    row: int
    prompt: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    expected: dict[str, Any]
    template_kwargs: dict[str, Any]

    @property
    def expected_calls(self) -> list[dict[str, Any]]:
        """The recorded calls, `[]` when the turn makes none."""
        return self.expected.get("tool_calls") or []


def choose_turns(dataset: Sequence[Any], num_turns: int, seed: int) -> list[Turn]:
    """Choose turns with and without a call in their proportion, both present when the rows have both.

    Args:
        dataset (`datasets.Dataset` or `list[dict[str, Any]]`): Rows of `messages` and `tools`. At most
            `MAX_ROWS_READ` of them, drawn with `seed`, are read.
        num_turns (`int`): How many turns to choose; all of them when there are fewer.
        seed (`int`): The same seed chooses the same turns.

    Returns:
        `list[Turn]`: In the order of the rows.

    Raises:
        ConfigError: If `dataset` is no such thing, or there is no turn to choose.
    """
    if isinstance(dataset, Mapping) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ConfigError(
            f"the rows to sample are a {type(dataset).__name__}",
            expected="a `datasets.Dataset` or a list of rows",
            fix="pass one of these to `SampleGenerationCallback(dataset=...)`",
        )
    generator = random.Random(seed)
    rows = sorted(generator.sample(range(len(dataset)), min(len(dataset), MAX_ROWS_READ)))
    turns, failures = [], []
    for row in rows:
        try:
            turns.extend(_turns_of(row, dataset[row]))
        except DataFormatError as error:
            failures.append(error.at(f"row {row}"))
    if not turns:
        raise ConfigError(
            f"none of {len(rows)} rows has an assistant turn to generate" + (f" ({failures[0]})" if failures else ""),
            expected="rows of `messages` with an assistant message after another message",
            fix="pass `SampleGenerationCallback(dataset=...)` rows that are conversations",
        )
    if failures:
        logger.warning("%d of %d rows cannot be read and are not sampled: %s", len(failures), len(rows), failures[0])
    with_call = [turn for turn in turns if turn.expected_calls]
    without_call = [turn for turn in turns if not turn.expected_calls]
    total = min(num_turns, len(turns))
    share = _share(len(with_call), len(without_call), total)
    chosen = generator.sample(with_call, share) + generator.sample(without_call, total - share)
    return sorted(chosen, key=lambda turn: (turn.row, len(turn.prompt)))


def encode_prompt(processing_class: Any, turn: Turn) -> list[int]:
    """Return the token ids of the history with the generation prompt, as inference shows them."""
    text = processing_class.apply_chat_template(
        turn.prompt, tools=turn.tools, add_generation_prompt=True, tokenize=False, **turn.template_kwargs
    )
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _turns_of(row: int, content: Any) -> list[Turn]:
    conversation = normalize_row(content)
    messages: list[Any] = conversation.messages
    tools: Any = conversation.tools or None
    return [
        Turn(row, messages[:index], tools, message, content.get("chat_template_kwargs") or {})
        for index, message in enumerate(messages)
        if index > 0 and message["role"] == "assistant"
    ]


def _share(with_call: int, without_call: int, total: int) -> int:
    """Return how many of `total` turns have a call: in proportion, but one of each kind that exists if `total` > 1."""
    share = round(total * with_call / (with_call + without_call))
    if total == 1:
        return share
    return min(max(share, min(with_call, 1)), total - min(without_call, 1))
