"""Where the fields of an assistant message stand in a rendering: content, reasoning, and its calls in any notation."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import Message, ToolCall
from deepfabric_trainer.template import Field, FieldKind, Rendering, Span

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
_PAIRS = {'"': '"', "'": "'", "{": "}", "(": ")", "[": "]"}
_WHOLE = r"(?<![\w.])%s(?!\d)"
"""A number that is not a part of a longer one; templates may write the next name right behind it."""
_NEAR = 80
"""Characters between an argument's name and its value, at most."""

_Located = tuple[Field, tuple[Span, ...] | None]


def find_fields(rendering: Rendering, index: int, message: Message, start: int) -> list[tuple[Region, Span]]:
    """Find every field of an assistant message behind `start`, in order.

    What was bracketed is where its brackets were; what was not is looked for in the order of the fields.

    Args:
        rendering (`Rendering`): Of a conversation that goes at least as far as the message.
        index (`int`): The index of the message.
        message (`Message`): The message.
        start (`int`): Where the turn begins at the earliest; nothing before it is looked at.
    Raises:
        TemplateError: If a field is not there; it names the field.
    """
    located = rendering.of(index)
    found: list[tuple[Region, Span]] = []
    names: dict[int | None, Span] = {}
    cursor = start
    for field, spans in located:
        if field.kind not in _REGION_OF:
            continue
        places = _places(rendering.text, field, spans, cursor if field.call is not None else start)
        found += [(_REGION_OF[field.kind], place) for place in places]
        if field.call is not None:
            names[field.call] = places[0]
            cursor = places[0].end
    for number, call in enumerate(message.get("tool_calls", [])):
        own = [entry for entry in located if entry[0].call == number and entry[0].kind not in _REGION_OF]
        arguments = _Arguments(rendering.text, names[number], _limit(rendering.text, names, number), own)
        span = arguments.find(call, f"messages[{index}].tool_calls[{number}].function.arguments")
        if span is not None:
            found.append((Region.TOOL_ARGUMENTS, span))
    return sorted(found, key=lambda pair: pair[1])


def missing(field: Field) -> TemplateError:
    """Return the error for a field that the template leaves out."""
    inline = ""
    if field.kind is FieldKind.REASONING and not field.inline:
        inline = ', write it into the content (`reasoning="inline"`)'
    return TemplateError(
        f"the chat template leaves out {field}",
        expected="every field of a trained turn in the rendering",
        fix=f"use a chat template with a place for it (`chat_template_path`){inline}, or remove it from the row",
        path=field.path,
    )


def written_forms(text: str) -> list[str]:
    """Return the ways in which templates write a text: as it is, or escaped as in JSON."""
    forms = (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], repr(text)[1:-1])
    return list(dict.fromkeys(forms))


def json_forms(value: Any) -> Iterator[str]:
    """Go over the ways in which templates write a value as JSON."""
    return (json.dumps(value, **style) for style in _JSON_STYLES)  # type: ignore[arg-type]


def _places(text: str, field: Field, spans: tuple[Span, ...] | None, start: int) -> list[Span]:
    """Return where a field stands behind `start`: all its brackets, or the first place that reads like it."""
    if spans is not None:
        places = [Span(max(span.start, start), span.end) for span in spans if span.end > start]
    else:
        places = _search(text, written_forms(field.text), start, len(text))
    if not places:
        raise missing(field)
    return places


def _search(text: str, forms: Sequence[str], start: int, end: int) -> list[Span]:
    """Return the first place of any of these texts, as a list of one or none."""
    places = [Span(at, at + len(form)) for form in forms if (at := text.find(form, start, end)) >= 0]
    return [min(places, key=lambda place: (place.start, -place.end))] if places else []


def _limit(text: str, names: dict[int | None, Span], number: int) -> int:
    later = [span.start for span in names.values() if span.start > names[number].start]
    return min(later, default=len(text))


