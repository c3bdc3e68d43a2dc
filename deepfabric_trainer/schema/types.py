from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NotRequired, Required, TypedDict


class Function(TypedDict, total=False):
    """What a tool is called, what it does, and the JSON Schema of its arguments."""

    name: Required[str]
    description: str
    parameters: dict[str, Any]


class Tool(TypedDict):
    """A tool the model may call, in OpenAI's form."""

    type: str
    function: Function


class FunctionCall(TypedDict):
    """A tool's name with decoded arguments."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """One call in an assistant message."""

    type: str
    function: FunctionCall
    id: NotRequired[str]


class Message(TypedDict, total=False):
    """One message; `content` is always text, `tool_calls` is there only when it is not empty."""

    role: Required[str]
    content: Required[str]
    reasoning_content: str
    tool_calls: list[ToolCall]
    tool_call_id: str
    name: str


class Repair(StrEnum):
    """What `normalize_row` mended; the value says it in words, for the log."""

    ARGUMENTS_JSON = "call arguments came as JSON text and were decoded, so that no template encodes them twice"
    ARGUMENT_NULLS = "null arguments that the called tool does not declare (padding by Arrow) were dropped"
    SCHEMA_NULLS = "null keys in tool schemas (padding by Arrow) were dropped"
    TOOLS_JSON = "tools came as JSON text and were decoded"
    TOOL_SHAPE = 'bare function definitions were wrapped as {"type": "function", "function": ...}'
    CALL_SHAPE = 'flat or legacy calls (`function_call`) were wrapped as {"type": "function", "function": ...}'
    CONTENT_PARTS = "content given as a list of text parts was joined to text"
    CONTENT_JSON = "tool results given as JSON values were written out as text"
    ROLE_NAMES = "role names of other formats (human, gpt, function, ...) were translated"


@dataclass(frozen=True)
class RowReasoning:
    """The `reasoning` column of a DeepFabric row: one trace for the whole conversation."""

    style: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """A row in the one form that the rest of the library works on.

    Args:
        messages (`list[Message]`): In order, owned by this object.
        tools (`list[Tool]`, *optional*): `None` when the row has none.
        reasoning (`RowReasoning`, *optional*): The row's `reasoning` column.
        repairs (`frozenset[Repair]`): What had to be mended, each kind once.
    """

    messages: list[Message]
    tools: list[Tool] | None
    reasoning: RowReasoning | None = None
    repairs: frozenset[Repair] = frozenset()
