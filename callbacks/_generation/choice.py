"""The assistant turns that a generation callback asks the model for."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from deepfabric_trainer.encode.regions import TrainOn
from deepfabric_trainer.encode.select import select_turns
from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.schema import Conversation, normalize_row

logger = logging.getLogger(__name__)

MAX_ROWS_READ = 4096
"""Rows looked at for turns: enough for any sample, and a second or two of a large dataset."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Turn:
    """A recorded assistant turn.

    Args:
        row (`int`): Its row in the dataset.
        index (`int`): Its place among the messages.
        conversation (`Conversation`): The row.
        template_kwargs (`Mapping[str, Any]`): The row's own variables for the chat template.
    """

    row: int
    index: int
    conversation: Conversation
    template_kwargs: Mapping[str, Any]

    @property
    def prompt(self) -> list[dict[str, Any]]:
        """The messages before the turn."""
        return [dict(message) for message in self.conversation.messages[: self.index]]

    @property
    def expected(self) -> Mapping[str, Any]:
        """The recorded message."""
        return self.conversation.messages[self.index]

    @property
    def expected_calls(self) -> list[dict[str, Any]]:
        """The recorded calls, `[]` when the turn makes none."""
        return self.expected.get("tool_calls") or []


def read_turns(dataset: Sequence[Any], seed: int) -> list[list[Turn]]:
    """Return the assistant turns of each row that has any, but those that say that they are not trained.

    Args:
        dataset (`datasets.Dataset` or `list[dict[str, Any]]`): Rows of `messages` and `tools`. At most
            `MAX_ROWS_READ` of them, drawn with `seed`, are read; rows that cannot be read are counted in the log.
        seed (`int`): The same seed reads the same rows.

    Raises:
        ConfigError: If `dataset` is no such thing, or there is no turn in it.
    """
    if isinstance(dataset, Mapping) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ConfigError(
            f"the rows to sample are a {type(dataset).__name__}",
            expected="a `datasets.Dataset` or a list of rows",
            fix="pass one of these to `SampleGenerationCallback(dataset=...)`",
        )
    rows = sorted(random.Random(seed).sample(range(len(dataset)), min(len(dataset), MAX_ROWS_READ)))
    conversations, failures = [], []
    for row in rows:
        try:
            conversations.append(_turns_of(row, dataset[row]))
        except DataFormatError as error:
            failures.append(error.at(f"row {row}"))
    conversations = [turns for turns in conversations if turns]
    if not conversations:
        raise ConfigError(
            f"none of {len(rows)} rows has an assistant turn to generate" + (f" ({failures[0]})" if failures else ""),
            expected="rows of `messages` with an assistant message after another message",
            fix="pass `SampleGenerationCallback(dataset=...)` rows that are conversations",
        )
    if failures:
        logger.warning("%d of %d rows cannot be read and are not sampled: %s", len(failures), len(rows), failures[0])
    return conversations


def choose_turns(conversations: Sequence[Sequence[Turn]], num_turns: int, seed: int) -> list[Turn]:
    """Choose turns with and without a call in their proportion, both present when the rows have both.

    Args:
        conversations (`list[list[Turn]]`): The turns by row, as `read_turns` returns them.
        num_turns (`int`): How many to choose; all of them when there are fewer.
        seed (`int`): The same seed chooses the same turns.

    Returns:
        `list[Turn]`: In an order of which every beginning has the proportion too, so that a sample which is cut off
        is as good as a smaller one.
    """
    turns = [turn for conversation in conversations for turn in conversation]
    with_call = [turn for turn in turns if turn.expected_calls]
    without_call = [turn for turn in turns if not turn.expected_calls]
    total = min(num_turns, len(turns))
    share = _share(len(with_call), len(without_call), total)
    generator = random.Random(seed)
    return _interleave(generator.sample(with_call, share), generator.sample(without_call, total - share))


def choose_conversations(
    conversations: Sequence[Sequence[Turn]], num_conversations: int, seed: int
) -> list[Sequence[Turn]]:
    """Choose conversations that make a call, or any where none does, in the order of a draw with `seed`."""
    calling = [turns for turns in conversations if any(turn.expected_calls for turn in turns)] or conversations
    return random.Random(seed).sample(calling, min(num_conversations, len(calling)))


def _turns_of(row: int, content: Any) -> list[Turn]:
    conversation = normalize_row(content)
    template_kwargs = content.get("chat_template_kwargs") or {}
    return [
        Turn(row, index, conversation, template_kwargs)
        for index in select_turns(conversation.messages, TrainOn.ASSISTANT)
        if index > 0
    ]


def _share(with_call: int, without_call: int, total: int) -> int:
    """Return how many of `total` turns have a call: in proportion, but one of each kind that exists if `total` > 1."""
    share = round(total * with_call / (with_call + without_call))
    if total == 1:
        return share
    return min(max(share, min(with_call, 1)), total - min(without_call, 1))


def _interleave(one: Sequence[_T], other: Sequence[_T]) -> list[_T]:
    """Merge two lists so that each is spread evenly over the whole."""
    placed = [((place + 0.5) / len(items), items[place]) for items in (one, other) for place in range(len(items))]
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]
