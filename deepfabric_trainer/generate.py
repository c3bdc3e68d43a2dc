"""Greedy generation for many prompts that begin alike, and the mode a training model needs for it."""

import copy
import functools
import inspect
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from deepfabric_trainer.errors import DataFormatError

logger = logging.getLogger(__name__)

MIN_SHARED_TOKENS = 16
"""Below this a separate prefill costs more than it saves."""


@torch.no_grad()
def generate_with_shared_prefix(
    model: Any,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    batch_size: int,
) -> list[list[int]]:
    """Continue each prompt greedily, computing the tokens that all of them begin with only once.

    The shared prefix is prefilled into one cache, which is repeated for every batch; each prompt's own tokens follow
    it, left-padded, with the padding masked. Where the model has no cache that allows this, or the prompts share
    nothing, plain left-padded batches give the same result.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Perhaps wrapped or in training; see [`generation_mode`].
        prompts (`list[list[int]]`): Token ids, B lists of length T_i > 0.
        max_new_tokens (`int`): The most tokens to generate a prompt.
        stop_token_ids (`list[int]`): Tokens that end a continuation.
        pad_token_id (`int`): Fills up the batches; masked everywhere.
        batch_size (`int`): Prompts generated at a time.

    Returns:
        `list[list[int]]`: The continuations in the order of `prompts`, each up to and with its stop token.

    Raises:
        DataFormatError: If a prompt is empty.
    """
    if not prompts:
        return []
    prefix = _shared_prefix(prompts)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(stop_token_ids) or None,
        pad_token_id=pad_token_id,
    )
    # The longest first: if memory does not suffice, it shows at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    continuations: list[list[int]] = [[] for _ in prompts]
    with generation_mode(model) as model:
        cache = _prefill(model, prefix) if len(prefix) >= MIN_SHARED_TOKENS and _cache_is_plain(model) else None
        kept = len(prefix) if cache is not None else 0
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            inputs = _pad([prompts[index] for index in batch], kept, pad_token_id, model.device)
            if cache is not None:
                inputs["past_key_values"] = _repeat(cache, len(batch))
            output = model.generate(**inputs, generation_config=config)
            for index, row in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                continuations[index] = _cut(row, set(stop_token_ids))
    return continuations


@contextmanager
def generation_mode(model: Any) -> Iterator[Any]:
    """Yield the model without its distributed wrappers, ready to generate; put everything back afterwards.

    Inside, the model is in evaluation mode, without gradient checkpointing, with `use_cache` and a neutral generation
    config (no sampling, no penalties). The state of torch's random generators is kept.

    Args:
        model (`torch.nn.Module`): Perhaps wrapped in DDP or compiled.
    """
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    modules = list(model.modules())
    training = [module.training for module in modules]
    checkpointed = [module for module in modules if getattr(module, "gradient_checkpointing", False) is True]
    configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
    use_cache = [(config, config.use_cache) for config in configs.values() if hasattr(config, "use_cache")]
    generation_configs = [
        (module, module.generation_config) for module in modules if "generation_config" in vars(module)
    ]
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        model.eval()
        for module in checkpointed:
            module.gradient_checkpointing = False
        for config, _ in use_cache:
            config.use_cache = True
        for module, _ in generation_configs:
            module.generation_config = GenerationConfig()
        yield model
    finally:
        for module, was_training in zip(modules, training, strict=True):
            module.training = was_training
        for module in checkpointed:
            module.gradient_checkpointing = True
        for config, value in use_cache:
            config.use_cache = value
        for module, generation_config in generation_configs:
            module.generation_config = generation_config
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def _shared_prefix(prompts: list[list[int]]) -> list[int]:
    """Return the longest common beginning that leaves every prompt a token of its own."""
    shortest = min(map(len, prompts))
    if shortest == 0:
        raise DataFormatError(
            "a prompt without tokens", expected="at least one token", path=f"prompts[{prompts.index([])}]"
        )
    if len(prompts) == 1:
        return []
    columns = zip(*prompts, strict=False)
    common = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return common[: shortest - 1]


def _cache_is_plain(model: Any) -> bool:
    """Return whether the model's cache can be repeated and continued behind padding; say so once if not."""
    reason = _why_not_plain(model)
    if reason is not None:
        _warn_once(f"{type(model).__name__} {reason}: its prompts are generated in plain padded batches")
    return reason is None


def _why_not_plain(model: Any) -> str | None:
    adapters = getattr(model, "peft_config", None) or {}
    if any(adapter.is_prompt_learning for adapter in adapters.values()):
        return "has a prompt-learning adapter, whose virtual tokens stand before every prompt"
    if any(getattr(adapter, "alora_invocation_tokens", None) for adapter in adapters.values()):
        return "has an adapter that is switched on by tokens of the prompt"
    base = _base(model)
    if base.config.is_encoder_decoder or base.config.get_text_config(decoder=True) is not base.config:
        return "is not a plain decoder of text"
    if "position_ids" not in _forward_parameters(base):
        return "takes no position_ids"
    kinds = {type(layer) for layer in DynamicCache(config=base.config).layers}
    if getattr(base, "_is_stateful", False) or kinds - {DynamicLayer}:
        return "does not keep all past tokens in its cache (sliding windows or recurrent layers)"
    return None


def _prefill(model: Any, prefix: list[int]) -> DynamicCache:
    cache = DynamicCache(config=_base(model).config)
    # The prefix may be long and its logits are not used: keep one position's where the model can.
    options = {"logits_to_keep": 1} if "logits_to_keep" in _forward_parameters(_base(model)) else {}
    model(input_ids=torch.tensor([prefix], device=model.device), past_key_values=cache, use_cache=True, **options)
    return cache


def _base(model: Any) -> Any:
    """Return the model inside its PEFT wrapper, which is the model itself where there is none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forward_parameters(base: Any) -> Iterable[str]:
    """Return the argument names of the class's own forward; trainers patch that of the instance."""
    return inspect.signature(type(base).forward).parameters


def _repeat(cache: DynamicCache, times: int) -> DynamicCache:
    """Return the cache of a batch. A copy: generation appends to it, and the next batch needs the original."""
    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(times)
    return repeated


def _pad(prompts: list[list[int]], kept: int, pad_token_id: int, device: torch.device) -> dict[str, Any]:
    """Return `input_ids` and `attention_mask`, both [B, T]; padding follows the first `kept` tokens of each row."""
    longest = max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    ids = [prompt[:kept] + [pad_token_id] * gap + prompt[kept:] for prompt, gap in zip(prompts, gaps, strict=True)]
    mask = [[1] * kept + [0] * gap + [1] * (longest - kept - gap) for gap in gaps]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _cut(tokens: list[int], stops: set[int]) -> list[int]:
    end = next((index + 1 for index, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
