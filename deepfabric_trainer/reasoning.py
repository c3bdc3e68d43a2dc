"""Where a row's reasoning goes: into the template's own place for it, into the text, or nowhere."""

from collections.abc import Callable, Sequence
from enum import StrEnum

from deepfabric_trainer.schema import Conversation, Message


class ReasoningMode(StrEnum):
    """Where the `reasoning` column of a row goes; what a message already has is never replaced."""

    AUTO = "auto"
    """Where the template has a place for it; nowhere if it has none."""
    INLINE = "inline"
    """Into the content, between `<think>` tags."""
    NONE = "none"
    """Nowhere, and the messages' own `reasoning_content` is left out too."""


def place_reasoning(
    conversation: Conversation, mode: ReasoningMode, template_has_place: Callable[[], bool]
) -> list[Message]:
    """Return the conversation's messages with its reasoning in place.

    The trace belongs to the turn that first answers the last request, where inference would produce it.

    Args:
        conversation (`Conversation`): The normalized row.
        mode (`ReasoningMode`): Where the reasoning goes.
        template_has_place (`Callable[[], bool]`): Tells whether the template renders `reasoning_content`; asked only
            when it matters.
    """
    messages = conversation.messages
    if mode is ReasoningMode.NONE:
        return [_without_reasoning(message) for message in messages]
    if mode is ReasoningMode.INLINE:
        messages = [_inline(message) for message in messages]
    index = _first_answer(messages)
    if conversation.reasoning is None or index is None or any(_has_reasoning(message) for message in messages):
        return messages
    answer = Message(**{**messages[index], "reasoning_content": conversation.reasoning.text})
    if mode is ReasoningMode.INLINE:
        answer = _inline(answer)
    elif not template_has_place():
        return messages
    return [*messages[:index], answer, *messages[index + 1 :]]


def _first_answer(messages: Sequence[Message]) -> int | None:
    """Return the index of the first assistant message after the last user message that has one."""
    answer = None
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and (index == 0 or messages[index - 1]["role"] in ("user", "system")):
            answer = index
    return answer


def _has_reasoning(message: Message) -> bool:
    return message["role"] == "assistant" and ("reasoning_content" in message or "</think>" in message["content"])


def _inline(message: Message) -> Message:
    if message["role"] != "assistant" or "reasoning_content" not in message:
        return message
    plain = _without_reasoning(message)
    plain["content"] = f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}"
    return plain


def _without_reasoning(message: Message) -> Message:
    plain = message.copy()
    plain.pop("reasoning_content", None)
    return plain
