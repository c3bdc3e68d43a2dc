"""Parsing generated text into tool calls, and scoring the calls."""

from deepfabric_trainer.toolcalls.parsing import ParsedResponse, parse_tool_calls, stop_token_ids
from deepfabric_trainer.toolcalls.scoring import (
    ToolCallScore,
    score_response,
    score_tool_calls,
    summarize_scores,
    wilson_interval,
)

__all__ = [
    "ParsedResponse",
    "ToolCallScore",
    "parse_tool_calls",
    "score_response",
    "score_tool_calls",
    "stop_token_ids",
    "summarize_scores",
    "wilson_interval",
]
