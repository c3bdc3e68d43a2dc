"""`ConversationEncoder`: rows in, proved examples out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from deepfabric_trainer.encode.labels import IGNORED, prove, regions_of_tokens
from deepfabric_trainer.encode.parts import Part, PartFinder, check_assistant, check_context
from deepfabric_trainer.encode.regions import Region, TrainOn, Truncation
from deepfabric_trainer.encode.select import require_turns, select_turns
from deepfabric_trainer.encode.truncate import droppable_exchanges
from deepfabric_trainer.errors import ConfigError, DataFormatError, RowTooLongError, TemplateError
from deepfabric_trainer.reasoning import ReasoningMode, place_reasoning
from deepfabric_trainer.schema import Message, Repair, Tool, normalize_row
from deepfabric_trainer.template import ChatTemplate

_Choice = TypeVar("_Choice", TrainOn, Truncation, ReasoningMode)


@dataclass(frozen=True)
class EncodedExample:
    """One sequence to train on.

    Args:
        input_ids (`list[int]`): The token ids, length T.
        labels (`list[int]`): The same ids where they are trained and -100 elsewhere, unshifted, length T.
        regions (`list[Region]`): What each token is, length T.
        text (`str`): The rendering that was tokenized.
        inexact_turns (`int`): The trained turns that do not stand right after the prompt that inference shows, or
            whose first token is also the prompt's last.
        lost_reasoning (`int`): The assistant messages whose reasoning the template left out, when every token is
            trained; otherwise such a turn is trained in a sequence of its own.
    """

    input_ids: list[int]
    labels: list[int]
    regions: list[Region]
    text: str
    inexact_turns: int = 0
    lost_reasoning: int = 0


@dataclass(frozen=True)
class EncodedRow:
    """What became of a row.

    Args:
        examples (`list[EncodedExample]`): At least one.
        repairs (`frozenset[Repair]`): What had to be mended in the row.
        dropped_messages (`int`): The messages that were dropped to keep to `max_length`.
        dropped_reasoning (`bool`): Whether the row's `reasoning` column found no place.
    """

    examples: list[EncodedExample]
    repairs: frozenset[Repair]
    dropped_messages: int
    dropped_reasoning: bool


class ConversationEncoder:
    """Turns conversation rows into tokens, labels and regions, and proves each of them.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): A fast tokenizer with a chat template, or a
            processor that has one.
        train_on (`str`, *optional*, defaults to `"assistant"`): A [`TrainOn`].
        tool_strategy (`str`, *optional*, defaults to `"all"`): Which tools of a row are rendered. Only `"all"` so far.
        reasoning (`str`, *optional*, defaults to `"auto"`): A [`ReasoningMode`]: where the `reasoning` column goes.
        max_length (`int`, *optional*): The longest example, in tokens. `None`: nothing is cut.
        truncation (`str`, *optional*, defaults to `"turns"`): A [`Truncation`]: what happens beyond `max_length`.
        chat_template (`str`, *optional*): Used in place of the tokenizer's own.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): More variables for the template.
        stop_token_ids (`Iterable[int]`, *optional*): Ids that end a turn, besides the tokenizer's `eos_token_id`:
            those of the model's generation config belong here.
    Raises:
        ConfigError: For an option that does not exist, or a tokenizer without chat template or offsets.

    Example:
    ```python
    encoder = ConversationEncoder(tokenizer)
    for example in encoder.encode({"messages": messages, "tools": tools}):
        example.input_ids, example.labels, example.regions
    ```
    """

    def __init__(
        self,
        processing_class: Any,
        *,
        train_on: str = "assistant",
        tool_strategy: str = "all",
        reasoning: str = "auto",
        max_length: int | None = None,
        truncation: str = "turns",
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        stop_token_ids: Iterable[int] = (),
    ) -> None:
        self.train_on = _choice(TrainOn, train_on, "train_on")
        self.reasoning = _choice(ReasoningMode, reasoning, "reasoning")
        self.truncation = _choice(Truncation, truncation, "truncation")
        if tool_strategy != "all":
            raise ConfigError(f"tool_strategy is {tool_strategy!r}", expected="'all', the only one in this version")
        if max_length is not None and max_length < 1:
            raise ConfigError(f"max_length is {max_length}", expected="a positive number of tokens, or None")
        self.max_length = max_length
        self.processing_class = processing_class
        self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.chat_template = chat_template
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        if not getattr(self.tokenizer, "is_fast", False):
            raise ConfigError(
                f"the tokenizer {type(self.tokenizer).__name__} gives no character offsets",
                expected="a fast tokenizer",
                fix="load it with `AutoTokenizer.from_pretrained(...)`, which prefers the fast one",
            )
        self.stop_token_ids = tuple(stop_token_ids)
        self._finders: dict[str, PartFinder] = {}
        self._finder({})

    def encode(self, row: Mapping[str, Any]) -> list[EncodedExample]:
        """Encode one row of `messages`, `tools` and `reasoning`; the row itself is not changed.

        Returns:
            `list[EncodedExample]`: Usually one; more when the template rewrites history, so that no single sequence
            shows every turn in the context of inference.
        Raises:
            DataFormatError: If the row cannot be read, trains nothing, or is too long.
            TemplateError: If the template drops something of it, or the labels cannot be proved.
        """
        return self.encode_row(row).examples

    def encode_batch(self, rows: Iterable[Mapping[str, Any]]) -> list[list[EncodedExample]]:
        """Encode several rows; errors name the row's number in the batch, counted from 0."""
        encoded = []
        for number, row in enumerate(rows):
            try:
                encoded.append(self.encode(row))
            except (DataFormatError, TemplateError) as error:
                raise error.at(f"row {number}") from error
        return encoded

    def encode_row(self, row: Mapping[str, Any]) -> EncodedRow:
        """Encode one row and tell what had to be mended or dropped for it; see `encode`."""
        finder = self._finder(row.get("chat_template_kwargs") or {})
        conversation = normalize_row(row)
        messages = place_reasoning(conversation, self.reasoning, lambda: finder.template.renders_reasoning)
        require_turns(messages, self.train_on)
        examples, dropped = self._encode_fitting(finder, messages, conversation.tools)
        dropped_reasoning = conversation.reasoning is not None and messages == conversation.messages
        return EncodedRow(examples, conversation.repairs, dropped, dropped_reasoning)

    def _encode_fitting(
        self, finder: PartFinder, messages: Sequence[Message], tools: list[Tool] | None
    ) -> tuple[list[EncodedExample], int]:
        """Encode, dropping the oldest exchanges as far as `max_length` asks; return how many messages that took."""
        examples = self._encode_messages(finder, messages, tools)
        exchanges = droppable_exchanges(messages) if self.truncation is Truncation.TURNS else []
        kept = list(messages)
        for exchange in exchanges:
            shorter = [
                message for index, message in enumerate(messages) if index > exchange[-1] or index < exchanges[0][0]
            ]
            if not self._too_long(examples) or not select_turns(shorter, self.train_on):
                break
            kept = shorter
            examples = self._encode_messages(finder, kept, tools)
        dropped = len(messages) - len(kept)
        if self._too_long(examples):
            longest = max(len(example.input_ids) for example in examples)
            raise RowTooLongError(
                f"the row has {longest} tokens"
                + (f" even without its {dropped} oldest messages" if dropped else "")
                + f", max_length is {self.max_length}",
                expected="a row that fits, since a cut one would train half a turn",
                fix="raise `max_length`, shorten the row, or give it fewer tools",
            )
        return examples, dropped

    def _encode_messages(
        self, finder: PartFinder, messages: Sequence[Message], tools: list[Tool] | None
    ) -> list[EncodedExample]:
        turns = select_turns(messages, self.train_on)
        if self.train_on is TrainOn.ALL:
            return [self._encode_all(finder, messages, tools, turns)]
        return [self._encode_part(part) for part in finder.find(messages, tools, turns)]

    def _encode_part(self, part: Part) -> EncodedExample:
        text = part.rendering.text
        input_ids, offsets = self._tokenize(text)
        regions = regions_of_tokens(offsets, part.turns)
        prove(text, input_ids, offsets, regions, part.turns, self.tokenizer)
        labels = [
            IGNORED if region is Region.CONTEXT else token for token, region in zip(input_ids, regions, strict=True)
        ]
        starts = {start for start, _ in offsets}
        inexact = sum(not (turn.exact_context and turn.span.start in starts) for turn in part.turns)
        return EncodedExample(input_ids, labels, regions, text, inexact_turns=inexact)

    def _encode_all(
        self, finder: PartFinder, messages: Sequence[Message], tools: list[Tool] | None, turns: list[int]
    ) -> EncodedExample:
        """Train every token, as TRL does by default, after the check that nothing was left out of the rendering."""
        rendering = finder.template.render_with_spans(messages, tools)
        check_context(rendering, messages, tools)
        lost_reasoning = check_assistant(rendering, messages)
        input_ids, offsets = self._tokenize(rendering.text)
        known = regions_of_tokens(offsets, finder.find_provable(rendering, messages, tools, turns))
        regions = [region or Region.FORMAT for region in known]
        return EncodedExample(input_ids, list(input_ids), regions, rendering.text, lost_reasoning=lost_reasoning)

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoding["input_ids"], encoding["offset_mapping"]

    def _too_long(self, examples: Sequence[EncodedExample]) -> bool:
        return self.max_length is not None and any(len(example.input_ids) > self.max_length for example in examples)

    def _finder(self, variables: Mapping[str, Any]) -> PartFinder:
        """Return the finder for these variables of the template, which a row may set for itself."""
        key = json.dumps(variables, sort_keys=True, default=str)
        if key not in self._finders:
            template = ChatTemplate(
                self.processing_class,
                chat_template=self.chat_template,
                variables={**self.chat_template_kwargs, **variables},
            )
            self._finders[key] = PartFinder(template, *_stop_and_special_texts(self.tokenizer, self.stop_token_ids))
        return self._finders[key]


def _stop_and_special_texts(tokenizer: Any, stop_token_ids: Sequence[int]) -> tuple[list[str], list[str]]:
    ids = dict.fromkeys(token for token in (tokenizer.eos_token_id, *stop_token_ids) if token is not None)
    stops = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
    return stops, [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _choice(kind: type[_Choice], value: str, name: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(repr(choice.value) for choice in kind)
        raise ConfigError(f"{name} is {value!r}", expected=f"one of {choices}") from None
