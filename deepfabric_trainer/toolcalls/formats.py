"""How a chat template writes tool calls.

The template itself is asked, by rendering a probe; nobody goes by a model's name. A `CallFormat` is one way of writing
calls, and `_FORMATS` lists the known ones.
"""

import re
from dataclasses import dataclass
from typing import Any, Protocol

from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import strict_json


@dataclass(frozen=True)
class Dialect:
    """How a template writes calls, and whether its generation prompt leaves `<think>` open."""

    call_format: "CallFormat"
    opens_reasoning: bool


_known_dialects: dict[str, Dialect] = {}


def find_dialect(processing_class: Any) -> Dialect:
    """Ask the chat template of a tokenizer or processor how it writes calls.

    Raises:
        TemplateError: If there is no template, or it drops calls, or writes them in no known format.
    """
    template = repr(getattr(processing_class, "chat_template", None))
    if template not in _known_dialects:
        probe = _render_probe(processing_class)
        opens_reasoning = probe.prompt.rfind("<think>") > probe.prompt.rfind("</think>")
        _known_dialects[template] = Dialect(_find_format(probe), opens_reasoning)
    return _known_dialects[template]


@dataclass(frozen=True)
class FoundCall:
    """A call, or the attempt at one, in `text[start:end]`: either `function` or `error` is set."""

    start: int
    end: int
    function: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class RenderedProbe:
    """What a template writes around a call's name and arguments; `prompt` is the generation prompt before the turn."""

    prompt: str
    before: str
    between: str
    after: str


class CallFormat(Protocol):
    """One way of writing tool calls."""

    def writes(self, probe: RenderedProbe) -> bool:
        """Return whether a template that wrote `probe` writes its calls this way."""

    def next_call(self, text: str, position: int) -> FoundCall | None:
        """Return the first call, or attempt at one, at or after `position`."""


class TaggedJsonFormat:
    """Hermes and Qwen: `<tool_call>`, a JSON object with `name` and `arguments`, `</tool_call>`."""

    _OPEN, _CLOSE = "<tool_call>", "</tool_call>"

    def writes(self, probe: RenderedProbe) -> bool:
        """See [`CallFormat`]."""
        return bool(
            re.search(r'<tool_call>\s*\{\s*"name":\s*"$', probe.before)
            and re.fullmatch(r'"\s*,\s*"arguments":\s*\{\s*"\w+":\s*"', probe.between)
            and re.match(r'"\s*\}\s*\}\s*</tool_call>', probe.after)
        )

    def next_call(self, text: str, position: int) -> FoundCall | None:
        """See [`CallFormat`]."""
        start, stray = text.find(self._OPEN, position), text.find(self._CLOSE, position)
        if stray != -1 and (start == -1 or stray < start):
            return FoundCall(stray, len(text), error=f"{self._CLOSE} without {self._OPEN}")
        if start == -1:
            return None
        try:
            function, end = _read_function(text, start + len(self._OPEN), ("arguments",))
        except _Malformed as malformed:
            return FoundCall(start, len(text), error=str(malformed))
        end = _skip_space(text, end)
        if not text.startswith(self._CLOSE, end):
            return FoundCall(start, len(text), error=f"the call is not closed by {self._CLOSE}")
        return FoundCall(start, end + len(self._CLOSE), function=function)


