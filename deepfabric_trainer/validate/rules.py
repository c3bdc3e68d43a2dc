"""The rules of a conversation, each a function that gives findings without a row number."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, UnknownType
from referencing import Registry
from referencing.exceptions import Unresolvable

from deepfabric_trainer.schema import Conversation, Message, Tool, ToolCall
from deepfabric_trainer.validate.report import Rule, Severity


class Broken(NamedTuple):
    """A rule broken at a place of a conversation."""

    path: str
    rule: Rule
    found: str
    fix: str
    severity: Severity = Severity.ERROR


def check_conversation(conversation: Conversation) -> Iterator[Broken]:
    """Check everything that needs no tokenizer."""
    messages, tools = conversation.messages, conversation.tools or []
    yield from check_tools(tools)
    yield from check_roles(messages)
    yield from check_turns(messages)
    yield from check_calls(messages, tools)
    yield from check_results(messages)


def check_tools(tools: Sequence[Tool]) -> Iterator[Broken]:
    """Check that names are unique and parameters are JSON Schemas."""
    counts = Counter(tool["function"]["name"] for tool in tools)
    for number, tool in enumerate(tools):
        name = tool["function"]["name"]
        if counts[name] > 1:
            yield Broken(
                f"tools[{number}].function.name",
                Rule.DUPLICATE_TOOL,
                f"{counts[name]} tools are named {name!r}",
                "give each tool a name of its own",
            )
        problem = _schema_problem(_as_json(tool["function"].get("parameters")))
        if problem:
            yield Broken(
                f"tools[{number}].function.parameters",
                Rule.INVALID_SCHEMA,
                f"the parameters of {name!r} are no valid JSON Schema: {problem}",
                "write them as a JSON Schema (types: object, array, string, number, integer, boolean, null)",
                Severity.WARNING,
            )


def check_roles(messages: Sequence[Message]) -> Iterator[Broken]:
    """Check that every message can follow the one before it."""
    for index, message in enumerate(messages):
        role = message["role"]
        before = messages[index - 1]["role"] if index else None
        if role in ("system", "developer") and before not in (None, "system", "developer"):
            yield Broken(
                f"messages[{index}].role",
                Rule.ROLE_ORDER,
                f"a {role} message follows a {before} message",
                "move it to the beginning",
                Severity.WARNING,
            )
        if role == "assistant" and before == "assistant" and not messages[index - 1].get("tool_calls"):
            yield Broken(
                f"messages[{index}].role",
                Rule.ROLE_ORDER,
                "two assistant turns follow each other",
                "join them to one turn",
                Severity.WARNING,
            )
        if role == "assistant" and all(earlier["role"] in ("system", "developer") for earlier in messages[:index]):
            yield Broken(
                f"messages[{index}].role",
                Rule.ROLE_ORDER,
                "an assistant turn answers no user message",
                "begin the conversation with a user message",
                Severity.WARNING,
            )


def check_turns(messages: Sequence[Message]) -> Iterator[Broken]:
    """Check that there is something to train, and that no turn teaches silence."""
    if not any(message["role"] == "assistant" for message in messages):
        yield Broken(
            "messages",
            Rule.NO_ASSISTANT,
            "the conversation has no assistant turn, so there is nothing to train",
            "add the answer, or remove the row from the training data",
        )
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            yield Broken(
                f"messages[{index}]",
                Rule.EMPTY_TURN,
                "the assistant turn has neither content nor calls",
                "give it what the model should have said, or remove it",
            )


def check_calls(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[Broken]:
    """Check every call against the tools of the row."""
    by_name = {tool["function"]["name"]: tool for tool in tools}
    seen: set[tuple[str, str]] = set()
    for path, call in _calls(messages):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        # An id must be unique among the calls of a turn; in later turns many writers count from 1 again.
        turn, identifier = path.split(".", 1)[0], call.get("id")
        if identifier is not None and (turn, identifier) in seen:
            yield Broken(
                f"{path}.id", Rule.DUPLICATE_CALL_ID, f"two calls have the id {identifier!r}", "number the calls anew"
            )
        if identifier is not None:
            seen.add((turn, identifier))
        if name not in by_name:
            known = ", ".join([*list(by_name)[:5], *(["..."] if len(by_name) > 5 else [])]) or "none"
            yield Broken(
                f"{path}.function.name",
                Rule.UNDECLARED_TOOL,
                f"{name!r} is called, but the row's tools do not list it (they are: {known})",
                "list the tool in `tools`, or correct the name",
            )
            continue
        schema = _as_json(by_name[name]["function"].get("parameters"))
        for where, problem in _argument_problems(schema, arguments):
            yield Broken(
                f"{path}.function.arguments{where}",
                Rule.INVALID_ARGUMENTS,
                f"{name!r} forbids these arguments: {problem}",
                "correct the argument, or the tool's schema",
            )


def check_results(messages: Sequence[Message]) -> Iterator[Broken]:
    """Check that results and calls belong together."""
    pending: dict[str, tuple[str, str]] = {}
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            key = _answered(message, pending)
            if key is None:
                yield Broken(
                    f"messages[{index}]",
                    Rule.ORPHAN_RESULT,
                    "the tool result answers no call of the turn before it",
                    "put it behind its call, with the call's id as `tool_call_id`",
                )
            else:
                del pending[key]
            continue
        for path, name in pending.values():
            yield Broken(
                path,
                Rule.MISSING_RESULT,
                f"the conversation goes on without the result of {name!r}",
                "add the tool's result behind the call",
                Severity.WARNING,
            )
        pending = {
            call.get("id") or f"#{number}": (f"messages[{index}].tool_calls[{number}]", call["function"]["name"])
            for number, call in enumerate(message.get("tool_calls", []))
        }


def check_control_tokens(messages: Sequence[Message], special_texts: Sequence[str]) -> Iterator[Broken]:
    """Check that nobody but the template writes special tokens."""
    for index, message in enumerate(messages):
        inside = [text for text in special_texts if text in message["content"]]
        if message["role"] != "assistant" and inside:
            yield Broken(
                f"messages[{index}].content",
                Rule.CONTROL_TOKEN,
                f"the {message['role']} message holds the special token {inside[0]!r}",
                "remove it or write it differently: the tokenizer would take it for the template's own",
                Severity.WARNING,
            )


def _calls(messages: Sequence[Message]) -> Iterator[tuple[str, ToolCall]]:
    for index, message in enumerate(messages):
        for number, call in enumerate(message.get("tool_calls", [])):
            yield f"messages[{index}].tool_calls[{number}]", call


def _answered(message: Message, pending: Mapping[str, tuple[str, str]]) -> str | None:
    """Return the key of the pending call that a result answers: by its id, by its name, or the next in order."""
    if message.get("tool_call_id") in pending:
        return message["tool_call_id"]
    unnumbered = [key for key in pending if key.startswith("#") or "tool_call_id" not in message]
    named = [key for key in unnumbered if pending[key][1] == message.get("name")]
    return next(iter(named or unnumbered), None)


def _as_json(schema: Any) -> str:
    return json.dumps(schema if schema is not None else {}, sort_keys=True)


@lru_cache(maxsize=4096)
def _validator(schema: str) -> Draft202012Validator:
    # An empty registry: a `$ref` in somebody's data must not reach out to the network.
    return Draft202012Validator(json.loads(schema), registry=Registry())


@lru_cache(maxsize=4096)
def _schema_problem(schema: str) -> str:
    try:
        Draft202012Validator.check_schema(json.loads(schema))
        # `$ref`s and unknown types show when the schema is used.
        list(_validator(schema).iter_errors({}))
    except SchemaError as error:
        return error.message[:120]
    except (UnknownType, Unresolvable, RecursionError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return ""


def _argument_problems(schema: str, arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    if _schema_problem(schema):
        return []
    try:
        problems = list(_validator(schema).iter_errors(dict(arguments)))
    except (UnknownType, Unresolvable, RecursionError):  # in a part of the schema that only these arguments reach
        return []
    return [("".join(f".{part}" for part in problem.absolute_path), problem.message[:160]) for problem in problems]
