"""Learning from probes how a template writes calls: candidates, of which one reads all probes back."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepfabric_trainer.template.habits import TAG
from deepfabric_trainer.toolcalls import probes
from deepfabric_trainer.toolcalls.notation import CallNotation
from deepfabric_trainer.toolcalls.pieces import common_end, common_start, lenient, pieces
from deepfabric_trainer.toolcalls.probes import Prober
from deepfabric_trainer.toolcalls.readers import (
    JsonReader,
    KeyedReader,
    NamedJsonReader,
    PythonicReader,
    Reader,
)
from deepfabric_trainer.toolcalls.turns import TurnForm
from deepfabric_trainer.toolcalls.values import Malformed, read_json, read_value
from deepfabric_trainer.toolcalls.xml_reader import XmlReader

_Core = tuple[int, int]
"""Where one call begins and ends, without what stands around every call."""
_Found = Iterator[tuple[Reader, list[_Core]]]
_KEY, _OTHER_KEY = probes.KEYS
_VALUE, _OTHER_VALUE = probes.VALUES
_ARGUMENTS = probes.plain_call()[1]
_MOST_BRACES = 60


@dataclass(frozen=True)
class _Written:
    """The calls of a probe as the template writes them.

    Args:
        text (`str`): The turn up to its end, without reasoning.
        names (`list[str]`): The names of its calls.
        typed (`str`): A turn with a call whose first argument is the number 7.
        plain_tags (`frozenset[str]`): The tags of turns without calls.
        header_end (`str`): The tag that ends headers; empty where there are none.
    """

    text: str
    names: list[str]
    typed: str
    plain_tags: frozenset[str]
    header_end: str

    def heads(self) -> list[_Core] | None:
        """Return where the name of each call stands that is the last before its arguments."""
        heads, position = [], 0
        for name in self.names:
            key = self.text.find(_KEY, max(self.text.find(name, position), position))
            start = self.text.rfind(name, position, max(key, 0))
            if start == -1:
                return None
            heads.append((start, start + len(name)))
            position = self.text.find(_OTHER_VALUE, key)
        return heads


def call_candidates(prober: Prober, form: TurnForm) -> Iterator[CallNotation]:
    """Go over the ways in which the calls of a template may be written, the likeliest first."""
    calls = [probes.plain_call(), probes.plain_call(probes.SECOND)]
    plain = [prober.turn(content=probes.ANSWER, reasoning=thought) or "" for thought in (None, probes.THOUGHT)]
    tags = frozenset(tag for text in plain for tag in TAG.findall(text))
    typed = form.body(prober.turn((probes.FIRST, {"count": 7, _KEY: _VALUE})) or "")
    with_content = (prober.turn(calls[0], content=probes.ANSWER) or "").partition(_KEY)[0]
    for shown in (calls, calls[:1]):
        text = form.body(prober.turn(*shown) or "")
        names = [name for name, _ in shown]
        if not all(name in text for name in names):
            continue
        written = _Written(text, names, typed, tags, form.header_end)
        for find in (_json, _named_json, _pythonic, _keyed, _xml):
            for reader, cores in find(written):
                notation = _around(written, reader, cores)
                behind = not notation.is_introduced and probes.ANSWER in with_content
                yield replace(notation, after_content=behind)


def _json(written: _Written) -> _Found:
    for outermost in (True, False):
        found = [_object_of(written, name, outermost) for name in written.names]
        cores = [core for _, core in found if core is not None]
        if found[0][0] is not None and len(cores) == len(found):
            yield found[0][0], cores


def _object_of(written: _Written, name: str, outermost: bool) -> tuple[JsonReader | None, _Core | None]:
    """Return the object that holds a call's name and arguments, the smallest or the largest of one call."""
    text, best = written.text, None
    start = text.find(name)
    for _ in range(_MOST_BRACES):
        start = text.rfind("{", 0, max(start, 0))
        if start == -1:
            break
        try:
            value, end = read_value(text, start)
        except Malformed:
            continue
        reader = _reader_of(value, name)
        if reader is None or any(other in text[start:end] for other in written.names if other != name):
            continue
        best = replace(reader, is_python=_is_python(text, start)), (start, end)
        if not outermost:
            break
    return best or (None, None)


def _is_python(text: str, start: int) -> bool:
    try:
        read_json(text, start)
    except Malformed:
        return True
    return False


def _reader_of(value: Any, name: str) -> JsonReader | None:
    """Return the reader for an object that holds, perhaps inside others, a name and the arguments of the probe."""
    if not isinstance(value, dict):
        return None
    names = [key for key, item in value.items() if item == name]
    arguments = [key for key, item in value.items() if item in (_ARGUMENTS, json.dumps(_ARGUMENTS))]
    if names and arguments:
        return JsonReader((), names[-1], arguments[0], as_text=isinstance(value[arguments[0]], str))
    inside = ((key, _reader_of(item, name)) for key, item in value.items())
    return next((replace(reader, outer=(key, *reader.outer)) for key, reader in inside if reader is not None), None)


