from collections.abc import Iterator, Mapping
from typing import Any

from deepfabric_trainer.schema import Conversation, Repair, conversation_key
from deepfabric_trainer.validate.broken import Broken, merge
from deepfabric_trainer.validate.call_in_text import check_text
from deepfabric_trainer.validate.calls import check_calls, check_results
from deepfabric_trainer.validate.control_tokens import ControlTokens
from deepfabric_trainer.validate.tools import check_tools, read_tool
from deepfabric_trainer.validate.turns import check_turns


def check_row(row: Mapping[str, Any], conversation: Conversation, tokens: ControlTokens) -> list[Broken]:
    """Return what a row breaks without being rendered, one for each path and rule, its columns named as they are.

    Args:
        row (`Mapping[str, Any]`): The row.
        conversation (`Conversation`): The same row, normalized.
        tokens (`ControlTokens`): What only the chat template may write.
    """
    broken = merge(check_conversation(conversation, tokens))
    columns = _columns(row, conversation)
    return [one._replace(path=_in_row(one.path, columns)) for one in broken] if columns else broken


def check_conversation(conversation: Conversation, tokens: ControlTokens) -> Iterator[Broken]:
    """Check everything that a conversation shows without being rendered.

    Args:
        conversation (`Conversation`): The conversation.
        tokens (`ControlTokens`): What only the chat template may write.
    """
    messages, tools = conversation.messages, conversation.tools or []
    known = [read_tool(tool) for tool in tools]
    yield from check_tools(tools, known, tokens)
    yield from check_turns(messages)
    yield from check_calls(messages, known)
    yield from check_results(messages)
    yield from check_text(messages, {tool.name for tool in known})
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
