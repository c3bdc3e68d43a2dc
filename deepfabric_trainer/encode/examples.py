"""What comes out of the encoder."""

from dataclasses import dataclass, field

from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.encode.turns import Context
from deepfabric_trainer.schema import Repair


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
        context_tokens (`int`): So many tokens at least stand at the beginning before one that is trained.
    """

    input_ids: list[int]
    labels: list[int]
    regions: list[Region]
    text: str
    weights: list[float] | None = None
    contexts: tuple[Context, ...] = ()
    unstopped_turns: int = 0
    lost_reasoning: int = 0
    context_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class EncodedRow:
    """What became of a row.

    Args:
        examples (`list[EncodedExample]`): At least one.
        repairs (`frozenset[Repair]`): What had to be mended in the row.
        dropped_messages (`int`): The messages that were dropped to keep to `max_length`.
        shortened_results (`int`): The tool results that were cut to keep to `max_length`.
        dropped_reasoning (`bool`): Whether the row's `reasoning` column found no place.
        leaves_no_choice (`bool`): Whether the tool strategy left no tool that would be a wrong one to call.
    """

    examples: list[EncodedExample]
    repairs: frozenset[Repair]
    dropped_messages: int = 0
    shortened_results: int = 0
    dropped_reasoning: bool = False
    leaves_no_choice: bool = False
