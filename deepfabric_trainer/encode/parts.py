"""The renderings of a conversation in which each trained turn stands in the context that inference shows.

Templates rewrite history: Qwen3 and its kin delete the reasoning of earlier turns, gpt-oss ends the last turn with
another token. So one sequence cannot be right for every turn. What a turn must be is what the template makes of the
conversation up to and with it. The whole conversation trains the turns that it begins with, to the byte; each other
turn is trained in a rendering of its own, together with those before it that this one begins with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from deepfabric_trainer.encode.fields import missing, written_forms
from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.encode.turns import Context, Prompts, Stops, TrainedTurn, find_turn
from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import Message, Tool
from deepfabric_trainer.template import Catalogue, ChatTemplate, FieldKind, Habits, KnownTool, Rendering, Span


@dataclass(frozen=True)
class Part:
    """One sequence to train on.

    Args:
        rendering (`Rendering`): Of the conversation or its beginning.
        turns (`tuple[TrainedTurn, ...]`): What it trains; at least one.
        length (`int`): The messages that are rendered.
    """

    rendering: Rendering
    turns: tuple[TrainedTurn, ...]
    length: int


@dataclass(frozen=True)
class _OwnTurn:
    """A turn in the rendering of the conversation up to and with it."""

    rendering: Rendering
    turn: TrainedTurn
    prompts: Prompts

    def within(self, text: str) -> TrainedTurn | None:
        """Return the turn in another rendering, `None` when it is not there as it must be.

        That rendering may begin with this one. Or it may hold the trained text right behind the usual prompt, where
        this one puts an empty reasoning block between them.
        """
        start, end = self.turn.span
        begins = text.startswith(self.rendering.text[:end])
        if begins and self.turn.context is Context.EXACT:
            return self.turn
        prompt = self.prompts.usual
        if prompt is not None and text.startswith(prompt + self.rendering.text[start:end]):
            return self.turn.moved(len(prompt) - start, Context.EXACT)
        return self.turn if begins else None


class PartFinder:
    """Splits conversations into parts, for one template and one set of stop tokens.

    Args:
        template (`ChatTemplate`): Renders the conversations.
        stop_texts (`Sequence[str]`): The texts of the known stop tokens.
        special_texts (`Sequence[str]`): The texts of the tokenizer's special tokens.
    """

    def __init__(self, template: ChatTemplate, stop_texts: Sequence[str], special_texts: Sequence[str]) -> None:
        self.template = template
        self._habits: dict[str, Habits] = {}
        self._stop_texts = tuple(text for text in stop_texts if text)
        self._special_texts = tuple(text for text in special_texts if text)

    def habits(self, tools: Sequence[Tool] | None) -> Habits:
        """Return what the template for these tools does around a turn."""
        source = self.template.source(tools)
        if source not in self._habits:
            self._habits[source] = Habits(self.template, tools)
        return self._habits[source]

    def find(self, messages: Sequence[Message], tools: Sequence[Tool] | None, wanted: Sequence[int]) -> list[Part]:
        """Return the parts that train each wanted message exactly once, the longest part first.

        Args:
            messages (`Sequence[Message]`): The conversation.
            tools (`Sequence[Tool]`, *optional*): Its tools.
            wanted (`Sequence[int]`): The indices of the assistant messages to train, ascending.
        Raises:
            TemplateError: If a wanted turn, a tool or a message before it is not in any rendering.
        """
        whole = self.template.render_with_fields(messages, tools)
        check_context(whole, messages, tools)
        pending = [self._own_turn(whole, messages, tools, index) for index in wanted]
        parts: list[Part] = []
        candidates = [(len(messages), whole)]
        while pending:
            length, rendering = (
                candidates.pop() if candidates else (pending[-1].turn.message + 1, pending[-1].rendering)
            )
            found = {own.turn.message: own.within(rendering.text) for own in pending}
            turns = [self._with_stop(turn, rendering.text, tools) for turn in found.values() if turn is not None]
            if turns:
                if rendering is not whole:
                    check_context(rendering, messages[:length], tools)
                parts.append(Part(rendering, tuple(turns), length))
            pending = [own for own in pending if found[own.turn.message] is None]
        return parts

    def find_provable(
        self, rendering: Rendering, messages: Sequence[Message], tools: Sequence[Tool] | None, wanted: Sequence[int]
    ) -> list[TrainedTurn]:
        """Return those of the wanted turns that the rendering of the whole conversation holds as they must be."""
        turns = []
        for index in wanted:
            try:
                own = self._own_turn(rendering, messages, tools, index)
            except TemplateError:
                continue
            turn = own.within(rendering.text)
            if turn is not None:
                turns.append(self._with_stop(turn, rendering.text, tools))
        return turns

    def _own_turn(
        self, whole: Rendering, messages: Sequence[Message], tools: Sequence[Tool] | None, index: int
    ) -> _OwnTurn:
        if index + 1 == len(messages):
            rendering = whole
        else:
            text = self.template.render(messages[: index + 1], tools)
            # Where the conversation begins with the same text, the fields are in the same places.
            if whole.text.startswith(text):
                rendering = whole.beginning(len(text), index)
            else:
                rendering = self.template.render_with_fields(messages[: index + 1], tools)
        habits = self.habits(tools)
        prompts = Prompts(habits, messages[:index], tools)
        stops = Stops(self._stop_texts, self._special_texts, habits.after_turn)
        turn = find_turn(rendering, index, messages[index], prompts=prompts, stops=stops)
        return _OwnTurn(rendering, turn, prompts)

    def _with_stop(self, turn: TrainedTurn, text: str, tools: Sequence[Tool] | None) -> TrainedTurn:
        """Train the stop token that the template leaves to the next message, if there is one."""
        if turn.stops:
            return turn
        stops = Stops(self._stop_texts, self._special_texts)
        stop = stops.find_next(text, turn.span.end, self.habits(tools).generation_prompt)
        if stop is None:
            return turn
        span = Span(turn.span.start, stop.end)
        return replace(turn, span=span, fields=(*turn.fields, (Region.STOP, stop)), stops=True)


def check_context(rendering: Rendering, messages: Sequence[Message], tools: Sequence[Tool] | None) -> None:
    """Require that every tool and every text that is not the model's stands in the rendering.

    Raises:
        TemplateError: If the template left one out without a word; it names the field.
    """
    context = _without_assistant(rendering, messages) if tools else ""
    known = tools.known if isinstance(tools, Catalogue) else ()
    for number, tool in enumerate(tools or []):
        if known and shows_as_written(known[number], context):
            continue
        for text, path in texts_of(tool):
            if not stands_in(text, context):
                raise TemplateError(
                    f"the chat template leaves out {text!r} of the tool {tool['function']['name']!r}",
                    expected="a template that renders the tools of a row",
                    fix="use a chat template with tool support (`chat_template_path`), or remove the `tools` column",
                    path=f"tools[{number}]{path}",
                )
    for field, spans in rendering.fields:
        role = messages[field.message]["role"]
        if role != "assistant" and field.kind is FieldKind.CONTENT and _lacks(rendering, field.text, spans):
            raise TemplateError(
                f"the chat template leaves out a message of role {role!r}",
                expected="every message in the rendering",
                fix="use a chat template with a place for this role (`chat_template_path`), or remove the message",
                path=field.path,
            )


def shows_as_written(tool: KnownTool, context: str) -> bool:
    """Tell whether a text holds a tool as the template has written it out, with all that a model must see of it."""
    return any(text in context and shows_all(tool, text) for text in tool.written.values())


def shows_all(tool: KnownTool, written: str) -> bool:
    """Tell whether a tool, written out as a whole, holds all that a model must see of it."""
    found = tool.shows_all.get(written)
    if found is None:
        found = tool.shows_all[written] = all(stands_in(text, written) for text, _ in texts_of(tool.tool))
    return found


def check_assistant(rendering: Rendering, messages: Sequence[Message]) -> int:
    """Require that the content and the calls of every assistant message stand in the rendering.

    Returns:
        `int`: How many messages lost their reasoning, which templates delete from earlier turns.

    Raises:
        TemplateError: If the template left one out without a word; it names the field.
    """
    lost = set()
    for field, spans in rendering.fields:
        if messages[field.message]["role"] != "assistant" or not _lacks(rendering, field.text, spans):
            continue
        if field.kind is not FieldKind.REASONING:
            raise missing(field)
        lost.add(field.message)
    return len(lost)


def texts_of(tool: Tool) -> Iterator[tuple[str, str]]:
    """Go over what a model must see of a tool: its name, its description's first line, its parameters' names."""
    function = tool["function"]
    yield function["name"], ""
    lines = function.get("description", "").strip().splitlines()
    if lines:
        yield lines[0].strip(), ".function.description"
    properties = (function.get("parameters") or {}).get("properties")
    for name in properties if isinstance(properties, dict) else ():
        yield name, f".function.parameters.properties.{name}"


def stands_in(text: str, context: str) -> bool:
    """Tell whether a text stands in another, in any of the forms in which templates write it."""
    return text in context or any(form in context for form in written_forms(text))


def _lacks(rendering: Rendering, text: str, spans: tuple[Span, ...] | None) -> bool:
    """Tell whether a field is missing: proved by its brackets, or since its text stands nowhere."""
    if spans is not None:
        return not spans
    return not any(form in rendering.text for form in written_forms(text))


def _without_assistant(rendering: Rendering, messages: Sequence[Message]) -> str:
    """Return the rendering without the fields of the assistant's messages, as far as they are known."""
    kept, position = [], 0
    assistant = (
        span
        for field, spans in rendering.fields
        if messages[field.message]["role"] == "assistant"
        for span in spans or ()
    )
    for span in sorted(assistant):
        kept.append(rendering.text[position : max(position, span.start)])
        position = max(position, span.end)
    return "".join((*kept, rendering.text[position:]))