def _named_json(written: _Written) -> _Found:
    cores, between = [], ""
    for start, end in written.heads() or ():
        brace = written.text.find("{", end)
        try:
            value, behind = read_json(written.text, max(brace, 0))
        except Malformed:
            return
        if value != _ARGUMENTS:
            return
        cores.append((start, behind))
        between = between or written.text[end:brace]
    if cores:
        yield NamedJsonReader(_between_pattern(between, written.header_end)), cores


def _between_pattern(between: str, header_end: str) -> str:
    """Return a pattern for what stands between name and arguments: ids and numbers of calls vary, headers too."""
    parts = re.split(r"(probe000\d|(?<=:)\d+)", between)
    pattern = "".join(r"[\w.:\-]*" if index % 2 else lenient(part) for index, part in enumerate(parts))
    if header_end and header_end in between:
        return rf"(?:{pattern}|[^{{}}]{{0,80}}?{re.escape(header_end)}\s*)"
    return pattern


def _pythonic(written: _Written) -> _Found:
    for escapes in (True, False):
        yield from _read_from_heads(written, PythonicReader(escapes))


def _keyed(written: _Written) -> _Found:
    heads, text = written.heads(), written.text
    if not heads:
        return
    end = heads[0][1]
    key, value, other = text.find(_KEY, end), text.find(_VALUE, end), text.find(_OTHER_KEY, end)
    brace = text.rfind("{", end, max(key, end))
    opening = text[key + len(_KEY) : value].strip().removeprefix(":").strip()
    closing = text[value + len(_VALUE) : other].strip().removesuffix(",").strip()
    if min(brace, value, other) != -1 and opening and closing:
        yield from _read_from_heads(written, KeyedReader(lenient(text[end:brace]), opening, closing))


def _read_from_heads(written: _Written, reader: Reader) -> _Found:
    cores = []
    for start, _ in written.heads() or ():
        try:
            function, end = reader.read(written.text, start, {})
        except Malformed:
            return
        if function["arguments"] != _ARGUMENTS:
            return
        cores.append((start, end))
    if cores:
        yield reader, cores


def _xml(written: _Written) -> _Found:
    heads, text = written.heads(), written.text
    if not heads:
        return
    end = heads[0][1]
    places = [text.find(part, end) for part in (_KEY, _VALUE, _OTHER_KEY, _OTHER_VALUE)]
    if -1 in places or places != sorted(places):
        return
    key, value, other, _ = places
    before_key, between = text[end:key], text[key + len(_KEY) : value]
    turning = text[value + len(_VALUE) : other]
    tail = text.rpartition(_OTHER_VALUE)[2]
    opening, closing = common_end(before_key, turning), common_start(turning, tail)
    if not opening.strip() or not closing.strip():
        return
    number = written.typed.partition("count")[2].partition("7")
    quoted = between.endswith('"') and closing.startswith('"')
    ends = [text.find(_OTHER_VALUE, start) + len(_OTHER_VALUE + closing) for _, start in heads]
    behind = {next((piece for piece in pieces(text[end:]) if piece.strip()), "") for end in ends}
    reader = XmlReader(
        after_name=before_key.removesuffix(opening).strip(),
        opening=opening,
        between=between[:-1] if quoted else between,
        between_other=number[0] if number[1] and not quoted else between[:-1] if quoted else between,
        closing=closing[1:] if quoted else closing,
        following="|".join(re.escape(piece) for piece in sorted(behind) if piece) or "$",
        quoted=quoted,
    )
    yield reader, [(start, end) for (start, _), end in zip(heads, ends, strict=True)]


def _around(written: _Written, reader: Reader, cores: Sequence[_Core]) -> CallNotation:
    """Tell what stands before each call from what stands before the first, and so behind."""
    text = written.text
    before = _distinctive(text[: cores[0][0]], written)
    behind = text[cores[-1][1] :].rstrip()
    if len(cores) == 1:
        return CallNotation(reader, item_open=before.strip(), item_close=behind.strip())
    between = text[cores[0][1] : cores[1][0]]
    item_open = common_end(before, between)
    between = between.removesuffix(item_open)
    item_close = common_start(between, behind)
    separator = between.removeprefix(item_close)
    return CallNotation(
        reader,
        block_open=before.removesuffix(item_open).strip(),
        item_open=item_open.strip(),
        item_close=item_close.strip(),
        separator="" if TAG.search(separator) else separator.strip(),
        block_close=behind.removeprefix(item_close).strip(),
    )


def _distinctive(before: str, written: _Written) -> str:
    """Return what tells of a call: it begins behind the last name and the last tag of any other turn."""
    for name in written.names:
        before = before.rpartition(name)[2]
    last = max((before.rfind(tag) + len(tag) for tag in written.plain_tags if tag in before), default=0)
    return before[last:]
