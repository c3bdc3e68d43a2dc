"""Typed rows, and the way from rows as they come to rows as chat templates want them.

`types` says what a conversation is; `normalize` makes one from a row; `tools`, `calls` and `nulls` are its parts.
"""

from deepfabric_trainer.schema.normalize import (
    conversation_key,
    is_conversation,
    is_conversational_completion,
    normalize_row,
)
from deepfabric_trainer.schema.types import (
    Conversation,
    Function,
    FunctionCall,
    Message,
    NullText,
    Repair,
    RowReasoning,
    Tool,
    ToolCall,
)

__all__ = [
    "Conversation",
    "Function",
    "FunctionCall",
    "Message",
    "NullText",
    "Repair",
    "RowReasoning",
    "Tool",
    "ToolCall",
    "conversation_key",
    "is_conversation",
    "is_conversational_completion",
    "normalize_row",
]
