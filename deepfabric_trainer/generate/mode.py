"""The mode that a training model needs to generate, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import GenerationConfig

from deepfabric_trainer.generate.sharded import whole_weights

_SETTINGS = {"use_cache": True, "output_router_logits": False}
"""What configs say while a model generates: the router's loss wants the mask of a whole batch."""


@contextmanager
def generation_mode(model: Any) -> Iterator[Any]:
    """Yield the model without its wrappers, ready to generate; put everything back afterwards.

    Weights that FSDP spreads over processes are whole in each: every process enters at the same point of the run, also
    one that has nothing to generate. Inside this context others of the same model cost nothing.

    Inside, the model is in evaluation mode, without gradient checkpointing and a router's loss, with `use_cache` and a
    neutral generation config (no sampling, no penalties); modules that were compiled in place run as they are written,
    since each new length of a prompt would compile them anew. The state of torch's random generators is kept.

    Args:
        model (`torch.nn.Module`): Perhaps wrapped in DDP or FSDP, or compiled.

    Raises:
        ConfigError: If its weights are spread over processes in another way than FSDP's.
    """
    with whole_weights(model) as whole, _ready(extract_model_from_parallel(whole, keep_torch_compile=False)) as ready:
        yield ready


@contextmanager
def _ready(model: Any) -> Iterator[Any]:
    modules = list(model.modules())
    training = [module.training for module in modules]
    compiled = [(module, module._compiled_call_impl) for module in modules if module._compiled_call_impl is not None]
    checkpointed = [module for module in modules if getattr(module, "gradient_checkpointing", False) is True]
    configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
    settings = [
        (config, name, getattr(config, name))
        for config in configs.values()
        for name in _SETTINGS
        if hasattr(config, name)
    ]
    generation_configs = [
        (module, module.generation_config) for module in modules if "generation_config" in vars(module)
    ]
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        model.eval()
        for module, _ in compiled:
            module._compiled_call_impl = None
        for module in checkpointed:
            module.gradient_checkpointing = False
        for config, name, _ in settings:
            setattr(config, name, _SETTINGS[name])
        for module, _ in generation_configs:
            module.generation_config = GenerationConfig()
        yield model
    finally:
        for module, was_training in zip(modules, training, strict=True):
            module.training = was_training
        for module, call in compiled:
            module._compiled_call_impl = call
        for module in checkpointed:
            module.gradient_checkpointing = True
        for config, name, value in settings:
            setattr(config, name, value)
        for module, generation_config in generation_configs:
            module.generation_config = generation_config
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
