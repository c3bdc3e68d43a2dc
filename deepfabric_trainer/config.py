"""`DeepFabricSFTConfig`: what `SFTConfig` has, and what this library adds."""

from dataclasses import dataclass, field
from enum import StrEnum

from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from deepfabric_trainer.errors import ConfigError


class Batching(StrEnum):
    """How the examples of a batch are laid out."""

    AUTO = "auto"
    """Shared prefixes where the model computes them right, padding elsewhere; the log says which and why."""
    SHARED_PREFIX = "shared_prefix"
    """Shared prefixes, or an error where the model does not compute them right."""
    PADDED = "padded"
    """Each example a row of its own."""


@dataclass
class DeepFabricSFTConfig(SFTConfig):
    r"""Everything of [`~trl.SFTConfig`], and how conversations become tokens and batches.

    Without a GPU that computes in bfloat16, `bf16` is off unless asked for, where TRL's default is an error.

    Args:
        max_length (`int`, *optional*): Longest example in tokens. `None`: the context length of the model (TRL:
            1,024).
        train_on (`str`, *optional*, defaults to `"assistant"`): Which messages are trained: `"assistant"`,
            `"last_assistant"`, `"tool_calls"` (the turns that make a call) or `"all"` (every token, TRL's default).
        reasoning (`str`, *optional*, defaults to `"auto"`): Where a row's `reasoning` goes: `"auto"` (where the chat
            template has a place for it), `"inline"` (into the content, between `<think>` tags) or `"none"`.
        truncation (`str`, *optional*, defaults to `"turns"`): What happens to rows longer than `max_length`: `"turns"`
            drops their oldest exchanges whole, `"raise"` rejects them.
        on_invalid (`str`, *optional*, defaults to `"raise"`): What happens when rows cannot be trained on: `"raise"`
            stops before training and names them, `"drop"` leaves them out and writes them to `rejected.jsonl` in the
            output folder.
        batching (`str`, *optional*, defaults to `"auto"`): How a batch is laid out: `"auto"` (shared prefixes where
            the model computes them right, padding elsewhere), `"shared_prefix"` or `"padded"`.
    """

    max_length: int | None = field(
        default=None,
        metadata={"help": "Longest example in tokens. `None`: the context length of the model (TRL: 1,024)."},
    )
    train_on: str = field(
        default="assistant",
        metadata={
            "help": "Which messages are trained: 'assistant', 'last_assistant', 'tool_calls' (the turns that make a "
            "call) or 'all' (every token, TRL's default).",
            "choices": ["assistant", "last_assistant", "tool_calls", "all"],
        },
    )
    reasoning: str = field(
        default="auto",
        metadata={
            "help": "Where a row's `reasoning` goes: 'auto' (where the chat template has a place for it), 'inline' "
            "(into the content, between `<think>` tags) or 'none'.",
            "choices": ["auto", "inline", "none"],
        },
    )
    truncation: str = field(
        default="turns",
        metadata={
            "help": "What happens to rows longer than `max_length`: 'turns' drops their oldest exchanges whole, "
            "'raise' rejects them.",
            "choices": ["turns", "raise"],
        },
    )
    on_invalid: str = field(
        default="raise",
        metadata={
            "help": "What happens when rows cannot be trained on: 'raise' stops before training and names them, "
            "'drop' leaves them out and writes them to `rejected.jsonl` in the output folder.",
            "choices": ["raise", "drop"],
        },
    )
    batching: str = field(
        default="auto",
        metadata={
            "help": "How a batch is laid out: 'auto' (shared prefixes where the model computes them right, padding "
            "elsewhere), 'shared_prefix' or 'padded'.",
            "choices": ["auto", "shared_prefix", "padded"],
        },
    )

    def __post_init__(self) -> None:
        for name in ("train_on", "reasoning", "truncation", "on_invalid", "batching"):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", expected=f"one of {', '.join(choices)}")
        if self.batching == Batching.SHARED_PREFIX and (self.packing or self.padding_free):
            raise ConfigError(
                "batching='shared_prefix' together with packing or padding_free",
                expected="one layout of the batch",
                fix="drop `packing` and `padding_free`, or set batching='auto'",
            )
        if getattr(self, "bf16", None) is None and not self.use_cpu and not is_torch_bf16_gpu_available():
            self.bf16 = False  # TRL's default asks for a GPU that has it
        super().__post_init__()
