"""Shortening a conversation by whole exchanges."""

from collections.abc import Sequence
from itertools import pairwise

from deepfabric_trainer.schema import Message


def droppable_exchanges(messages: Sequence[Message]) -> list[list[int]]:
    """Return the exchanges that may be dropped from the front, oldest first: each a list of message indices.

    An exchange begins with a user message that follows another role and goes to the next such message. What stands
    before the first exchange (the system message) and the last exchange always stay.
    """
    starts = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "user" and (index == 0 or messages[index - 1]["role"] != "user")
    ]
    return [list(range(start, end)) for start, end in pairwise(starts)]
