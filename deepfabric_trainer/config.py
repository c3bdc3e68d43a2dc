"""`DeepFabricSFTConfig`: what `SFTConfig` has, and what this library adds."""

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.redaction import redacted


class Batching(StrEnum):
    """How the examples of a batch are laid out."""

    AUTO = "auto"
    """Shared prefixes where the model computes them right, padding elsewhere; the log says which and why."""
    SHARED_PREFIX = "shared_prefix"
    """Shared prefixes, or an error where the model does not compute them right."""
    PACKED = "packed"
    """Examples behind one another, each alone; nothing is shared, and hardly anything padded."""
    PADDED = "padded"
    """Each example a row of its own."""


class Preparation(StrEnum):
    """When the rows of a dataset are encoded."""

    EAGER = "eager"
    """All of them before training, once: later runs find them in the cache."""
    LAZY = "lazy"
    """Each when it is wanted, by the data loader's workers."""


_CHOICES = ("train_on", "reasoning", "truncation", "tool_strategy", "on_invalid", "batching", "preparation")


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
            drops their oldest exchanges whole and rejects what is still too long, `"drop"` leaves them out, `"raise"`
            rejects them.
        max_tool_result_length (`int`, *optional*): Where dropping exchanges is not enough, tool results are cut to so
            many tokens. `None`: no result is cut.
        tool_strategy (`str`, *optional*, defaults to `"all"`): Which tools of a row the model is shown: `"all"`,
            `"used_only"`, `"used_plus_related"` (those that it calls and those most like them) or
            `"used_plus_sampled"` (and some drawn with `seed`).
        min_tools (`int`, *optional*, defaults to 1): The fewest tools that a tool strategy leaves.
        num_distractors (`int`, *optional*, defaults to 3): How many tools that are not called
            `"used_plus_related"` and `"used_plus_sampled"` leave.
        on_invalid (`str`, *optional*, defaults to `"raise"`): What happens when rows cannot be trained on: `"raise"`
            stops before training and names them, `"drop"` leaves them out and writes them to `rejected.jsonl` in the
            output folder.
        batching (`str`, *optional*, defaults to `"auto"`): How a batch is laid out: `"auto"` (shared prefixes where
            the model computes them right, padding elsewhere), `"shared_prefix"`, `"packed"` (examples behind one
            another, on any attention that takes a mask) or `"padded"`. Loss and gradients are the same.
        group_by_prefix (`bool`, *optional*, defaults to `True`): Put rows with the same tools into the same batches,
            which are shuffled, so that more is shared. `False`: rows are drawn at random, as TRL does.
        max_tokens_per_batch (`int`, *optional*): How many tokens, with padding, go through the model at a time. A
            larger batch takes several passes, with the gradients of the whole. `None`: whole batches, until memory
            runs out.
        preparation (`str`, *optional*, defaults to `"eager"`): When rows are encoded: `"eager"` (all before training)
            or `"lazy"` (by the data loader's workers, so that the first step comes at once).
        loss_weights (`dict[str, float]` or `str`, *optional*): What the tokens of a region weigh in the loss, which
            is their weighted mean: `"reasoning"`, `"content"`, `"tool_name"`, `"tool_arguments"`, `"format"`,
            `"stop"`. Those not named weigh 1. On the command line a JSON object. Multiplied by a message's own
            `weight`.
        health_checks (`bool`, *optional*, defaults to `True`): Watch the run for NaN, spikes, divergence and the like,
            with a [`~deepfabric_trainer.callbacks.TrainingHealthCallback`].
        run_report (`bool`, *optional*, defaults to `True`): Leave `report.html`, `report.md` and `metrics.json` in
            `output_dir`, with a [`~deepfabric_trainer.callbacks.RunReportCallback`]; not where `push_to_hub` would
            publish them.
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
            "help": "What happens to rows longer than `max_length`: 'turns' drops their oldest exchanges whole and "
            "rejects what is still too long, 'drop' leaves them out, 'raise' rejects them.",
            "choices": ["turns", "drop", "raise"],
        },
    )
    max_tool_result_length: int | None = field(
        default=None,
        metadata={
            "help": "Where dropping exchanges is not enough, tool results are cut to so many tokens. `None`: no "
            "result is cut."
        },
    )
    tool_strategy: str = field(
        default="all",
        metadata={
            "help": "Which tools of a row the model is shown: 'all', 'used_only', 'used_plus_related' (those that it "
            "calls and those most like them) or 'used_plus_sampled' (and some drawn with `seed`).",
            "choices": ["all", "used_only", "used_plus_related", "used_plus_sampled"],
        },
    )
    min_tools: int = field(
        default=1,
        metadata={"help": "The fewest tools that a tool strategy leaves."},
    )
    num_distractors: int = field(
        default=3,
        metadata={"help": "How many tools that are not called 'used_plus_related' and 'used_plus_sampled' leave."},
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
            "elsewhere), 'shared_prefix', 'packed' (examples behind one another, on any attention that takes a mask) "
            "or 'padded'. Loss and gradients are the same.",
            "choices": ["auto", "shared_prefix", "packed", "padded"],
        },
    )
    group_by_prefix: bool = field(
        default=True,
        metadata={
            "help": "Put rows with the same tools into the same batches, which are shuffled, so that more is shared. "
            "`False`: rows are drawn at random, as TRL does."
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "How many tokens, with padding, go through the model at a time. A larger batch takes several "
            "passes, with the gradients of the whole. `None`: whole batches, until memory runs out."
        },
    )
    preparation: str = field(
        default="eager",
        metadata={
            "help": "When rows are encoded: 'eager' (all before training) or 'lazy' (by the data loader's workers, so "
            "that the first step comes at once).",
            "choices": ["eager", "lazy"],
        },
    )
    loss_weights: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "What the tokens of a region weigh in the loss, which is their weighted mean: a JSON object like "
            '{"tool_name": 2, "content": 0.5} of the regions reasoning, content, tool_name, tool_arguments, format '
            "and stop. Those not named weigh 1. Multiplied by a message's own `weight`."
        },
    )
    health_checks: bool = field(
        default=True,
        metadata={"help": "Watch the run for NaN, spikes, divergence and the like."},
    )
    run_report: bool = field(
        default=True,
        metadata={
            "help": "Leave `report.html`, `report.md` and `metrics.json` in `output_dir`; not where `push_to_hub` "
            "would publish them."
        },
    )

    def __post_init__(self) -> None:
        for name in _CHOICES:
            choices = self.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", expected=f"one of {', '.join(choices)}")
        if self.packing or self.padding_free:
            self._refuse_with_trls_packing()
        if self.max_tokens_per_batch is not None and self.max_tokens_per_batch < 1:
            raise ConfigError(
                f"max_tokens_per_batch is {self.max_tokens_per_batch}", expected="a positive number of tokens, or None"
            )
        self.loss_weights = _read_loss_weights(self.loss_weights)
        if self.packing and self.packing_strategy == "wrapped":
            raise ConfigError(
                "packing_strategy='wrapped', which cuts examples anywhere, also inside a call",
                expected="a strategy that keeps examples whole",
                fix="set packing_strategy='bfd', or packing=False: batching='auto' saves more",
            )
        if getattr(self, "bf16", None) is None and not self.use_cpu and not is_torch_bf16_gpu_available():
            self.bf16 = False  # TRL's default asks for a GPU that has it
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as the parent does, for logs and dashboards; `model_init_kwargs` without keys, too."""
        settings: dict[str, Any] = super().to_dict()
        return {name: redacted(name, value) if isinstance(value, dict) else value for name, value in settings.items()}

    def _refuse_with_trls_packing(self) -> None:
        together = [
            (self.batching not in (Batching.AUTO, Batching.PADDED), f"batching={str(self.batching)!r}"),
            (self.max_tokens_per_batch is not None, "max_tokens_per_batch"),
            (self.packing and self.preparation == Preparation.LAZY, "preparation='lazy'"),
        ]
        for is_set, name in together:
            if is_set:
                raise ConfigError(
                    f"{name} together with packing or padding_free",
                    expected="one layout of the batch",
                    fix="drop `packing` and `padding_free`: batching='packed' packs too, and 'auto' saves more",
                )


def _read_loss_weights(value: Any) -> dict[str, float] | None:
    """Return weights by the name of their region, from a mapping or a JSON object.

    Raises:
        ConfigError: For a region that does not exist, or a weight that is none.
    """
    weights = value
    if isinstance(value, str):
        try:
            weights = json.loads(value)
        except json.JSONDecodeError:
            weights = None
    elif value is None:
        return None
    if not isinstance(weights, dict):
        raise ConfigError(
            f"loss_weights is {value!r}", expected='a weight for each region that is named, like {"tool_name": 2.0}'
        )
    names = [region.name.lower() for region in Region if region is not Region.CONTEXT]
    for name, weight in weights.items():
        if name not in names:
            raise ConfigError(f"loss_weights names {name!r}", expected=f"one of {', '.join(names)}")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or weight < 0:
            raise ConfigError(f"loss_weights[{name!r}] is {weight!r}", expected="a finite number, 0 or more")
    if not any(weights.get(name, 1) for name in names):
        raise ConfigError("loss_weights are 0 for every region", expected="at least one region that is trained")
    return {name: float(weight) for name, weight in weights.items()}
