"""Fine-tune language models to call tools: exact tokens, shared computation, evaluation while it trains."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepfabric_trainer.analyze import DatasetReport, analyze_dataset
    from deepfabric_trainer.config import DeepFabricSFTConfig
    from deepfabric_trainer.encode import ConversationEncoder, EncodedExample, Region
    from deepfabric_trainer.errors import (
        CheckpointError,
        ConfigError,
        DataFormatError,
        DeepFabricTrainerError,
        HubError,
        RowTooLongError,
        TemplateError,
    )
    from deepfabric_trainer.prepare import prepare_dataset
    from deepfabric_trainer.toolcalls import ParsedResponse, ToolCallScore, parse_tool_calls, score_tool_calls
    from deepfabric_trainer.tools import (
        clean_tool_schema,
        filter_tools_for_sample,
        get_used_tool_names,
        prepare_dataset_for_training,
    )
    from deepfabric_trainer.trainer import DeepFabricTrainer
    from deepfabric_trainer.validate import ValidationReport, validate_dataset

_MODULE_OF = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "ConversationEncoder": "encode",
    "DataFormatError": "errors",
    "DatasetReport": "analyze",
    "DeepFabricSFTConfig": "config",
    "DeepFabricTrainer": "trainer",
    "DeepFabricTrainerError": "errors",
    "EncodedExample": "encode",
    "HubError": "errors",
    "ParsedResponse": "toolcalls",
    "Region": "encode",
    "RowTooLongError": "errors",
    "TemplateError": "errors",
    "ToolCallScore": "toolcalls",
    "ValidationReport": "validate",
    "analyze_dataset": "analyze",
    "clean_tool_schema": "tools",
    "filter_tools_for_sample": "tools",
    "get_used_tool_names": "tools",
    "parse_tool_calls": "toolcalls",
    "prepare_dataset": "prepare",
    "prepare_dataset_for_training": "tools",
    "score_tool_calls": "toolcalls",
    "validate_dataset": "validate",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConversationEncoder",
    "DataFormatError",
    "DatasetReport",
    "DeepFabricSFTConfig",
    "DeepFabricTrainer",
    "DeepFabricTrainerError",
    "EncodedExample",
    "HubError",
    "ParsedResponse",
    "Region",
    "RowTooLongError",
    "TemplateError",
    "ToolCallScore",
    "ValidationReport",
    "analyze_dataset",
    "clean_tool_schema",
    "filter_tools_for_sample",
    "get_used_tool_names",
    "parse_tool_calls",
    "prepare_dataset",
    "prepare_dataset_for_training",
    "score_tool_calls",
    "validate_dataset",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that importing the package costs next to nothing."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
