"""Weights that FSDP spreads over processes, whole in each of them for the time of a generation.

Processes generate different numbers of tokens. As long as each forward pass gathered its weights they would wait for
each other forever; so the weights are gathered once, before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from deepfabric_trainer.errors import ConfigError


@contextmanager
def whole_weights(model: Any) -> Iterator[Any]:
    """Yield a model whose forward pass needs no other process; every process enters at the same point of the run.

    While it lasts each process holds the whole model beside its own part. Changes to the weights are lost.

    Args:
        model (`torch.nn.Module`): Perhaps spread over the processes, by FSDP of either version.

    Raises:
        ConfigError: If its weights are spread over processes in another way.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        with FullyShardedDataParallel.summon_full_params(model, writeback=False), _unwrapped(model) as inner:
            yield inner
    elif any(isinstance(module, FSDPModule) for module in model.modules()) and _is_spread(model):
        with _unsharded(model):
            _refuse_spread(model)
            yield model
    else:
        _refuse_spread(model)
        yield model


@contextmanager
def _unwrapped(model: Any) -> Iterator[Any]:
    """Take FSDP's first version out of a model: its wrappers gather weights also where they are whole already."""
    wrappers = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, FullyShardedDataParallel)
    ]
    try:
        for module, name, child in wrappers:
            module._modules[name] = child.module
        yield model.module if isinstance(model, FullyShardedDataParallel) else model
    finally:
        for module, name, child in wrappers:
            module._modules[name] = child


@contextmanager
def _unsharded(model: Any) -> Iterator[None]:
    """Gather what FSDP's second version has spread, and keep it between forward passes."""
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    # Which of them is the root is found by the first forward pass, and changes what is kept.
    modules[0]._get_fsdp_state()._lazy_init()
    groups = [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]
    spread_again = [group.post_forward_mesh_info for group in groups]
    try:
        for group in groups:
            group.post_forward_mesh_info = None
        for module in modules:
            module.unshard()
        yield
    finally:
        for module in modules:
            module.reshard()
        for group, mesh in zip(groups, spread_again, strict=True):
            group.post_forward_mesh_info = mesh


def _is_spread(model: torch.nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters())


def _refuse_spread(model: torch.nn.Module) -> None:
    if _is_spread(model):
        raise ConfigError(
            "the model's weights are spread over processes (ZeRO-3 or tensor parallel), which generate different "
            "numbers of tokens",
            expected="a whole model in each process, or FSDP",
            fix="generate after training, or train with DDP, FSDP or ZeRO-2",
        )
