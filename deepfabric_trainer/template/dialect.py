"""The form in which a template wants messages: arguments as an object or as JSON text, contents as text or in parts.

Templates disagree. Some write arguments out with `tojson`, and encode a JSON text a second time; some join them to
other text, and refuse an object or write it as Python does. Some refuse a message without content, others take an
empty one for an answer. Those of vision models want contents as lists of parts. Probes show what is rendered right.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import FunctionCall, Message, NullText, ToolCall

_OWN_KEYS = ("train", "weight")
"""Keys of a message that speak to the training, not to the template."""


@dataclass(frozen=True)
class Dialect:
    """How messages go into a template.

    Args:
        json_arguments (`bool`): Arguments go in as JSON text, not as an object.
        omits_content (`bool`, *optional*): Whether a message that only makes calls goes in without its empty content,
            as `apply_chat_template` passes a null on; `None`: when it came with null.
        text_parts (`bool`): Contents go in as lists with one part of type text.
    """

    json_arguments: bool = False
    omits_content: bool | None = None
    text_parts: bool = False

    def __call__(self, message: Message) -> dict[str, Any]:
        """Return a message as the template wants it."""
        spoken: dict[str, Any] = {key: value for key, value in message.items() if key not in _OWN_KEYS}
        content = message["content"]
        if self.text_parts:
            spoken["content"] = [{"type": "text", "text": content}]
        elif not content:
            omits = isinstance(content, NullText) if self.omits_content is None else self.omits_content
            spoken["content"] = None if omits and "tool_calls" in message else ""
        if self.json_arguments and "tool_calls" in message:
            spoken["tool_calls"] = [_with_json_arguments(call) for call in message["tool_calls"]]
        return spoken


Render = Callable[[Dialect, Sequence[Message]], str]
"""Renders messages in a dialect; raises `TemplateError` where the template refuses them."""
_QUESTION, _NAME, _KEY, _TEXT = "probe question", "probe_tool", "probe_key", 'probe "text"'


def choose_dialect(render: Render) -> Dialect:
    """Return the dialect in which a template renders contents and calls best."""
    question = Message(role="user", content=_QUESTION)
    parts = _QUESTION not in _try(render, Dialect(), [question]) and _QUESTION in _try(
        render, Dialect(text_parts=True), [question]
    )
    function = FunctionCall(name=_NAME, arguments={_KEY: _TEXT, "probe_number": 7})
    call = ToolCall(type="function", function=function, id="probe0001")
    probe = [question, Message(role="assistant", content="", tool_calls=[call])]

    def quality(dialect: Dialect) -> int:
        return _quality(_try(render, dialect, probe))

    # As text first, and each only when it is better than what came before it.
    forms = [Dialect(as_json, omits, parts) for omits in (False, True) for as_json in (False, True)]
    best = max(forms, key=quality)
    other = replace(best, omits_content=not best.omits_content)
    return replace(best, omits_content=None) if quality(other) == quality(best) else best


def _try(render: Render, dialect: Dialect, messages: Sequence[Message]) -> str:
    try:
        return render(dialect, messages)
    except TemplateError:
        return ""


def _quality(text: str) -> int:
    """Rate a rendering of the probe: 3 when its call stands there once and undamaged."""
    if not text or not all(piece in text for piece in (_NAME, _KEY, "probe ")):
        return bool(text)
    twice = json.dumps(json.dumps({_KEY: 0}))[2:14]
    return 2 if twice in text or f"{{'{_KEY}'" in text else 3


def _with_json_arguments(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}
