"""Parsing generated text into tool calls, and scoring the calls."""

from deepfabric_trainer.toolcalls.parsing import ParsedResponse, parse_tool_calls, stop_token_ids, turn_end
from deepfabric_trainer.toolcalls.scoring import (
    ToolCallScore,
    overall_score,
    score_response,
    score_tool_calls,
    summarize_scores,
    wilson_interval,
)
from deepfabric_trainer.toolcalls.tables import Confusion, ToolCount, ToolTable, tool_table

__all__ = [
    "Confusion",
    "ParsedResponse",
    "ToolCallScore",
    "ToolCount",
    "ToolTable",
    "overall_score",
    "parse_tool_calls",
    "score_response",
    "score_tool_calls",
    "stop_token_ids",
    "summarize_scores",
    "tool_table",
    "turn_end",
    "wilson_interval",
]
