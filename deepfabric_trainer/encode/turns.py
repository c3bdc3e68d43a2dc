"""What of a rendering one assistant turn trains: from behind the prompt of inference to the stop token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from deepfabric_trainer.encode.fields import find_fields, written_forms
from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import Message, Tool
from deepfabric_trainer.template import FieldKind, Habits, Rendering, Span
from deepfabric_trainer.template.brackets import has_brackets
from deepfabric_trainer.template.habits import TAG

_LONGEST_OPENING = 64
"""Characters of the text that opens a reasoning block, at most."""
_CONTROL = re.compile(r"<[|｜][^<>\s]{1,60}[|｜]>|</s>")


class Context(StrEnum):
    """What a trained turn stands behind; the values say it in words, for reports."""

    EXACT = "the prompt that inference shows"
    OTHER_REASONING = "a prompt whose reasoning block the turn does not go on with"
    INVENTED_REASONING = "an empty reasoning block that the template invents and no prompt of inference has"
    NO_PROMPT = "a history for which the template renders no prompt"
    OTHER_TEXT = "a history that the template renders differently in prompts"
    JOINED_TOKEN = "a prompt whose last characters and the turn's first are one token"


@dataclass(frozen=True)
class TrainedTurn:
    """The characters of a rendering that an assistant message trains.

    Args:
        message (`int`): The index of the message.
        span (`Span`): From the first character that the model must produce to the end of the stop token.
        fields (`tuple[tuple[Region, Span], ...]`): What the message's fields gave, and the stop token, in order; the
            rest of the span is format.
        context (`Context`): What the span stands behind.
        stops (`bool`): Whether the span ends in a stop token.
    """

    message: int
    span: Span
    fields: tuple[tuple[Region, Span], ...]
    context: Context
    stops: bool

    def moved(self, distance: int, context: Context) -> "TrainedTurn":
        """Return the same turn further on in another rendering."""
        fields = tuple((region, Span(start + distance, end + distance)) for region, (start, end) in self.fields)
        span = Span(self.span.start + distance, self.span.end + distance)
        return TrainedTurn(self.message, span, fields, context, self.stops)


@dataclass(frozen=True)
class Stops:
    """What ends an assistant turn.

    Args:
        known (`tuple[str, ...]`): The texts of the stop tokens of the tokenizer and the model.
        special (`tuple[str, ...]`): The texts of all special tokens of the tokenizer.
        after_turn (`str`): What the template writes behind a turn without calls.
    """

    known: tuple[str, ...]
    special: tuple[str, ...]
    after_turn: str = ""

    def find(self, text: str, within: Span) -> Span | None:
        """Return the stop token in what a template writes behind a turn's last field, `None` when there is none.

        A known stop token comes first, then the one that also ends turns without calls, then the last special token:
        special tokens before it belong to the call.
        """
        known = [Span(at, at + len(stop)) for stop in self.known if (at := text.find(stop, *within)) >= 0]
        if known:
            return min(known)
        usual = self._controls(self.after_turn, Span(0, len(self.after_turn)))
        ends = self.after_turn[slice(*usual[-1])] if usual else "".join(self.after_turn.split()[:1])
        if not ends:
            return None
        at = text.find(ends, *within)
        if at >= 0:
            return Span(at, at + len(ends))
        controls = self._controls(text, within)
        return controls[-1] if controls else None

    def find_next(self, text: str, start: int, generation_prompt: str) -> Span | None:
        """Return the stop token that a template leaves to the next message: the control token that comes first.

        One with which the generation prompt begins is no stop: the next message is the assistant's own.
        """
        position = start + len(text[start:]) - len(text[start:].lstrip())
        begins = generation_prompt.strip()
        control = _CONTROL.match(begins)
        if begins and text.startswith(control[0] if control else begins, position):
            return None
        for stop in (*self.known, *self.special):
            if text.startswith(stop, position):
                return Span(position, position + len(stop))
        control = _CONTROL.match(text, position)
        return Span(*control.span()) if control else None

    def _controls(self, text: str, within: Span) -> list[Span]:
        """Return the control tokens in a text: the tokenizer's, or what looks like one where it knows none."""
        found = [Span(*match.span()) for match in self._pattern.finditer(text, *within)]
        return found or [Span(*match.span()) for match in TAG.finditer(text, *within)]

    @property
    def _pattern(self) -> re.Pattern[str]:
        tokens = sorted((token for token in (*self.known, *self.special) if token), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


class Prompts:
    """What inference shows before a turn, rendered when it is asked for.

    Args:
        habits (`Habits`): Of the template.
        messages (`Sequence[Message]`): The messages before the turn.
        tools (`Sequence[Tool]`, *optional*): The tools of the conversation.
    """

    def __init__(self, habits: Habits, messages: Sequence[Message], tools: Sequence[Tool] | None) -> None:
        self.habits = habits
        self.messages = messages
        self._tools = tools

    @cached_property
    def usual(self) -> str | None:
        """The prompt as the template renders it; `None` when it renders none."""
        if self.habits.appended is None:
            return self._render(add_generation_prompt=True)
        return None if self._history is None else self._history + self.habits.appended[0]

    @cached_property
    def switched(self) -> tuple[str, ...]:
        """The prompts with reasoning switched on or off, where the template has switches."""
        if self.habits.appended is not None:
            return () if self._history is None else tuple(self._history + end for end in self.habits.appended[1])
        prompts = (self._render(add_generation_prompt=True, **switch) for switch in self.habits.switches)
        return tuple(prompt for prompt in prompts if prompt is not None)

    @property
    def history(self) -> str:
        """The messages before the turn without a generation prompt; empty when the template refuses them."""
        return self._history or ""

    @cached_property
    def _history(self) -> str | None:
        return self._render()

    def matching(self, text: str, *, reasons: bool) -> str | None:
        """Return the prompt that a rendering goes on from, `None` when there is none.

        The usual one comes first; a turn without reasoning goes on from the longest, which may hold a closed block.
        """
        if reasons and self.usual is not None and text.startswith(self.usual):
            return self.usual
        prompts = (*self.switched, *([] if self.usual is None else [self.usual]))
        return max((prompt for prompt in prompts if text.startswith(prompt)), key=len, default=None)

    def _render(self, **variables: bool) -> str | None:
        try:
            return self.habits.template.render(self.messages, self._tools, **variables) if self.messages else None
        except TemplateError:
            return None


def find_turn(rendering: Rendering, index: int, message: Message, *, prompts: Prompts, stops: Stops) -> TrainedTurn:
    """Find what an assistant message trains in the rendering of the conversation up to and with it.

    Args:
        rendering (`Rendering`): Of the conversation up to and with the message.
        index (`int`): The index of the message.
        message (`Message`): The message itself.
        prompts (`Prompts`): What inference shows before it.
        stops (`Stops`): What ends a turn.
    Raises:
        TemplateError: If a field of the message is not in its turn; it names the field.
    """
    text, path = rendering.text, f"messages[{index}]"
    if has_brackets(text):
        raise TemplateError(
            "the text holds private-use characters of plane 16, with which fields are found",
            expected="text without them",
            fix="replace these characters (icons of some fonts, as a rule)",
            path=path,
        )
    prompt = prompts.matching(text, reasons=any(field.kind is FieldKind.REASONING for field, _ in rendering.of(index)))
    earliest = len(prompt) if prompt is not None else _common_length(prompts.history, text)
    fields = find_fields(rendering, index, message, earliest)
    first = fields[0][1].start if fields else len(text)
    before = [span for field, spans in rendering.fields if field.message < index for span in spans or ()]
    floor = max((span.end for span in before if span.end <= first), default=0)
    if prompt is None:
        floor = max(floor, _end_of_unproved(rendering, index, first, prompts))
    start, context = _find_start(text, Span(floor, first), prompt, prompts)
    last = max((span.end for _, span in fields), default=start)
    stop = stops.find(text, Span(last, len(text)))
    if not fields and (stop is None or prompt is None):
        raise TemplateError(
            "the turn is empty, and the chat template does not show where it stands",
            expected="a content or a call to train",
            fix="give the message what the model should have said, or remove it",
            path=f"{path}.content",
        )
    end = stop.end if stop is not None else max(last, len(text.rstrip()))
    inside = next((span for span in before if span.end > start and span.start < end), None)
    if inside is not None:
        raise TemplateError(
            f"the chat template renders {text[slice(*inside)][:40]!r} of another message inside this assistant turn",
            expected="what was said before the turn in front of it",
            fix="use another chat template (`chat_template_path`)",
            path=path,
        )
    if stop is not None:
        fields = [*fields, (Region.STOP, stop)]
    return TrainedTurn(index, Span(start, end), tuple(fields), context, stop is not None)


def _end_of_unproved(rendering: Rendering, index: int, first: int, prompts: Prompts) -> int:
    """Return where what others said before a turn ends, as far as that could not be proved and is looked for.

    Raises:
        TemplateError: If it is nowhere before the turn: then nothing shows that it is not trained.
    """
    end = 0
    for field, spans in rendering.fields:
        if field.message >= index or spans is not None or prompts.messages[field.message]["role"] == "assistant":
            continue
        ends = [
            at + len(form) for form in written_forms(field.text) if (at := rendering.text.rfind(form, 0, first)) >= 0
        ]
        if not ends:
            raise TemplateError(
                f"it cannot be proved where {field} ends and this turn begins",
                expected="a template that goes on from its own prompts, or leaves other texts as they are",
                fix="use another chat template (`chat_template_path`)",
                path=f"messages[{index}]",
            )
        end = max(end, *ends)
    return end


def _find_start(text: str, within: Span, prompt: str | None, prompts: Prompts) -> tuple[int, Context]:
    """Return where a turn begins to be trained, between the last message and its first field, and behind what."""
    if prompt is not None:
        start, context = len(prompt), Context.EXACT
    else:
        start, context = _find_start_without_prompt(text, within, prompts)
    for pattern in prompts.habits.empty_thinking:
        # The prompt may end inside the block.
        for invented in pattern.finditer(text, max(within.start, start - _LONGEST_OPENING), within.end):
            if invented.start() <= start < invented.start() + len(invented[0].rstrip()):
                return invented.end(), Context.INVENTED_REASONING
    return start, context


def _find_start_without_prompt(text: str, within: Span, prompts: Prompts) -> tuple[int, Context]:
    """Return where a turn begins that goes on from no prompt: behind what it has in common with one."""
    usual, header = prompts.usual, prompts.habits.generation_prompt
    common = _common_length(usual or prompts.history, text)
    if usual is not None and common >= within.start:
        start = _between_tags(text, usual, min(common, within.end))
        reasons = TAG.search(usual, start) is not None
        return start, Context.OTHER_REASONING if reasons else Context.OTHER_TEXT
    context = Context.NO_PROMPT if usual is None else Context.OTHER_TEXT
    while header.strip():
        at = text.rfind(header, *within)
        if at >= 0:
            return at + len(header), context
        tags = list(TAG.finditer(header))
        header = header[: tags[-1].start()] if tags else ""
    return max(within.start, _between_tags(text, text, min(common, within.end))), context


def _between_tags(first: str, second: str, position: int) -> int:
    """Move a position of two texts back where a tag of either goes over it."""
    for text in (first, second):
        opened = max(text.rfind("<", 0, position), text.rfind("[", 0, position))
        tag = TAG.match(text, opened) if opened >= 0 else None
        if tag is not None and tag.end() > position:
            position = opened
    return position


def _common_length(first: str, second: str) -> int:
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(first), len(second)))
