"""Generation in plain batches, for models whose past cannot be shared; and which models these are."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from deepfabric_trainer.adapters import adapters_of, has_virtual_tokens

_SHARED_LAYERS = frozenset({DynamicLayer, DynamicSlidingWindowLayer})
_LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""Position embeddings that depend on the longest row of a batch, so that rows would change each other."""
HasEnded = Callable[[Sequence[int]], bool]
"""Tells of tokens whether they end what they belong to; asked after each of them."""


def why_not_shared(model: Any) -> str | None:
    """Return why the past of a model cannot be shared by several prompts, `None` when it can.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Without distributed wrappers.
    """
    if has_virtual_tokens(model):
        return "has a prompt-learning adapter, whose virtual tokens stand before every prompt"
    if any(getattr(adapter, "alora_invocation_tokens", None) for adapter in adapters_of(model)):
        return "has an adapter that is switched on by tokens of the prompt"
    base = base_of(model)
    config = base.config
    if config.is_encoder_decoder or config.get_text_config(decoder=True) is not config:
        return "is not a plain decoder of text"
    if "position_ids" not in forward_parameters(base):
        return "takes no position_ids"
    layers = {type(layer) for layer in DynamicCache(config=config).layers}
    if getattr(base, "_is_stateful", False) or layers - _SHARED_LAYERS or _is_chunked(config):
        return "does not keep its past as keys and values of single tokens (recurrent or chunked layers)"
    if getattr(config, "num_kv_shared_layers", 0):
        return "has layers that use the keys and values of others"
    if _rope_types(config) & _LENGTH_DEPENDENT:
        return "scales its positions by the longest row of a batch"
    return None


def generate_plain(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Iterable[int],
    pad_token_id: int,
    has_ended: HasEnded | None = None,
) -> list[list[int]]:
    """Continue a batch of prompts greedily with the model's own `generate`.

    Shorter prompts are padded on the left. Behind virtual tokens those of each length are a batch of their own: PEFT
    does not tell the model where a padded prompt begins, and how far it is from its virtual tokens matters.

    Args:
        model (`PreTrainedModel` or `PeftModel`): In generation mode.
        prompts (`list[list[int]]`): Token ids, B lists of length T_i > 0.
        max_new_tokens (`int`): The most tokens to generate a prompt.
        stop_token_ids (`list[int]`): Tokens that end a continuation.
        pad_token_id (`int`): Fills up the batch; masked everywhere.
        has_ended (`Callable`, *optional*): Tells of the tokens of a continuation whether they end it.

    Returns:
        `list[list[int]]`: The continuations, each up to and with its stop token.
    """
    stops = set(stop_token_ids)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(stops) or None,
        pad_token_id=pad_token_id,
    )
    continuations: dict[int, list[int]] = {}
    for batch in _of_one_length(prompts) if has_virtual_tokens(model) else [range(len(prompts))]:
        inputs = _left_padded([prompts[index] for index in batch], pad_token_id, model.device)
        begin = inputs["input_ids"].shape[1]
        criteria = StoppingCriteriaList([] if has_ended is None else [_Ends(has_ended, begin)])
        output = model.generate(**inputs, generation_config=config, stopping_criteria=criteria)
        continued = [_cut(row, stops, has_ended) for row in output[:, begin:].tolist()]
        continuations.update(zip(batch, continued, strict=True))
    return [continuations[index] for index in range(len(prompts))]


def base_of(model: Any) -> Any:
    """Return the model inside its PEFT wrapper, which is the model itself where there is none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def forward_parameters(base: Any) -> Iterable[str]:
    """Return the argument names of the class's own forward; trainers patch that of the instance."""
    return inspect.signature(type(base).forward).parameters


def _is_chunked(config: Any) -> bool:
    types = getattr(config, "layer_types", None) or ()
    return "chunked_attention" in types or getattr(config, "attention_chunk_size", None) is not None


def _rope_types(config: Any) -> set[Any]:
    """Return the kinds of position embeddings, of which families with several kinds of layers have one for each."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return {one.get("rope_type") for one in (parameters, *parameters.values()) if isinstance(one, Mapping)}


def _of_one_length(prompts: Sequence[list[int]]) -> Iterable[list[int]]:
    """Return the indices of the prompts of each length."""
    batches: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        batches.setdefault(len(prompt), []).append(index)
    return batches.values()


def _left_padded(prompts: Sequence[list[int]], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = [[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _cut(tokens: list[int], stops: set[int], has_ended: HasEnded | None) -> list[int]:
    for length, token in enumerate(tokens, start=1):
        if token in stops or (has_ended is not None and has_ended(tokens[:length])):
            return tokens[:length]
    return tokens


class _Ends(StoppingCriteria):
    """Ends the rows of which a function says so.

    Args:
        has_ended (`Callable`): Is asked of what stands behind the prompt.
        begin (`int`): Where that begins.
    """

    def __init__(self, has_ended: HasEnded, begin: int) -> None:
        self._has_ended = has_ended
        self._begin = begin

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        ended = [self._has_ended(row) for row in input_ids[:, self._begin :].tolist()]
        return torch.tensor(ended, device=input_ids.device)
