"""`ConversationEncoder`: rows in, proved examples out."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from deepfabric_trainer.encode.chunks import ChunkTokenizer
from deepfabric_trainer.encode.examples import EncodedExample, EncodedRow, PackedExample
from deepfabric_trainer.encode.known_parts import KnownParts
from deepfabric_trainer.encode.messages import MessagesEncoder
from deepfabric_trainer.encode.parts import PartFinder
from deepfabric_trainer.encode.regions import TrainOn, Truncation
from deepfabric_trainer.encode.select import require_turns, select_turns
from deepfabric_trainer.encode.tokens import RenderingTokenizer
from deepfabric_trainer.encode.truncate import first_that_fits, with_short_results, without_oldest
from deepfabric_trainer.errors import ConfigError, DataFormatError, RowTooLongError, TemplateError
from deepfabric_trainer.processing import tokenizer_of
from deepfabric_trainer.reasoning import ReasoningMode, place_reasoning
from deepfabric_trainer.schema import Conversation, Message, Repair, normalize_row
from deepfabric_trainer.template import ChatTemplate, DirectRenderer, KnownTools
from deepfabric_trainer.tools import ToolStrategy, leaves_no_choice, select_tools

_LEARNED = ("_finders", "_tokenizers", "_known_tools", "_direct", "_chunks")
_Choice = TypeVar("_Choice", TrainOn, Truncation, ReasoningMode, ToolStrategy)


class ConversationEncoder:
    """Turns conversation rows into tokens, labels and regions, and proves each of them.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): A fast tokenizer with a chat template, or a
            processor that has one.
        train_on (`str`, *optional*, defaults to `"assistant"`): A [`TrainOn`].
        tool_strategy (`str`, *optional*, defaults to `"all"`): A [`ToolStrategy`]: which tools of a row are rendered.
        reasoning (`str`, *optional*, defaults to `"auto"`): A [`ReasoningMode`]: where the `reasoning` column goes.
        max_length (`int`, *optional*): The longest example, in tokens. `None`: nothing is cut.
        truncation (`str`, *optional*, defaults to `"turns"`): A [`Truncation`]: what happens beyond `max_length`.
        max_tool_result_length (`int`, *optional*): What tool results are cut to, in tokens, in rows that are too long
            even without their older exchanges. `None`: no result is cut. Only with `truncation="turns"`.
        min_tools (`int`, *optional*, defaults to 1): The fewest tools that a tool strategy leaves.
        num_distractors (`int`, *optional*, defaults to 3): The tools that `"used_plus_related"` and
            `"used_plus_sampled"` add to those that the conversation calls.
        tool_seed (`int`, *optional*, defaults to 0): Of the draw of `"used_plus_sampled"`.
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
        max_tool_result_length: int | None = None,
        min_tools: int = 1,
        num_distractors: int = 3,
        tool_seed: int = 0,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        stop_token_ids: Iterable[int] = (),
    ) -> None:
        self.train_on = _choice(TrainOn, train_on, "train_on")
        self.reasoning = _choice(ReasoningMode, reasoning, "reasoning")
        self.truncation = _choice(Truncation, truncation, "truncation")
        self.tool_strategy = _choice(ToolStrategy, tool_strategy, "tool_strategy")
        self._tool_options = {"min_tools": min_tools, "num_distractors": num_distractors, "seed": tool_seed}
        select_tools([], None, self.tool_strategy, **self._tool_options)
        self.max_length = _length(max_length, "max_length")
        self.max_tool_result_length = _length(max_tool_result_length, "max_tool_result_length")
        self.processing_class = processing_class
        self.tokenizer = tokenizer_of(processing_class)
        self.chat_template = chat_template
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        if not getattr(self.tokenizer, "is_fast", False):
            raise ConfigError(
                f"the tokenizer {type(self.tokenizer).__name__} gives no character offsets",
                expected="a fast tokenizer",
                fix="load it with `AutoTokenizer.from_pretrained(...)`, which prefers the fast one",
            )
        self.stop_token_ids = tuple(stop_token_ids)
        self._forget()
        self._finder({})

    def __getstate__(self) -> dict[str, Any]:
        """Return what makes the encoder, without what it has learned: so its hash stays the same while it works."""
        return {name: value for name, value in vars(self).items() if name not in _LEARNED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

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

    def encode_row(self, row: Mapping[str, Any]) -> EncodedRow[EncodedExample]:
        """Encode one row and tell what had to be mended or dropped for it; see `encode`."""
        return self._encode(normalize_row(row), row.get("chat_template_kwargs"), unchanging=False).unpacked()

    def encode_conversation(
        self, conversation: Conversation, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> EncodedRow[EncodedExample]:
        """Encode a row that is normalized already, with more variables for the template; see `encode`.

        Its tools are remembered as objects: whoever changes one after all must pass another list of other tools.
        """
        return self.encode_packed(conversation, chat_template_kwargs).unpacked()

    def encode_packed(
        self, conversation: Conversation, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> EncodedRow[PackedExample]:
        """Encode as `encode_conversation` does, without a list of values for each token: whole datasets come so."""
        return self._encode(conversation, chat_template_kwargs, unchanging=True)

    def _encode(
        self, conversation: Conversation, chat_template_kwargs: Mapping[str, Any] | None, *, unchanging: bool
    ) -> EncodedRow[PackedExample]:
        if chat_template_kwargs is not None and not isinstance(chat_template_kwargs, Mapping):
            raise DataFormatError(
                f"the variables for the template are of type {type(chat_template_kwargs).__name__}",
                expected='an object such as {"enable_thinking": false}',
                path="chat_template_kwargs",
            )
        finder, known = self._finder(chat_template_kwargs or {})
        tools = self._known_tools.catalogue(conversation.tools, unchanging=unchanging)
        if self.tool_strategy is not ToolStrategy.ALL:
            selected = select_tools(conversation.messages, tools, self.tool_strategy, **self._tool_options)
            tools = self._known_tools.catalogue(selected)
        messages = place_reasoning(conversation, self.reasoning, lambda: finder.habits(tools).renders_reasoning)
        require_turns(messages, self.train_on)
        tokenizer = self._tokenizer_for(finder.template.source(tools))
        encoder = MessagesEncoder(finder, known, tools, tokenizer, self.train_on)
        foreign = encoder.texts_with_control_tokens(messages)
        kept, examples = self._encode_fitting(messages, lambda chosen: encoder.encode(chosen, foreign))
        return EncodedRow(
            examples,
            conversation.repairs | ({Repair.CONTROL_TOKENS} if foreign else set()),
            dropped_messages=len(messages) - len(kept),
            shortened_results=0 if kept is messages else sum(message not in messages for message in kept),
            dropped_reasoning=conversation.reasoning is not None and messages == conversation.messages,
            leaves_no_choice=self.tool_strategy is not ToolStrategy.ALL and leaves_no_choice(messages, tools),
        )

    def _encode_fitting(
        self, messages: Sequence[Message], encode: Callable[[Sequence[Message]], list[PackedExample]]
    ) -> tuple[Sequence[Message], list[PackedExample]]:
        """Encode as much of a conversation as `max_length` admits; return what of it that was."""
        whole = encode(messages)
        if not self._too_long(whole):
            return messages, whole
        encoded: dict[int, list[PackedExample]] = {}

        def fits(choice: tuple[int, list[Message]]) -> bool:
            number, kept = choice
            encoded[number] = encode(kept)
            return not self._too_long(encoded[number])

        choices = list(enumerate(self._shorter(messages)))
        found = first_that_fits(choices, fits)
        if found is not None:
            return found[1], encoded[found[0]]
        raise self._too_long_error(whole, encoded.get(len(choices) - 1), len(choices) > 0)

    def _shorter(self, messages: Sequence[Message]) -> list[list[Message]]:
        """Return what may be left of a row that is too long, the most first."""
        if self.truncation is not Truncation.TURNS:
            return []
        shorter = [kept for kept in without_oldest(messages) if self._trains(kept)]
        if self.max_tool_result_length is not None:
            last = shorter[-1] if shorter else messages
            shorter.append(with_short_results(last, self.tokenizer, self.max_tool_result_length))
        return shorter

    def _trains(self, messages: Sequence[Message]) -> bool:
        return self.train_on is TrainOn.ALL or bool(select_turns(messages, self.train_on))

    def _too_long_error(
        self, whole: Sequence[PackedExample], shortest: Sequence[PackedExample] | None, shortened: bool
    ) -> RowTooLongError:
        length = max(len(example.input_ids) for example in shortest or whole)
        return RowTooLongError(
            f"the row has {length} tokens"
            + (" even without what may be dropped" if shortened else "")
            + f", max_length is {self.max_length}",
            expected="a row that fits, since a cut one would train half a turn",
            fix="raise `max_length`, shorten the row, give it fewer tools (`tool_strategy`), or cut its tool results "
            "(`max_tool_result_length`)",
        )

    def _too_long(self, examples: Sequence[PackedExample]) -> bool:
        return self.max_length is not None and any(len(example.input_ids) > self.max_length for example in examples)

    def _finder(self, variables: Mapping[str, Any]) -> tuple[PartFinder, KnownParts]:
        """Return the finder for these variables of the template, which a row may set for itself."""
        key = json.dumps(variables, sort_keys=True, default=str) if variables else "{}"
        if key not in self._finders:
            template = ChatTemplate(
                self.processing_class,
                chat_template=self.chat_template,
                variables={**self.chat_template_kwargs, **variables},
                direct=self._direct,
            )
            stops, special = _stop_and_special_texts(self.tokenizer, self.stop_token_ids)
            control = [text for text in (*stops, *special) if text]
            finder = PartFinder(template, stops, special)
            self._finders[key] = (
                finder,
                KnownParts(template, control, lambda tools: finder.habits(tools).appended is not None),
            )
        return self._finders[key]

    def _tokenizer_for(self, source: str) -> RenderingTokenizer:
        if source not in self._tokenizers:
            self._tokenizers[source] = RenderingTokenizer(self.tokenizer, source, self._chunks)
        return self._tokenizers[source]

    def _forget(self) -> None:
        self._finders: dict[str, tuple[PartFinder, KnownParts]] = {}
        self._tokenizers: dict[str, RenderingTokenizer] = {}
        self._known_tools = KnownTools()
        self._direct = DirectRenderer(self._known_tools)
        self._chunks = ChunkTokenizer(self.tokenizer)


def _stop_and_special_texts(tokenizer: Any, stop_token_ids: Sequence[int]) -> tuple[list[str], list[str]]:
    ids = dict.fromkeys(token for token in (tokenizer.eos_token_id, *stop_token_ids) if token is not None)
    stops = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
    return stops, [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _length(value: int | None, name: str) -> int | None:
    if value is not None and value < 1:
        raise ConfigError(f"{name} is {value}", expected="a positive number of tokens, or None")
    return value


def _choice(kind: type[_Choice], value: str, name: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(repr(choice.value) for choice in kind)
        raise ConfigError(f"{name} is {value!r}", expected=f"one of {choices}") from None
