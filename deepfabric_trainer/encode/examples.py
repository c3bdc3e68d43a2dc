"""What comes out of the encoder."""

from array import array
from dataclasses import dataclass
from typing import Generic, TypeVar

from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.encode.turns import Context
from deepfabric_trainer.schema import Repair

IGNORED = -100
"""The label of a token that is not trained, as PyTorch's cross-entropy and Hugging Face's collators have it."""

_Example = TypeVar("_Example")


@dataclass(frozen=True)
class EncodedExample:
    """One sequence to train on.

    Args:
        input_ids (`list[int]`): The token ids, length T.
        labels (`list[int]`): The same ids where they are trained and -100 elsewhere, unshifted, length T.
        regions (`list[Region]`): What each token is, length T.
        text (`str`): The rendering that was tokenized.
        weights (`list[float]`, *optional*): The weight of each token in the loss, length T, where messages have a
            `weight` of their own; `None` when all weigh 1.
        contexts (`tuple[Context, ...]`): For each trained turn, what it stands behind.
        unstopped_turns (`int`): The trained turns that the template ends without a stop token.
        lost_reasoning (`int`): The assistant messages whose reasoning the template left out, when every token is
            trained; otherwise such a turn is trained in a sequence of its own.
    """

    input_ids: list[int]
    labels: list[int]
    regions: list[Region]
    text: str
    weights: list[float] | None = None
    contexts: tuple[Context, ...] = ()
    unstopped_turns: int = 0
    lost_reasoning: int = 0


@dataclass(frozen=True)
class PackedExample:
    """The same sequence as it is cheapest to make and to write: most of its tokens are context, which is only counted.

    Args:
        input_ids (`array[int]`): The token ids, int32, length T.
        regions (`list[Region]`): What each token from `first` on is, length T - first.
        first (`int`): The tokens at the beginning that are context.
        text (`str`): As in [`EncodedExample`], like all that follows.
    """

    input_ids: "array[int]"
    regions: list[Region]
    first: int
    text: str
    weights: list[float] | None = None
    contexts: tuple[Context, ...] = ()
    unstopped_turns: int = 0
    lost_reasoning: int = 0

    def unpacked(self) -> EncodedExample:
        """Return it with a value for each token."""
        input_ids, context = self.input_ids.tolist(), Region.CONTEXT
        rest = zip(input_ids[self.first :], self.regions, strict=True)
        return EncodedExample(
            input_ids,
            [IGNORED] * self.first + [IGNORED if region is context else token for token, region in rest],
            [context] * self.first + self.regions,
            self.text,
            self.weights,
            self.contexts,
            self.unstopped_turns,
            self.lost_reasoning,
        )


@dataclass(frozen=True)
class EncodedRow(Generic[_Example]):
    """What became of a row.

    Args:
        examples (`list[EncodedExample]` or `list[PackedExample]`): At least one.
        repairs (`frozenset[Repair]`): What had to be mended in the row.
        dropped_messages (`int`): The messages that were dropped to keep to `max_length`.
        shortened_results (`int`): The tool results that were cut to keep to `max_length`.
        dropped_reasoning (`bool`): Whether the row's `reasoning` column found no place.
        leaves_no_choice (`bool`): Whether the tool strategy left no tool that would be a wrong one to call.
    """

    examples: list[_Example]
    repairs: frozenset[Repair]
    dropped_messages: int = 0
    shortened_results: int = 0
    dropped_reasoning: bool = False
    leaves_no_choice: bool = False

    def unpacked(self: "EncodedRow[PackedExample]") -> "EncodedRow[EncodedExample]":
        """Return the same with a value for each token of its examples."""
        return EncodedRow(
            [example.unpacked() for example in self.examples],
            self.repairs,
            self.dropped_messages,
            self.shortened_results,
            self.dropped_reasoning,
            self.leaves_no_choice,
        )
