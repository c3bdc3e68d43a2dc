"""What can be found, what may be done about it, and what a colleague would say."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from deepfabric_trainer.errors import ConfigError


class Kind(StrEnum):
    """What can go wrong."""

    NAN = "nan"
    LOSS_SPIKE = "loss_spike"
    GRADIENT_SPIKE = "gradient_spike"
    NOTHING_TO_TRAIN = "nothing_to_train"
    DIVERGENCE = "divergence"
    OVERFITTING = "overfitting"
    MEMORIZING = "memorizing"
    PLATEAU = "plateau"
    SLOW_INPUT = "slow_input"
    MEMORY = "memory"


class Policy(StrEnum):
    """What to do about it, from the least on."""

    LOG = "log"
    SKIP_STEP = "skip_step"
    ROLLBACK = "rollback"
    STOP = "stop"


CAN_SKIP = frozenset({Kind.NAN, Kind.LOSS_SPIKE, Kind.GRADIENT_SPIKE, Kind.NOTHING_TO_TRAIN})
"""What one step brings, so that leaving the step out mends it."""
CAN_ROLL_BACK = frozenset({Kind.NAN, Kind.LOSS_SPIKE, Kind.GRADIENT_SPIKE, Kind.DIVERGENCE})
"""What weights from before do not have."""
DEFAULT_POLICIES: Mapping[Kind, Policy] = {kind: Policy.LOG for kind in Kind} | {Kind.NAN: Policy.STOP}
"""One update with NaN ruins all weights; anything else can be looked at later."""


@dataclass(frozen=True)
class Finding:
    """Something that a detector has found.

    Args:
        kind (`Kind`): What.
        message (`str`): What was seen, in one sentence without its full stop.
        evidence (`dict[str, Any]`): The numbers behind it.
        form (`str`): Which of several forms of its kind, each with its own advice; see [`advice_on`].
        batches (`tuple[int, ...]`, *optional*): The micro-batches of the step whose rows it is about; `None`: none.
        weight (`float`): How clear it is; of several processes the one that sees it most clearly is heard.
    """

    kind: Kind
    message: str
    evidence: dict[str, Any] = field(default_factory=dict)
    form: str = ""
    batches: tuple[int, ...] | None = None
    weight: float = 0.0

    @property
    def severity(self) -> str:
        """`"info"`, `"warning"` or `"critical"`."""
        return _SEVERITIES.get(self.kind, "warning")


_SEVERITIES = {Kind.NAN: "critical", Kind.DIVERGENCE: "critical", Kind.PLATEAU: "info", Kind.SLOW_INPUT: "info"}

_ADVICE = {
    "nan.loss": (
        "a row with extreme values, or weights or activations that no longer fit the number format",
        "Look at the rows first; if they are fine, lower the learning rate, warm up longer, and train in bf16 or "
        "float32 instead of fp16.",
    ),
    "nan.gradient": (
        "the loss is finite and its gradient is not: an overflow in the backward pass, or a division by zero in it",
        "Train in bf16 or float32 instead of fp16, lower the learning rate, and look at the rows.",
    ),
    "loss_spike": (
        "rows unlike the others (garbled text, another language, wrong labels), or a learning rate that is too high",
        "Look at the rows; if they are fine and it comes again, lower the learning rate or warm up longer.",
    ),
    "gradient_spike": (
        "rows unlike the others, or a learning rate at which the model jumps",
        "Look at the rows; keep `max_grad_norm` on, and lower the learning rate or take larger batches if it comes "
        "again.",
    ),
    "nothing_to_train": (
        "rows whose trained part was cut off (`max_length` is too small), or whose labels were masked altogether",
        "Look at the rows' labels; raise `max_length`, or drop the rows. Optimizers with momentum move the weights "
        "also without a gradient.",
    ),
    "divergence": (
        "the learning rate is too high for this model and batch size, or the optimizer has run into a bad region",
        "Go back to a checkpoint from before the rise, and halve the learning rate; warm up longer.",
    ),
    "overfitting": (
        "the model has seen the training rows often enough to learn them instead of the task",
        "Stop at the best evaluation: fewer epochs, `load_best_model_at_end=True`; then more varied rows, a lower "
        "learning rate, or a smaller LoRA rank.",
    ),
    "memorizing": (
        "the training rows are known by heart: too many epochs over too few rows, or rows that repeat",
        "Train fewer epochs, remove duplicates, add rows; the checkpoint with the best evaluation is the one to keep.",
    ),
    "plateau": (
        "the model has learned what it can from these rows at this learning rate, or the rate is too low to move it",
        "End the run here to save time; or try a higher learning rate, a larger LoRA rank, or better rows.",
    ),
    "slow_input": (
        "batches are made more slowly than the model trains on them",
        "Raise `dataloader_num_workers`, prepare the dataset before the run instead of during it, or put it on a "
        "faster disk.",
    ),
    "memory.device": (
        "batches nearly fill the device; a longer one, or an evaluation, will not fit",
        "Take a smaller batch with more gradient accumulation, a smaller `max_length`, or gradient checkpointing.",
    ),
    "memory.host": (
        "the processes of this run nearly fill the machine's memory, or what its container may use",
        "Take fewer `dataloader_num_workers`, keep the dataset on disk (Arrow) instead of in lists, and look for "
        "what grows.",
    ),
}


def advice_on(finding: Finding) -> tuple[str, str]:
    """Return the likely cause of a finding, and what to do."""
    return _ADVICE[f"{finding.kind}.{finding.form}" if finding.form else finding.kind]


def read_policies(policies: Mapping[str, str] | None) -> dict[Kind, Policy]:
    """Return the policy of every kind: those given, and the defaults.

    Raises:
        ConfigError: If a kind or a policy does not exist, or the policy cannot mend that kind.
    """
    chosen = dict(DEFAULT_POLICIES)
    for name, wanted in (policies or {}).items():
        if name not in list(Kind):
            raise ConfigError(f"`policies` has the kind {name!r}", expected=f"one of {_listed(Kind)}", fix="rename it")
        kind = Kind(name)
        possible = [policy for policy in Policy if _can(kind, policy)]
        if wanted not in possible:
            raise ConfigError(
                f"the policy of {name!r} is {wanted!r}",
                expected=f"one of {_listed(possible)}",
                fix="choose one of these",
            )
        chosen[kind] = Policy(wanted)
    return chosen


def jsonable(value: Any) -> Any:
    """Return evidence as JSON can hold it: floats that are not finite become their names."""
    if isinstance(value, Mapping):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def _can(kind: Kind, policy: Policy) -> bool:
    if policy is Policy.SKIP_STEP:
        return kind in CAN_SKIP
    return policy is not Policy.ROLLBACK or kind in CAN_ROLL_BACK


def _listed(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)