class _Arguments:
    """Finds the arguments of one call, in JSON or in any notation that writes names and values."""

    def __init__(self, text: str, name: Span, limit: int, fields: Sequence[_Located]) -> None:
        self.text = text
        self.name = name
        self.limit = limit
        self.fields = fields

    def find(self, call: ToolCall, path: str) -> Span | None:
        arguments = call["function"]["arguments"]
        known = [span for _, spans in self.fields for span in spans or ()]
        hull = Span(min(span.start for span in known), max(span.end for span in known)) if known else None
        written = self._find_json(arguments, hull)
        if written is not None or not arguments:
            return written
        for field, spans in self.fields:
            if spans == ():
                raise missing(field)
        placed = self._order(arguments, path)
        end = max(self._find_value(name, value, path) for name, value in placed)
        return self._with_brackets(placed[0][0].start, end)

    def _find_json(self, arguments: dict[str, Any], hull: Span | None) -> Span | None:
        for written in json_forms(arguments):
            first = self.name.end if hull is None else max(0, hull.start - len(written))
            last = self.limit if hull is None else hull.end + len(written)
            at = self.text.find(written, first, last)
            if at >= 0 and (hull is None or (at <= hull.start and hull.end <= at + len(written))):
                return Span(at, at + len(written))
        return None

    def _order(self, arguments: dict[str, Any], path: str) -> list[tuple[Span, Any]]:
        """Return the place of each argument's name with its value, in the order of the text."""
        names = [entry for entry in self.fields if entry[0].kind is FieldKind.ARGUMENT_NAME]
        by_text = {field.text: (field, spans) for field, spans in reversed(names)}
        placed: list[tuple[Span, Any]] = []
        cursor = self.name.end
        for name, value in arguments.items():
            if name.strip() not in by_text:
                raise self._error(path, f"the argument name {name!r} is blank")
            field, spans = by_text[name.strip()]
            places = list(spans) if spans else _search(self.text, written_forms(field.text), cursor, self.limit)
            if not places:
                raise missing(field)
            placed.append((places[0], value))
            cursor = places[0].end if not spans else cursor
        return sorted(placed, key=lambda pair: pair[0])

    def _find_value(self, name: Span, value: Any, path: str) -> int:
        """Return where the value of an argument ends, with the quote behind it."""
        place = self._place_of(value, name.end, _NEAR)
        if place is None:
            written = self.text[name.start : name.end]
            raise self._error(f"{path}.{written}", f"the argument {json.dumps(value, ensure_ascii=False)[:40]}")
        between = self.text[name.end : place.start]
        # What stands right before a value and right behind it is a quote, whatever it looks like.
        quotes = (between[at:] for at in range(len(between)))
        return place.end + max((len(quote) for quote in quotes if self.text.startswith(quote, place.end)), default=0)

    def _place_of(self, value: Any, start: int, near: int) -> Span | None:
        """Return where a value stands near behind `start`, as a whole or piece by piece."""
        if isinstance(value, str):
            return self._place_of_text(value.strip(), start, near, FieldKind.ARGUMENT)
        places = [
            Span(*match.span())
            for form in _value_forms(value)
            if (match := re.compile(_WHOLE % re.escape(form)).search(self.text, start, start + near + len(form)))
        ]
        if places:
            return min(places, key=lambda place: (place.start, -place.end))
        if isinstance(value, list | dict) and not value:
            return Span(start, start)
        found = list(self._places_inside(value, start)) if isinstance(value, list | dict) else []
        known = [place for place in found if place is not None]
        return (
            Span(min(known).start, max(place.end for place in known)) if known and len(known) == len(found) else None
        )

    def _places_inside(self, value: Any, start: int) -> Iterator[Span | None]:
        """Give the places of a list's items, one behind the other, or of an object's names with their values."""
        cursor: int | None = start
        for item in value if isinstance(value, list) else ():
            place = None if cursor is None else self._place_of(item, cursor, self.limit - cursor)
            cursor = None if place is None else place.end
            yield place
        for name, item in value.items() if isinstance(value, dict) else ():
            place = self._place_of_text(name.strip(), start, self.limit - start, FieldKind.ARGUMENT_NAME)
            yield place
            yield None if place is None else self._place_of(item, place.end, self.limit - place.end)

    def _place_of_text(self, text: str, start: int, near: int, kind: FieldKind) -> Span | None:
        if not text:
            return Span(start, start)
        spans = [spans for field, spans in self.fields if field.kind is kind and field.text == text]
        known = [span for own in spans for span in own or () if span.start >= start]
        if known:
            return min(known)
        places = _search(self.text, written_forms(text), start, min(self.limit, start + near + 2 * len(text)))
        return places[0] if places else None

    def _with_brackets(self, start: int, end: int) -> Span:
        """Take the brackets around all arguments into the span."""
        while start > 0 and end < len(self.text) and _PAIRS.get(self.text[start - 1]) == self.text[end]:
            start, end = start - 1, end + 1
        return Span(start, end)

    def _error(self, path: str, what: str) -> TemplateError:
        return TemplateError(
            f"the chat template leaves out {what}, or writes it in a way that is not understood",
            expected="every argument of a trained call in the rendering",
            fix="use another chat template (`chat_template_path`), or change the argument",
            path=path,
        )


def _value_forms(value: Any) -> list[str]:
    """Return the ways in which templates write a number, a truth value, a null, a list or an object as a whole."""
    return list(dict.fromkeys((*json_forms(value), str(value))))
