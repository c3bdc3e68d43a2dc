"""The rules of calls and of their results."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from deepfabric_trainer.schema import Message, ToolCall
from deepfabric_trainer.validate.broken import Broken
from deepfabric_trainer.validate.parameters import CannotJudgeError
from deepfabric_trainer.validate.report import Rule, Severity
from deepfabric_trainer.validate.tools import ReadTool


def check_calls(messages: Sequence[Message], by_name: Mapping[str, ReadTool]) -> Iterator[Broken]:
    """Check every call against the tools of the row, by their names, and that its id is its own."""
    for index, message in enumerate(messages):
        # An id must be unique among the calls of a turn; in later turns many writers count from 1 again.
        seen: set[str] = set()
        for number, call in enumerate(message.get("tool_calls", ())):
            path, identifier = f"messages[{index}].tool_calls[{number}]", call.get("id")
            if identifier and identifier in seen:
                yield Broken(
                    f"{path}.id",
                    Rule.DUPLICATE_CALL_ID,
                    f"two calls of the turn have the id {identifier!r}",
                    "number the calls anew, and their results with them",
                )
            if identifier:
                seen.add(identifier)
            yield from _check_call(call, f"{path}.function", by_name)


def _check_call(call: ToolCall, path: str, by_name: Mapping[str, ReadTool]) -> Iterator[Broken]:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if name not in by_name:
        known = ", ".join([*list(by_name)[:5], *(["..."] if len(by_name) > 5 else [])]) or "none"
        close = get_close_matches(name, by_name, n=1)
        yield Broken(
            f"{path}.name",
            Rule.UNDECLARED_TOOL,
            f"{name!r} is called, but the row's tools do not list it (they are: {known})",
            "list the tool in `tools`, or correct the name" + (f": perhaps {close[0]!r}" if close else ""),
        )
        return
    try:
        problems = by_name[name].parameters.judge(arguments)
    except CannotJudgeError as error:
        yield Broken(
            f"{path}.arguments",
            Rule.INVALID_SCHEMA,
            f"the parameters of {name!r} cannot judge these arguments: {error}",
            "write them as a JSON Schema that can be followed to its end",
            Severity.WARNING,
        )
        return
    for problem in problems:
        yield Broken(
            f"{path}.arguments{problem.path}",
            Rule.INVALID_ARGUMENTS,
            f"{name!r} forbids these arguments: {problem.found}",
            problem.fix,
        )


class _Pending(NamedTuple):
    """A call that waits for its result."""

    path: str
    name: str
    identifier: str | None


def check_results(messages: Sequence[Message]) -> Iterator[Broken]:
    """Check that results and calls belong together."""
    pending: list[_Pending] = []
    for index, message in enumerate(messages):
        if message["role"] != "tool":
            yield from _missing(pending)
            pending = [
                _Pending(f"messages[{index}].tool_calls[{number}]", call["function"]["name"], call.get("id") or None)
                for number, call in enumerate(message.get("tool_calls", ()))
            ]
            continue
        answered = _answered(message, pending)
        if answered is None:
            yield Broken(
                f"messages[{index}]",
                Rule.ORPHAN_RESULT,
                "the tool result answers no call of the turn before it",
                "put it behind its call, with the call's id as `tool_call_id`",
            )
            continue
        pending.remove(answered)
        if message.get("name") and message["name"] != answered.name:
            yield Broken(
                f"messages[{index}].name",
                Rule.RESULT_NAME,
                f"the result is named {message['name']!r}, but the call that it answers is of {answered.name!r}",
                "correct the name, or the `tool_call_id`",
                Severity.WARNING,
            )
    if messages[-1]["role"] == "tool":
        yield from _missing(pending)


def _missing(pending: Sequence[_Pending]) -> Iterator[Broken]:
    for call in pending:
        yield Broken(
            call.path,
            Rule.MISSING_RESULT,
            f"the conversation goes on without the result of {call.name!r}",
            "add the tool's result behind the call",
            Severity.WARNING,
        )


def _answered(message: Message, pending: Sequence[_Pending]) -> _Pending | None:
    """Return the pending call that a result answers: by its id, by its name, or the next in order."""
    identifier = message.get("tool_call_id")
    if identifier:
        for call in pending:
            if call.identifier == identifier:
                return call
        pending = [call for call in pending if call.identifier is None]
    named = [call for call in pending if call.name == message.get("name")]
    return next(iter(named or pending), None)
