"""What a user of the callback has chosen, and where it cannot work."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from deepfabric_trainer.callbacks._health.findings import Kind, Policy
from deepfabric_trainer.errors import ConfigError

_NOT_OURS = {
    DistributedType.DEEPSPEED: "DeepSpeed updates the weights itself",
    DistributedType.FSDP: "FSDP spreads weights and gradients over the processes",
    DistributedType.MEGATRON_LM: "Megatron updates the weights itself",
}


@dataclass(frozen=True)
class Settings:
    """The arguments of [`TrainingHealthCallback`], checked.

    Args:
        policies (`Mapping[Kind, Policy]`): The policy of every kind.
        max_rollbacks (`int`): The run stops instead of going back once more.
        rollback_lr_factor (`float`): What each time multiplies the learning rate.
        rollback_every (`int`): Steps between two states that are kept.
    """

    policies: Mapping[Kind, Policy]
    max_rollbacks: int
    rollback_lr_factor: float
    rollback_every: int

    def __post_init__(self) -> None:
        for name in ("max_rollbacks", "rollback_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"`{name}` is {value!r}", expected="an integer of at least 1", fix="pass one")
        if not 0 < self.rollback_lr_factor <= 1:
            raise ConfigError(
                f"`rollback_lr_factor` is {self.rollback_lr_factor!r}",
                expected="above 0, at most 1",
                fix="pass a share of the learning rate, such as 0.5",
            )

    @property
    def rolls_back(self) -> bool:
        """Whether any kind is mended that way."""
        return Policy.ROLLBACK in self.policies.values()

    def refuse_unsupported(self, optimizer: Any) -> None:
        """Raise if a policy cannot work in this run.

        Args:
            optimizer (`torch.optim.Optimizer`, *optional*): As the trainer holds it.

        Raises:
            ConfigError: Naming the kind, the policy and what stands in its way.
        """
        obstacle = find_obstacle(optimizer)
        only_logged = "with several processes the gradient norm before clipping is seen only when it is logged"
        for kind, policy in self.policies.items():
            why = obstacle
            if kind is Kind.GRADIENT_SPIKE and PartialState().num_processes > 1:
                why = why or only_logged
            if why is not None and policy in (Policy.SKIP_STEP, Policy.ROLLBACK):
                raise ConfigError(
                    f"the policy of {str(kind)!r} is {str(policy)!r}, and {why}",
                    expected='"log" or "stop" here',
                    fix="choose one of these, or train without it",
                )


def has_scaled_gradients(optimizer: Any) -> bool:
    """Tell whether a scaler looks for the largest scale by overflows, and leaves out the steps that have one."""
    return getattr(optimizer, "scaler", None) is not None


def find_obstacle(optimizer: Any) -> str | None:
    """Return why a step of this run cannot be taken back by leaving out its gradients; `None`: it can."""
    if has_scaled_gradients(optimizer):
        return "fp16 gradients are scaled, which has its own way of leaving steps out"
    return _NOT_OURS.get(PartialState().distributed_type)
