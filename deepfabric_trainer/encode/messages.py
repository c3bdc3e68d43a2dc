"""From the messages of one conversation to the sequences that train them."""

from collections.abc import Iterator, Sequence

from deepfabric_trainer.encode.chunks import Encoding
from deepfabric_trainer.encode.examples import PackedExample
from deepfabric_trainer.encode.known_parts import KnownParts
from deepfabric_trainer.encode.labels import context_of, prove, regions_of_tokens, tokens_within, weights_of
from deepfabric_trainer.encode.literals import find_literals, texts_with_control_tokens
from deepfabric_trainer.encode.parts import Part, PartFinder, check_assistant, check_context
from deepfabric_trainer.encode.regions import Region, TrainOn
from deepfabric_trainer.encode.select import select_turns, untrained_messages
from deepfabric_trainer.encode.tokens import RenderingTokenizer
from deepfabric_trainer.errors import DataFormatError, TemplateError
from deepfabric_trainer.schema import Message, Tool
from deepfabric_trainer.template import Rendering


class MessagesEncoder:
    """Encodes the messages of one conversation, whole or shortened.

    Args:
        finder (`PartFinder`): Finds the renderings and the turns in them.
        known (`KnownParts`): What it has found for conversations of the same shape.
        tools (`Sequence[Tool]`, *optional*): What the conversation is shown.
        tokenizer (`RenderingTokenizer`): Of the template for these tools.
        train_on (`TrainOn`): Which messages are trained.
    """

    def __init__(
        self,
        finder: PartFinder,
        known: KnownParts,
        tools: Sequence[Tool] | None,
        tokenizer: RenderingTokenizer,
        train_on: TrainOn,
    ) -> None:
        self.finder = finder
        self.known = known
        self.tools = tools
        self.tokenizer = tokenizer
        self.train_on = train_on

    def texts_with_control_tokens(self, messages: Sequence[Message]) -> set[str]:
        """Return the texts of others than the assistant that hold control tokens."""
        return texts_with_control_tokens(messages, self.tools, self.tokenizer)

    def encode(self, messages: Sequence[Message], foreign: set[str]) -> list[PackedExample]:
        """Return the sequences that train the selected turns, each of them once.

        Args:
            messages (`Sequence[Message]`): The conversation.
            foreign (`set[str]`): Texts whose control tokens stay plain text, as `texts_with_control_tokens` gives.
        Raises:
            DataFormatError: If every message says that it is not trained.
            TemplateError: If the template drops something, or the labels cannot be proved.
        """
        turns = select_turns(messages, self.train_on)
        if self.train_on is TrainOn.ALL:
            return [self._encode_all(messages, turns, foreign)]
        parts = self._find_parts(messages, turns, foreign)
        return [self._encode_part(part, messages, foreign) for part in parts]

    def _find_parts(self, messages: Sequence[Message], turns: list[int], foreign: set[str]) -> list[Part]:
        def find() -> list[Part]:
            return self.finder.find(messages, self.tools, turns)

        # Where control tokens are plain text, the fields are needed to tell them from the template's own.
        return find() if foreign else self.known.find(messages, self.tools, turns, find)

    def _encode_part(self, part: Part, messages: Sequence[Message], foreign: set[str]) -> PackedExample:
        text = part.rendering.text
        start = min(turn.span.start for turn in part.turns)
        encoding = self._tokenize(part.rendering, messages, foreign, start)
        regions = regions_of_tokens(encoding, part.turns)
        prove(text, encoding, regions, part.turns, self.tokenizer.tokenizer)
        return PackedExample(
            encoding.input_ids,
            regions,
            encoding.first,
            text,
            weights=weights_of(encoding, part.turns, messages),
            contexts=tuple(context_of(turn, encoding) for turn in part.turns),
            unstopped_turns=sum(not turn.stops for turn in part.turns),
        )

    def _encode_all(self, messages: Sequence[Message], turns: list[int], foreign: set[str]) -> PackedExample:
        """Train every token, as TRL does by default, after the check that nothing was left out of the rendering."""
        rendering = self.finder.template.render_with_fields(messages, self.tools)
        check_context(rendering, messages, self.tools)
        lost_reasoning = check_assistant(rendering, messages)
        encoding = self._tokenize(rendering, messages, foreign)
        found = self.finder.find_provable(rendering, messages, self.tools, turns)
        regions = [region or Region.FORMAT for region in regions_of_tokens(encoding, found)]
        for index in untrained_messages(messages):
            for token in _tokens_of(index, rendering, encoding.offsets):
                regions[token] = Region.CONTEXT
        if not any(regions):
            raise DataFormatError(
                "every message says that it is not trained",
                expected="at least one that is",
                fix="remove the row, or the `train` and `weight` of its messages",
                path="messages",
            )
        weights = weights_of(encoding, found, messages)
        for index in set(turns) - {turn.message for turn in found}:
            # A turn that the whole rendering shows differently is weighed by its fields.
            if messages[index].get("weight", 1.0) != 1.0:
                weights = weights or [1.0] * len(regions)
                for token in _tokens_of(index, rendering, encoding.offsets):
                    weights[token] = messages[index]["weight"]
        return PackedExample(
            encoding.input_ids, regions, encoding.first, rendering.text, weights, lost_reasoning=lost_reasoning
        )

    def _tokenize(
        self, rendering: Rendering, messages: Sequence[Message], foreign: set[str], start: int = 0
    ) -> Encoding:
        """Return the tokens of a rendering, with the characters of those behind `start`."""
        literals = find_literals(rendering, messages, foreign, self.tokenizer)
        return self.tokenizer.encode(rendering.text, literals, start=start)


def _tokens_of(index: int, rendering: Rendering, offsets: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Go over the tokens that the fields of a message gave."""
    for field, spans in rendering.of(index):
        if spans is None:
            raise TemplateError(
                f"it cannot be proved which characters of the rendering {field} gave, so it cannot be left untrained",
                fix="remove the message's `train` or `weight`, or use another chat template",
                path=field.path,
            )
        for span in spans:
            yield from tokens_within(offsets, span)
