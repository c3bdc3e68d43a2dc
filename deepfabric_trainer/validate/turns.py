"""The rules of the messages as turns: who speaks when, and whether there is something to learn."""

from collections.abc import Iterator, Sequence

from deepfabric_trainer.schema import Message
from deepfabric_trainer.validate.broken import Broken
from deepfabric_trainer.validate.report import Rule, Severity

_INSTRUCTING = ("system", "developer")
_ROLES = (*_INSTRUCTING, "user", "assistant", "tool")


def check_turns(messages: Sequence[Message]) -> Iterator[Broken]:
    """Check the roles, their order, that nobody says nothing, and that there is something to train."""
    roles = [message["role"] for message in messages]
    for index, role in enumerate(roles):
        if role not in _ROLES:
            yield Broken(
                f"messages[{index}].role",
                Rule.UNKNOWN_ROLE,
                f"the role is {role!r}",
                f"make it one of {', '.join(_ROLES)}",
            )
    yield from _check_order(messages, roles)
    yield from _check_empty(messages)
    if "assistant" not in roles:
        yield Broken(
            "messages",
            Rule.NO_ASSISTANT,
            "the conversation has no assistant turn, so there is nothing to train",
            "add the answer, or remove the row from the training data",
        )
    elif roles[-1] != "assistant":
        yield Broken(
            f"messages[{len(messages) - 1}]",
            Rule.UNANSWERED_END,
            f"the conversation ends with a {roles[-1]} message: what follows the last assistant turn is never trained",
            "add the assistant's answer, or remove what stands after its last turn",
            Severity.WARNING,
        )


def _check_order(messages: Sequence[Message], roles: Sequence[str]) -> Iterator[Broken]:
    for index, role in enumerate(roles):
        before = roles[index - 1] if index else None
        problem = None
        if role in _INSTRUCTING and before not in (None, *_INSTRUCTING):
            problem = f"a {role} message follows a {before} message", "move it to the beginning"
        elif role == "assistant" and before == "assistant" and not messages[index - 1].get("tool_calls"):
            problem = "two assistant turns follow each other", "join them to one turn"
        elif role == "assistant" and all(earlier in _INSTRUCTING for earlier in roles[:index]):
            problem = "an assistant turn answers no user message", "begin the conversation with a user message"
        if problem:
            yield Broken(f"messages[{index}].role", Rule.ROLE_ORDER, *problem, Severity.WARNING)


def _check_empty(messages: Sequence[Message]) -> Iterator[Broken]:
    for index, message in enumerate(messages):
        if message["content"].strip():
            continue
        if message["role"] == "assistant" and not message.get("tool_calls"):
            yield Broken(
                f"messages[{index}]",
                Rule.EMPTY_TURN,
                "the assistant turn has neither content nor calls",
                "give it what the model should have said, or remove it",
            )
        elif message["role"] == "user":
            yield Broken(
                f"messages[{index}]",
                Rule.EMPTY_TURN,
                "the user message is empty",
                "give it the request, or remove the row",
                Severity.WARNING,
            )
