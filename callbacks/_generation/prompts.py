"""The prompts of recorded turns, as the encoder trains them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from deepfabric_trainer.callbacks._generation.choice import Turn
from deepfabric_trainer.encode import ConversationEncoder, Region
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema import Conversation, Message
from deepfabric_trainer.tools import select_tools


@dataclass(frozen=True)
class Shown:
    """What of a row the trainer's encoder shows the model.

    Args:
        tool_strategy (`str`): Which tools of the row.
        min_tools (`int`): The fewest tools that the strategy leaves.
        num_distractors (`int`): The tools that the strategy adds.
        tool_seed (`int`): Of the strategy's draw.
        reasoning (`str`): Where the row's `reasoning` goes.
    """

    tool_strategy: str = "all"
    min_tools: int = 1
    num_distractors: int = 3
    tool_seed: int = 0
    reasoning: str = "auto"

    @classmethod
    def by(cls, args: Any) -> "Shown":
        """Return what a `DeepFabricSFTConfig` asks for; other arguments of trainers have no such settings."""
        if not hasattr(args, "tool_strategy"):
            return cls()
        return cls(str(args.tool_strategy), args.min_tools, args.num_distractors, int(args.seed), str(args.reasoning))

    def of(self, conversation: Conversation) -> Conversation:
        """Return a conversation with the tools that the model is shown."""
        tools = select_tools(
            conversation.messages,
            conversation.tools,
            self.tool_strategy,
            min_tools=self.min_tools,
            num_distractors=self.num_distractors,
            seed=self.tool_seed,
        )
        return replace(conversation, tools=tools)


@dataclass(frozen=True)
class Prompt:
    """A turn and what the model is given for it.

    Args:
        turn (`Turn`): The recorded turn; its tools are those that are shown.
        input_ids (`list[int]`): The token ids before the turn, length T > 0.
        stop_token_id (`int`, *optional*): The control token that ends the recorded turn, if one does.
    """

    turn: Turn
    input_ids: list[int]
    stop_token_id: int | None

    @property
    def key(self) -> tuple[int, int]:
        """The row and the place of the turn."""
        return self.turn.row, self.turn.index

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The tools that are shown; `None` where none are and yet some are called: they are declared elsewhere."""
        conversation = self.turn.conversation
        if not conversation.tools and not any(message.get("tool_calls") for message in conversation.messages):
            return []
        return cast("list[dict[str, Any]] | None", conversation.tools)


class PromptEncoder:
    """Encodes the prompts of turns: the tokens that a [`ConversationEncoder`] trains the turn behind.

    So messages go in the template's own form, a row's `chat_template_kwargs` hold, and control tokens that somebody
    wrote into a text stay plain text. Nothing is cut: a history is as long as it was recorded.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): A fast tokenizer with a chat template.
        shown (`Shown`): What of a row is shown.
        stop_token_ids (`list[int]`): Ids at which the model's generation stops.
        max_new_tokens (`int`): What must fit behind a prompt.
        context_length (`int`, *optional*): Of the model, in tokens.

    Raises:
        ConfigError: For a tokenizer without a chat template or offsets.
    """

    def __init__(
        self,
        processing_class: Any,
        shown: Shown,
        *,
        stop_token_ids: Sequence[int],
        max_new_tokens: int,
        context_length: int | None,
    ) -> None:
        self._encoder = ConversationEncoder(processing_class, reasoning=shown.reasoning, stop_token_ids=stop_token_ids)
        self._control_ids = set(self._encoder.tokenizer.added_tokens_decoder)
        self._shown = shown
        self._max_new_tokens = max_new_tokens
        self._context_length = context_length or math.inf

    def encode(self, turn: Turn) -> Prompt:
        """Return the prompt of a turn.

        Raises:
            DataFormatError: If the row cannot be encoded, or is too long for the model.
            TemplateError: If the template refuses it or drops something of it.
        """
        conversation = self._shown.of(turn.conversation)
        alone = replace(conversation, messages=_training_only(turn.index, conversation.messages))
        (example,) = self._encoder.encode_conversation(alone, turn.template_kwargs).examples
        trained = [index for index, region in enumerate(example.regions) if region is not Region.CONTEXT]
        length = trained[0]
        if not length:
            raise DataFormatError("nothing stands before the turn", expected="a message, or a generation prompt")
        if length + self._max_new_tokens > self._context_length:
            raise DataFormatError(
                f"the turn takes {length} + {self._max_new_tokens} of {self._context_length} tokens",
                fix="pass a smaller `max_new_tokens`, or shorter rows",
            )
        stops = [example.input_ids[index] for index in trained if example.regions[index] is Region.STOP]
        stop = stops[0] if len(stops) == 1 and stops[0] in self._control_ids else None
        return Prompt(replace(turn, conversation=conversation), example.input_ids[:length], stop)


def _training_only(turn: int, messages: Sequence[Message]) -> list[Message]:
    """Return messages of which one is trained."""
    alone = []
    for index, message in enumerate(messages):
        plain = message.copy()
        plain.pop("weight", None)
        plain.pop("train", None)
        if message["role"] == "assistant":
            plain["train"] = index == turn
        alone.append(plain)
    return alone
