"""Shortening a conversation: by whole exchanges, and by the ends of long tool results."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from deepfabric_trainer.schema import Message

_Shortened = TypeVar("_Shortened")
CUT = " [...]"
"""What stands in place of the end of a tool result."""


def without_oldest(messages: Sequence[Message]) -> list[list[Message]]:
    """Return the conversation without its oldest exchange, without its two oldest, and so on, the last one kept.

    An exchange begins with a user message that follows another role and goes to the next such message, so that a call
    never loses its result. What stands before the first exchange (the system message) always stays.
    """
    starts = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "user" and (index == 0 or messages[index - 1]["role"] != "user")
    ]
    return [[*messages[: starts[0]], *messages[end:]] for _, end in pairwise(starts)]


def with_short_results(messages: Sequence[Message], tokenizer: Any, most: int) -> list[Message]:
    """Return the conversation with every tool result cut to its first `most` tokens; what was cut is marked."""
    return [_shortened(message, tokenizer, most) if message["role"] == "tool" else message for message in messages]


def first_that_fits(choices: Sequence[_Shortened], fits: Callable[[_Shortened], bool]) -> _Shortened | None:
    """Return the first choice that fits, where every choice after it does too; `None` when none does."""
    low, high = 0, len(choices)
    while low < high:
        middle = (low + high) // 2
        if fits(choices[middle]):
            high = middle
        else:
            low = middle + 1
    return choices[low] if low < len(choices) else None


def _shortened(message: Message, tokenizer: Any, most: int) -> Message:
    encoding = tokenizer(message["content"], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoding["offset_mapping"]
    if len(offsets) <= most:
        return message
    return Message(**{**message, "content": message["content"][: offsets[most][0]] + CUT})