class BareJsonFormat:
    """Llama 3.1: the turn is a JSON object with `name` and `parameters`, perhaps after `<|python_tag|>`."""

    _TAG = "<|python_tag|>"
    _SEPARATORS = re.compile(r"[\s;,]*")
    _ATTEMPT = re.compile(r'\{\s*(?:"(?:name|type|function|parameters|arguments)"|"?\w*$)')

    def writes(self, probe: RenderedProbe) -> bool:
        """See [`CallFormat`]."""
        turn = probe.before.removeprefix(probe.prompt).strip().removeprefix(self._TAG)
        return bool(
            re.fullmatch(r'\{\s*"name":\s*"', turn)
            and re.fullmatch(r'"\s*,\s*"(?:parameters|arguments)":\s*\{\s*"\w+":\s*"', probe.between)
        )

    def next_call(self, text: str, position: int) -> FoundCall | None:
        """See [`CallFormat`]."""
        match = self._SEPARATORS.match(text, position)
        begin = match.end() if match else position
        tag = text.find(self._TAG, position)
        tagged = tag != -1 and (tag == begin or not text.startswith("{", begin))
        if tagged:
            start, begin = tag, tag + len(self._TAG)
        elif self._ATTEMPT.match(text, begin):
            start = position
        else:
            return None
        try:
            function, end = _read_function(text, begin, ("parameters", "arguments"))
        except _Malformed as malformed:
            return FoundCall(start, len(text), error=str(malformed))
        return FoundCall(start, end, function=function)


_FORMATS: tuple[CallFormat, ...] = (TaggedJsonFormat(), BareJsonFormat())


class _Malformed(Exception):
    """A call that cannot be read."""


_DECODER = strict_json.decoder()


def _read_function(text: str, position: int, keys: tuple[str, ...]) -> tuple[dict[str, Any], int]:
    """Read one JSON call at `position`; return it with the position after it."""
    try:
        value, end = _DECODER.raw_decode(text, _skip_space(text, position))
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"the call is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise _Malformed(f"the call is a {type(value).__name__}, not an object")
    if not isinstance(value.get("name"), str) or not value["name"]:
        raise _Malformed("the call has no name")
    arguments = next((value[key] for key in keys if key in value), None)
    if not isinstance(arguments, dict):
        raise _Malformed(f"the {keys[0]} of {value['name']!r} are not an object")
    return {"name": value["name"], "arguments": arguments}, end


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


_PROBE_NAME, _PROBE_KEY, _PROBE_VALUE = "probe_tool_name", "probe_key", "probe_argument_value"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _PROBE_NAME,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {_PROBE_KEY: {"type": "string", "description": "A value."}}},
    },
}
_PROBE_CALL = {
    "id": "probe0000",
    "type": "function",
    "function": {"name": _PROBE_NAME, "arguments": {_PROBE_KEY: _PROBE_VALUE}},
}
_PROBE_MESSAGES = [
    {"role": "user", "content": "Probe."},
    {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]},
]


def _find_format(probe: RenderedProbe) -> CallFormat:
    for call_format in _FORMATS:
        if call_format.writes(probe):
            return call_format
    wrapper = f"{probe.before[-60:]}NAME{probe.between[:60]}ARGUMENTS{probe.after[:60]}"
    raise TemplateError(
        f"the chat template writes tool calls in a format that is not known: {wrapper!r}",
        expected='`<tool_call>{"name": ..., "arguments": ...}</tool_call>` or `{"name": ..., "parameters": ...}`',
        fix="use a tokenizer with such a template, or read the calls yourself and use `score_tool_calls`",
    )


def _render_probe(processing_class: Any) -> RenderedProbe:
    try:
        options = {"tools": [_PROBE_TOOL], "tokenize": False}
        text = processing_class.apply_chat_template(_PROBE_MESSAGES, **options)
        prompt = processing_class.apply_chat_template(_PROBE_MESSAGES[:1], add_generation_prompt=True, **options)
    except Exception as error:
        raise TemplateError(
            f"the chat template cannot render a tool call ({type(error).__name__}: {error})",
            expected="a template that renders `tools` and `tool_calls`",
            fix="set `processing_class.chat_template` to one that does",
        ) from error
    value_at = text.rfind(_PROBE_VALUE)
    name_at = text.rfind(_PROBE_NAME, 0, max(value_at, 0))
    if value_at == -1 or name_at == -1:
        raise TemplateError(
            "the chat template drops tool calls",
            expected="a template that renders the name and the arguments of `tool_calls`",
            fix="set `processing_class.chat_template` to one that does",
        )
    between = text[name_at + len(_PROBE_NAME) : value_at]
    return RenderedProbe(prompt, text[:name_at], between, text[value_at + len(_PROBE_VALUE) :])
