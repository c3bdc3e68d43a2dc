"""Checking one conversation against all rules."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.schema import Conversation, Message, Repair, Tool, conversation_key
from deepfabric_trainer.validate.broken import Broken, merge
from deepfabric_trainer.validate.call_in_text import check_text
from deepfabric_trainer.validate.calls import check_calls, check_results
from deepfabric_trainer.validate.control_tokens import ControlTokens
from deepfabric_trainer.validate.tools import ReadTool, check_tools, read_tool
from deepfabric_trainer.validate.turns import check_turns

_MOST_LISTS, _MOST_TOOLS = 256, 4096
_NO_TOOLS: list[Tool] = []


@dataclass(frozen=True)
class _KnownTools:
    """The tools of a row, as the rules want them.

    Args:
        tools (`Sequence[Tool]`): The tools.
        by_name (`Mapping[str, ReadTool]`): What is known of each.
        broken (`Sequence[Broken]`): The rules that they break by themselves.
    """

    tools: Sequence[Tool]
    by_name: Mapping[str, ReadTool]
    broken: Sequence[Broken]


class RowChecker:
    """Checks row after row against the rules, where equal tools are one object that nobody changes.

    Args:
        tokens (`ControlTokens`): What only the chat template may write.
    """

    def __init__(self, tokens: ControlTokens) -> None:
        self._tokens = tokens
        self._lists: dict[int, _KnownTools] = {}
        self._tools: dict[int, tuple[Tool, ReadTool, bool]] = {}

    def check(self, row: Mapping[str, Any], conversation: Conversation) -> list[Broken]:
        """Return what a row breaks; see `check_row`."""
        tools = conversation.tools or _NO_TOOLS
        if id(tools) not in self._lists:
            if len(self._lists) >= _MOST_LISTS:
                self._lists.clear()
            self._lists[id(tools)] = self._know(tools)
        return _of_row(row, conversation, self._lists[id(tools)], self._tokens)

    def _know(self, tools: Sequence[Tool]) -> _KnownTools:
        remembered = [self._remember(tool) for tool in tools]
        by_name = {tool.name: tool for _, tool, _ in remembered}
        if len(by_name) == len(tools) and all(is_sound for _, _, is_sound in remembered):
            return _KnownTools(tools, by_name, ())
        return _KnownTools(tools, by_name, list(check_tools(tools, [tool for _, tool, _ in remembered], self._tokens)))

    def _remember(self, tool: Tool) -> tuple[Tool, ReadTool, bool]:
        """Return a tool, what is known of it, and whether it breaks no rule by itself."""
        if id(tool) not in self._tools:
            if len(self._tools) >= _MOST_TOOLS:
                self._tools.clear()
            read = read_tool(tool)
            self._tools[id(tool)] = tool, read, not any(check_tools([tool], [read], self._tokens))
        return self._tools[id(tool)]


def check_row(row: Mapping[str, Any], conversation: Conversation, tokens: ControlTokens) -> list[Broken]:
    """Return what a row breaks without being rendered, one for each path and rule, its columns named as they are.

    Args:
        row (`Mapping[str, Any]`): The row.
        conversation (`Conversation`): The same row, normalized.
        tokens (`ControlTokens`): What only the chat template may write.
    """
    tools = conversation.tools or _NO_TOOLS
    known = [read_tool(tool) for tool in tools]
    by_name = {tool.name: tool for tool in known}
    return _of_row(row, conversation, _KnownTools(tools, by_name, list(check_tools(tools, known, tokens))), tokens)


def _of_row(
    row: Mapping[str, Any], conversation: Conversation, tools: _KnownTools, tokens: ControlTokens
) -> list[Broken]:
    broken = merge(_check_conversation(conversation.messages, tools, tokens))
    columns = _columns(row, conversation)
    return [one._replace(path=_in_row(one.path, columns)) for one in broken] if columns else broken


def _check_conversation(messages: Sequence[Message], tools: _KnownTools, tokens: ControlTokens) -> Iterator[Broken]:
    yield from tools.broken
    yield from check_turns(messages)
    yield from check_calls(messages, tools.by_name)
    yield from check_results(messages)
    yield from check_text(messages, tools.by_name.keys())
    yield from tokens.check_messages(messages)


def _columns(row: Mapping[str, Any], conversation: Conversation) -> dict[str, str]:
    """Return the columns that the row names otherwise than the rules do: `conversations`, `functions`."""
    columns = {}
    if conversation_key(row) not in ("messages", None):
        columns["messages"] = str(conversation_key(row))
    if Repair.TOOLS_COLUMN in conversation.repairs:
        columns["tools"] = "functions"
    return columns


def _in_row(path: str, columns: Mapping[str, str]) -> str:
    for name, own in columns.items():
        if path.startswith(name):
            return own + path.removeprefix(name)
    return path
