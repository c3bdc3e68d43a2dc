"""Whether a chat template writes the tools before the system message."""

from typing import Any

from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.template import ChatTemplate

_SYSTEM, _TOOL = "zq7systemzq7", "zq7toolzq7"
_TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": _TOOL,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "A city."}},
                "required": ["city"],
            },
        },
    }
]
_MESSAGES: list[Any] = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "Hi"}]


def template_writes_tools_first(chat_template: ChatTemplate) -> bool:
    """Tell from a rendering whether a chat template writes the tools before the system message.

    A template that drops one of the two, or refuses system messages or tools, has the other first: rows differ only in
    what is written.

    Args:
        chat_template (`ChatTemplate`): The template.
    """
    text = _rendered(chat_template, _MESSAGES)
    if text is None:
        text = _rendered(chat_template, _MESSAGES[1:]) or ""
    tool, system = text.find(_TOOL), text.find(_SYSTEM)
    return tool >= 0 and (system < 0 or tool < system)


def _rendered(chat_template: ChatTemplate, messages: list[Any]) -> str | None:
    try:
        return chat_template.render(messages, _TOOLS)
    except TemplateError:
        return None
