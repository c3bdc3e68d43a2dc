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


class NullText(str):
    """An empty content that came as null: equal to `""`, and told apart only where a template does."""

    __slots__ = ()


class Message(TypedDict, total=False):
    """One message; `content` is always text, `tool_calls` is there only when it is not empty.

    `train` and `weight` (finite, not negative) are there when the row says how the message is to be trained.
    """

    role: Required[str]
    content: Required[str]
    reasoning_content: str
    tool_calls: list[ToolCall]
    tool_call_id: str
    name: str
    train: bool
    weight: float


class Repair(StrEnum):
    """What `normalize_row` mended; the value says it in words, for the log."""

    ARGUMENTS_JSON = "call arguments came as JSON text and were decoded, so that no template encodes them twice"
    ARGUMENTS_JSON_TWICE = "call arguments that had been encoded as JSON more than once were decoded to the end"
    ARGUMENTS_EMPTY = "null or empty call arguments were written as an object without arguments"
    ARGUMENT_NULLS = "null arguments that the called tool does not declare (padding by Arrow) were dropped"
    OPTIONAL_NULLS = (
        "null arguments that the called tool declares as optional and never null (padding by Arrow) were dropped"
    )
    SCHEMA_NULLS = "null keys in tool schemas (padding by Arrow) were dropped"
    MESSAGES_JSON = "messages came as JSON text and were decoded"
    TOOLS_JSON = "tools came as JSON text and were decoded"
    TOOLS_COLUMN = "tools were taken from the column `functions` of OpenAI's older format"
    TOOL_SHAPE = (
        "tools in other forms (bare functions, `input_schema`) were written as "
        '{"type": "function", "function": {"name": ..., "parameters": ...}}'
    )
    CALL_SHAPE = 'flat or legacy calls (`function_call`) were wrapped as {"type": "function", "function": ...}'
    CALLS_MERGED = "calls that came as one message each were put into one assistant message"
    CALL_IDS = "call ids that came as numbers were written as text"
    CONTENT_PARTS = "content given as a list of text parts was joined to text"
    CONTENT_JSON = "tool results given as JSON values were written out as text"
    REASONING_KEYS = "reasoning under other names (`reasoning`, `thinking`) was put into `reasoning_content`"
    ROLE_NAMES = "role names of other formats (human, gpt, function, USER, ...) were translated"
    CONTROL_TOKENS = "control tokens in the text of a user, a system message or a tool were encoded as plain text"
    PLAIN_VALUES = "arrays, tuples and numbers of other libraries were turned into plain lists and numbers"


@dataclass(frozen=True)
class RowReasoning:
    """The `reasoning` column of a DeepFabric row: one trace for the whole conversation."""

    style: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """A row in the one form that the rest of the library works on.

    Take it as immutable, all the way down: what needed no repair is shared with the row that it came from, and tools
    that came as JSON text are shared by all rows with the same text. To change a message or a tool, make a new one.

    Args:
        messages (`list[Message]`): In order. Calls that came as one message each are one message here.
        tools (`list[Tool]`, *optional*): `None` when the row has none.
        reasoning (`RowReasoning`, *optional*): The row's `reasoning` column.
        repairs (`frozenset[Repair]`): What had to be mended, each kind once.
    """

    messages: list[Message]
    tools: list[Tool] | None
    reasoning: RowReasoning | None = None
    repairs: frozenset[Repair] = frozenset()
