"""Going back to weights from before the trouble, at a lower learning rate."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


class RollbackPoint:
    """The trained weights, the optimizer and the schedule of a healthy step, in one file.

    It is a file of its own and no checkpoint of the trainer's: those are as old as `save_steps` says, are deleted by
    `save_total_limit`, and need not hold an optimizer.

    Args:
        path (`Path`): The file; one a machine.
        writes (`bool`): Whether this process writes it: the first of its machine.
    """

    def __init__(self, path: Path, *, writes: bool) -> None:
        self.path = path
        self.step = 0
        self._writes = writes
        self._factor = 1.0

    def save(self, model: Any, optimizer: Any, scheduler: Any, *, step: int, factor: float) -> None:
        """Keep a step, in place of the one before.

        Args:
            model (`torch.nn.Module`): The model, not wrapped.
            optimizer (`torch.optim.Optimizer`): Its optimizer.
            scheduler (`torch.optim.lr_scheduler.LRScheduler`, *optional*): Its schedule.
            step (`int`): The steps done.
            factor (`float`): What the learning rate of the run has been multiplied by.
        """
        self.step, self._factor = step, factor
        if not self._writes:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        kept = {
            "step": step,
            "factor": factor,
            "weights": {name: parameter.detach() for name, parameter in _trained(model)},
            "optimizer": optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
        }
        torch.save(kept, unfinished)
        unfinished.replace(self.path)

    def finds(self, step: int | None) -> bool:
        """Return whether an earlier start of the run has left the file of a step, which then is the one to go back to.

        Args:
            step (`int`, *optional*): What `step` was when the checkpoint was written that the run goes on from.
        """
        if step is None or not self.path.exists():
            return False
        try:
            kept = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
            found, factor = kept["step"], kept["factor"]
        except Exception:  # a file that is damaged, in whatever way, is not the one
            return False
        if found != step:
            return False
        self.step, self._factor = step, factor
        return True

    def read(self, model: Any) -> dict[str, Any]:
        """Return what is kept, which `restore` puts back.

        Args:
            model (`torch.nn.Module`): The model that it is for, not wrapped.

        Raises:
            Exception: If the file is gone or damaged, or is of another model.
        """
        kept: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, parameter in _trained(model):
            if kept["weights"][name].shape != parameter.shape:
                raise ValueError(f"{self.path} is of another model: {name} has another shape in it")
        return kept

    def restore(self, kept: Mapping[str, Any], model: Any, optimizer: Any, scheduler: Any, *, factor: float) -> None:
        """Put weights, optimizer and schedule back, with the learning rate of the run multiplied by `factor`."""
        with torch.no_grad():
            for name, parameter in _trained(model):
                parameter.copy_(kept["weights"][name])
        optimizer.load_state_dict(kept["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(kept["scheduler"])
        scale_rates(optimizer, scheduler, factor / self._factor)

    def remove(self) -> None:
        """Delete the file."""
        if self._writes:
            self.path.unlink(missing_ok=True)


def scale_rates(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiply the learning rate now and all that the schedule will make of it.

    Args:
        optimizer (`torch.optim.Optimizer`): Its groups hold the rate now, and the one that schedules start from.
        scheduler (`torch.optim.lr_scheduler.LRScheduler`, *optional*): The schedule, perhaps made of several.
        factor (`float`): What to multiply by.
    """
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] = group[name] * factor
    for part in _parts(scheduler):
        for name in ("base_lrs", "_last_lr"):
            if hasattr(part, name):
                setattr(part, name, [rate * factor for rate in getattr(part, name)])


def drop_gradients(model: Any) -> None:
    """Make the next optimizer step a step that changes nothing: optimizers pass over weights without a gradient."""
    for parameter in model.parameters():
        parameter.grad = None


def _trained(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _parts(scheduler: Any) -> Iterator[Any]:
    if scheduler is not None:
        yield scheduler
        for part in getattr(scheduler, "_schedulers", []):
            yield from _parts(part)
