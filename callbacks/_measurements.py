"""What a measurement by generation found."""

from dataclasses import dataclass, field
from typing import Any

from deepfabric_trainer.toolcalls import ParsedResponse, ToolCallScore
from deepfabric_trainer.toolcalls.tables import ToolTable


@dataclass(frozen=True)
class TurnSample:
    """One generated turn beside the recorded one.

    Args:
        row (`int`): The row of the dataset.
        prompt (`list[dict[str, Any]]`): The messages before the turn.
        expected_calls (`list[dict[str, Any]]`): The recorded calls.
        expected_text (`str`): The recorded content.
        predicted_text (`str`): What was generated, special tokens included.
        parsed (`ParsedResponse`): The same, parsed.
        score (`ToolCallScore`): How its calls compare.
    """

    row: int
    prompt: list[dict[str, Any]]
    expected_calls: list[dict[str, Any]]
    expected_text: str
    predicted_text: str
    parsed: ParsedResponse
    score: ToolCallScore


@dataclass(frozen=True)
class ReplayedConversation:
    """A conversation that was played with the model in the assistant's place.

    Args:
        row (`int`): The row of the dataset.
        turns (`int`): How many assistant turns the recording has.
        turns_right (`int`): How many of them the model made as recorded before it left the recording.
        samples (`list[TurnSample]`): The turns that were generated, in their order.
    """

    row: int
    turns: int
    turns_right: int
    samples: list[TurnSample]

    @property
    def success(self) -> bool:
        """Whether it was played to the end."""
        return self.turns_right == self.turns


@dataclass(frozen=True)
class GenerationResult:
    """What one measurement found.

    Args:
        step (`int`): The global step.
        metrics (`dict[str, float]`): Named as they are logged.
        samples (`list[TurnSample]`): The turns, in the order of the rows.
        table (`ToolTable`, *optional*): The calls by tool, and which tool was called for which.
        replays (`list[ReplayedConversation]`): The conversations that were played, if that was asked for.
        seconds (`float`): What it took.
        epoch (`float`, *optional*): When it was.
    """

    step: int
    metrics: dict[str, float]
    samples: list[TurnSample]
    table: ToolTable | None = None
    replays: list[ReplayedConversation] = field(default_factory=list)
    seconds: float = 0.0
    epoch: float | None = None
