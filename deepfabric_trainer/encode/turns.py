"""What of a rendering one assistant turn trains: from after the generation prompt to the stop token."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import Message, ToolCall
from deepfabric_trainer.template import Field, FieldKind, Rendering, Span
from deepfabric_trainer.template.brackets import has_brackets

_EMPTY_THINKING = re.compile(r"\s*<(think|thinking)>\s*</\1>\s*")
_JSON_STYLES = [
    {"ensure_ascii": ascii_only, "separators": separators}
    for ascii_only in (False, True)
    for separators in ((", ", ": "), (",", ":"))
]
_REGION_OF = {
    FieldKind.CONTENT: Region.CONTENT,
    FieldKind.REASONING: Region.REASONING,
    FieldKind.TOOL_NAME: Region.TOOL_NAME,
}


@dataclass(frozen=True)
class TrainedTurn:
    """The characters of a rendering that an assistant message trains.

    Args:
        message (`int`): The index of the message.
        span (`Span`): From the first character that the model must produce to the end of the stop token.
        fields (`tuple[tuple[Region, Span], ...]`): What the message's fields gave, and the stop token, in order; the
            rest of the span is format.
        exact_context (`bool`): Whether the text before the span is the prompt of inference, to the byte.
    """

    message: int
    span: Span
    fields: tuple[tuple[Region, Span], ...]
    exact_context: bool


def find_turn(
    rendering: Rendering,
    index: int,
    message: Message,
    *,
    prompt: str | None,
    quiet_prompt: Callable[[], str] | None,
    generation_prompt: str,
    stop_texts: Sequence[str],
    special_texts: Sequence[str],
) -> TrainedTurn:
    """Find what an assistant message trains in a rendering that holds it.

    Args:
        rendering (`Rendering`): Of a conversation that goes at least as far as the message.
        index (`int`): The index of the message.
        message (`Message`): The message itself.
        prompt (`str`, *optional*): What inference shows before the turn; `None` when the template renders none.
        quiet_prompt (`Callable[[], str]`, *optional*): Renders what inference shows when it asks for no reasoning.
        generation_prompt (`str`): What the template appends to ask for an assistant turn.
        stop_texts (`Sequence[str]`): The texts of the stop tokens that are known, tried first.
        special_texts (`Sequence[str]`): The texts of the tokenizer's special tokens.
    Raises:
        TemplateError: If a field of the message is not in its span, or no stop token follows; it names the field.
    """
    path = f"messages[{index}]"
    span = rendering.messages[index]
    if span is None and has_brackets(rendering.text):
        raise TemplateError(
            "the text holds private-use characters of planes 15 and 16, with which spans are found",
            expected="text without them",
            fix="replace these characters (icons of some fonts, as a rule)",
            path=path,
        )
    if span is None:
        raise TemplateError(
            "it cannot be proved which characters of the rendering this turn gave: the template does not go over the "
            "messages in a loop, or renders this one to nothing",
            fix="use a chat template that loops over `messages`, such as one of those that `trl` ships",
            path=path,
        )
    fields = _find_fields(rendering, index, message, span, path)
    last = max((found.end for _, found in fields), default=span.start)
    exact = prompt is not None and rendering.text.startswith(prompt) and len(prompt) >= span.start
    if exact and prompt is not None:
        start = len(prompt)
    else:
        start = span.start + _common_length(generation_prompt, rendering.text[span.start : span.end])
    if any(found.start < start for _, found in fields):
        raise TemplateError(
            "the generation prompt reaches into the turn's own fields, so the model would not be trained on all of it",
            fix="remove from the message what the generation prompt already supplies",
            path=path,
        )
    first = min((found.start for _, found in fields), default=span.end)
    invented = _EMPTY_THINKING.match(rendering.text, start, span.end)
    if invented and invented.end() <= first:
        start = invented.end()
        exact = exact and quiet_prompt is not None and rendering.text[:start] == quiet_prompt()
    stop = _find_stop(rendering.text, Span(max(last, start), span.end), stop_texts, special_texts, path)
    return TrainedTurn(index, Span(start, stop.end), (*fields, (Region.STOP, stop)), exact)


def _find_fields(
    rendering: Rendering, index: int, message: Message, span: Span, path: str
) -> list[tuple[Region, Span]]:
    """Find every field of the message inside its span, in order."""
    found: list[tuple[Region, Span]] = []
    calls = message.get("tool_calls", [])
    cursor = span.start
    for field, marked in rendering.fields:
        if field.message != index or field.kind is FieldKind.ARGUMENT:
            continue
        where = None if field in rendering.left_out else _search(rendering.text, field, marked, Span(cursor, span.end))
        if where is None:
            raise TemplateError(
                f"the chat template leaves out {described(field)}",
                expected="every field of a trained turn in the rendering",
                fix="use a chat template with a place for it (`chat_template_path`), or remove it from the row",
                path=f"{path}.{path_of(field)}",
            )
        found.append((_REGION_OF[field.kind], where))
        cursor = where.end if field.kind is FieldKind.TOOL_NAME else cursor
        if field.kind is FieldKind.TOOL_NAME and field.call is not None:
            arguments = _find_arguments(rendering.text, calls[field.call], Span(where.end, span.end), field.call, path)
            if arguments is not None:
                found.append((Region.TOOL_ARGUMENTS, arguments))
                cursor = arguments.end
    return sorted(found, key=lambda pair: pair[1])


def _search(text: str, field: Field, marked: Span | None, within: Span) -> Span | None:
    if marked is not None:
        return marked if within.start <= marked.start and marked.end <= within.end else None
    start = text.find(field.text, *within)
    return Span(start, start + len(field.text)) if start >= 0 else None


def _find_arguments(text: str, call: ToolCall, within: Span, number: int, path: str) -> Span | None:
    arguments = call["function"]["arguments"]
    for style in _JSON_STYLES:
        written = json.dumps(arguments, **style)  # type: ignore[arg-type]
        start = text.find(written, *within)
        if start >= 0:
            return Span(start, start + len(written))
    if not arguments:
        return None
    raise TemplateError(
        "the call's arguments do not stand in the rendering as JSON",
        expected="a template that writes arguments as JSON; other notations cannot be proved yet",
        fix="use a chat template that writes calls as JSON (`chat_template_path`)",
        path=f"{path}.tool_calls[{number}].function.arguments",
    )


def _find_stop(text: str, within: Span, stops: Sequence[str], specials: Sequence[str], path: str) -> Span:
    for candidates in (stops, specials):
        starts = [(text.find(stop, *within), stop) for stop in candidates]
        present = [(start, stop) for start, stop in starts if start >= 0]
        if present:
            start, stop = min(present)
            return Span(start, start + len(stop))
    raise TemplateError(
        f"no stop token follows the turn, only {text[within.start : within.end][:40]!r}",
        expected="the turn to end in a special token of the tokenizer, so that the model learns to stop",
        fix="use a chat template that ends each assistant turn itself, or set `eos_token` to the token that ends it",
        path=path,
    )


def _common_length(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(first), len(second)))


def described(field: Field) -> str:
    """Return a field in words, for an error."""
    shortened = field.text if len(field.text) <= 40 else f"{field.text[:39]}…"
    return f"the {field.kind.name.lower().replace('_', ' ')} {shortened!r}"


def path_of(field: Field) -> str:
    """Return a field's path inside its message."""
    return field.kind.value.replace("[]", f"[{field.call}]")
