"""Control tokens that a user, a system message, a tool or its result wrote, and that must stay plain text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepfabric_trainer.encode.fields import written_forms
from deepfabric_trainer.encode.tokens import RenderingTokenizer
from deepfabric_trainer.schema import Message, Tool
from deepfabric_trainer.template import Catalogue, KnownTool, Rendering, Span


def texts_with_control_tokens(
    messages: Sequence[Message], tools: Sequence[Tool] | None, tokenizer: RenderingTokenizer
) -> set[str]:
    """Return the texts of others than the assistant that hold control tokens of the chat template."""
    contents = (message["content"] for message in messages if message["role"] != "assistant")
    found = {text for text in contents if tokenizer.control.search(text)}
    if isinstance(tools, Catalogue):
        return found.union(*(_texts_of(tool, tokenizer) for tool in tools.known))
    return found | {text for text in _strings(tools) if tokenizer.control.search(text)}


def find_literals(
    rendering: Rendering, messages: Sequence[Message], texts: set[str], tokenizer: RenderingTokenizer
) -> list[Span]:
    """Find the control tokens of these texts in a rendering.

    Args:
        rendering (`Rendering`): Of the messages.
        messages (`Sequence[Message]`): The messages.
        texts (`set[str]`): What `texts_with_control_tokens` found.
        tokenizer (`RenderingTokenizer`): Knows what a control token is.
    Returns:
        `list[Span]`: In order, without overlap.
    """
    if not texts:
        return []
    places = [
        span
        for field, spans in rendering.fields
        if messages[field.message]["role"] != "assistant"
        for span in spans or ()
    ]
    proved = {rendering.text[start:end] for start, end in places}
    for text in texts:
        if text.strip() in proved:
            continue
        # A text that is nothing but the token reads like the template's own, unless quotes tell them apart.
        is_token = tokenizer.control_tokens(text.strip()) == [Span(0, len(text.strip()))]
        quoted = [f'"{text.strip()}"', f"'{text.strip()}'"]
        places += _occurrences(rendering.text, quoted if is_token else written_forms(text.strip()))
    literal: list[Span] = []
    for start, end in sorted(set(places)):
        for token in tokenizer.control_tokens(rendering.text[start:end]):
            span = Span(start + token.start, start + token.end)
            if not literal or span.start >= literal[-1].end:
                literal.append(span)
    return literal


def _texts_of(tool: KnownTool, tokenizer: RenderingTokenizer) -> frozenset[str]:
    """Return the texts of a tool that hold control tokens."""
    key = tokenizer.control.pattern
    found = tool.control_texts.get(key)
    if found is None:
        found = frozenset(text for text in _strings(tool.tool) if tokenizer.control.search(text))
        tool.control_texts[key] = found
    return found


def _occurrences(text: str, forms: Sequence[str]) -> Iterator[Span]:
    for form in forms:
        at = text.find(form)
        while at >= 0:
            yield Span(at, at + len(form))
            at = text.find(form, at + len(form))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
