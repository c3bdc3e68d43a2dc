"""Calls that stand in the assistant's text, where no chat template writes them."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from deepfabric_trainer.schema import Message
from deepfabric_trainer.validate.broken import Broken, shown
from deepfabric_trainer.validate.report import Rule, Severity

_MARKUP = re.compile(
    r"<tool_call>\s*(?:[{\[]|<function|[\w.-]+\s*<arg_key>)"  # Hermes and Qwen, Qwen3-Coder, GLM
    r"|<function_?calls?>\s*[{\[]"  # Glaive, xLAM
    r"|<function=[\w.-]+>\s*[{<]"  # Llama 3.1's own tools
    r"|\[TOOL_CALLS\]\s*[\[{\w]"  # Mistral
    r"|<\|python_tag\|>\s*\S"  # Llama 3.1
    r"|<\|tool_call_start\|>|<\|tool_calls_section_begin\|>|<\|tool_call\|?>\s*[\[{\w]"  # LFM2, Kimi, Granite, Phi-4
    r"|<｜tool▁calls?▁begin｜>"  # DeepSeek
    r"|<\|channel\|>\s*commentary\s+to="  # gpt-oss
)
_OBJECT = re.compile(r'\{\s*"(?:name|function|tool_calls|type|id)"\s*:')
_DECODER = json.JSONDecoder()


def check_text(messages: Sequence[Message], names: Collection[str]) -> Iterator[Broken]:
    """Check that no assistant content holds a call in its text.

    Args:
        messages (`Sequence[Message]`): The messages of a row.
        names (`Collection[str]`): The names of its tools.
    """
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        call = _find_call(message["content"], names)
        if call is None:
            continue
        besides = "beside the message's `tool_calls`" if message.get("tool_calls") else "and not in `tool_calls`"
        yield Broken(
            f"messages[{index}].content",
            Rule.CALL_IN_TEXT,
            f"the text holds a call, {besides}, so that it is trained as text: {shown(call, 80)}",
            "move it to the message's `tool_calls`, so that the chat template writes it",
            Severity.WARNING,
        )


def _find_call(content: str, names: Collection[str]) -> str | None:
    """Return the beginning of the first call in a text: known markup, a JSON object, or Python that names a tool."""
    markup = _MARKUP.search(content)
    if markup:
        return content[markup.start() : markup.start() + 200]
    if "{" in content and any(name in content for name in names):
        for found in _OBJECT.finditer(content):
            try:
                value, end = _DECODER.raw_decode(content, found.start())
            except (ValueError, RecursionError):
                continue
            if _names_a_tool(value, names):
                return content[found.start() : end]
    text = content.strip()
    if text.endswith((")", ")]")) and text.removeprefix("[").split("(", 1)[0].strip() in names:
        return text
    return None


def _names_a_tool(value: Any, names: Collection[str]) -> bool:
    if isinstance(value, list):
        return any(_names_a_tool(item, names) for item in value)
    if not isinstance(value, Mapping):
        return False
    name = value.get("name")
    if isinstance(name, str) and name in names and _has_arguments(value):
        return True
    return _names_a_tool(value.get("function"), names) or _names_a_tool(value.get("tool_calls"), names)


def _has_arguments(value: Mapping[str, Any]) -> bool:
    """Tell a call from the definition of a tool, whose `parameters` are a schema."""
    parameters = value.get("parameters")
    return "arguments" in value or (isinstance(parameters, Mapping) and "properties" not in parameters)
