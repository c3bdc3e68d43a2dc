from enum import IntEnum, StrEnum


class Region(IntEnum):
    """What a token is to the training: context, or one of the trained kinds."""

    CONTEXT = 0
    REASONING = 1
    CONTENT = 2
    TOOL_NAME = 3
    TOOL_ARGUMENTS = 4
    FORMAT = 5
    STOP = 6


class TrainOn(StrEnum):
    """Which messages are trained; a message's own `train` or `weight` goes before it."""

    ASSISTANT = "assistant"
    """Every assistant turn."""
    LAST_ASSISTANT = "last_assistant"
    """The last assistant turn."""
    TOOL_CALLS = "tool_calls"
    """The assistant turns that make a call."""
    ALL = "all"
    """Every token of the conversation, as `SFTTrainer` does by default."""


class Truncation(StrEnum):
    """What happens to a row that is longer than `max_length`."""

    TURNS = "turns"
    """Its oldest exchanges are dropped, whole; it is rejected when its last one alone is too long."""
    DROP = "drop"
    """It is left out, which the log counts."""
    RAISE = "raise"
    """It is rejected."""
