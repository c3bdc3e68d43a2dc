"""How a model's past can be shared: asked of its config, then of the model, since no config says all of it."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from deepfabric_trainer.generate.pasts import SharedPasts
from deepfabric_trainer.generate.plain import base_of, why_not_shared
from deepfabric_trainer.generate.prefill import Prefill
from deepfabric_trainer.generate.shared_attention import can_attend

_TOLERANCE = 5e-2
"""Largest difference of the logits, relative to the largest logit. Models may compute in bfloat16, whatever their
weights are in; what is computed wrongly differs by 0.2 and more."""


@dataclass(frozen=True)
class Sharing:
    """How a model's past can be shared.

    Args:
        reads_once (`bool`): Whether its attention can read what rows share without a copy for each.
        why_not (`str`, *optional*): Why it cannot be shared at all, in words for the log.
    """

    reads_once: bool = False
    why_not: str | None = None


_known: WeakKeyDictionary[Any, dict[str | None, Sharing]] = WeakKeyDictionary()


def find_sharing(model: Any) -> Sharing:
    """Find how a model's past can be shared, so that it gives the logits that it gives for each prompt alone.

    A few made-up prompts are computed, once for each model and attention implementation.

    Args:
        model (`PreTrainedModel` or `PeftModel`): In generation mode.
    """
    reason = why_not_shared(model)
    if reason is not None:
        return Sharing(why_not=reason)
    base = base_of(model)
    known, implementation = _known.setdefault(base, {}), getattr(base.config, "_attn_implementation", None)
    if implementation not in known:
        known[implementation] = _try(model, base)
    return known[implementation]


def _try(model: Any, base: Any) -> Sharing:
    reason = None
    for reads_once in (True, False) if can_attend(base) else (False,):
        reason = _why_different(model, base, reads_once=reads_once)
        if reason is None:
            return Sharing(reads_once)
    return Sharing(why_not=reason)


@torch.no_grad()
def _why_different(model: Any, base: Any, *, reads_once: bool) -> str | None:
    """Return what a model does wrong behind a shared past; `None` when it computes it right."""
    prompts = _prompts(base.config.vocab_size)
    prefill = Prefill(model, pad_token_id=0)
    try:
        alone = torch.stack(
            [model(input_ids=torch.tensor([prompt], device=model.device)).logits[0, -1] for prompt in prompts]
        )
        batch = SharedPasts(prompts, prefill, room=1).batch(range(len(prompts)), reads_once=reads_once)
        tokens, positions, mask = batch.inputs(0, model.device)
        with batch.attending(base):
            output = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=batch.cache,
                **prefill.options,
            )
    except Exception as error:  # whatever a model of strangers does with a past of ours, plain batches are the answer
        return f"cannot go on from a past of several prompts ({type(error).__name__}: {error})"
    difference = float((output.logits[:, -1] - alone[batch.indices]).abs().max() / alone.abs().max())
    if not difference <= _TOLERANCE:
        return f"gives logits behind a shared past that differ by {difference:.2g} of the largest"
    return None


def _prompts(vocab_size: int) -> list[list[int]]:
    """Return three prompts that begin alike, one of them with a single token of its own."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab_size, (4, 24), generator=generator).tolist()
    return [tokens[0] + branch[:own] for branch, own in zip(tokens[1:], (9, 1, 5), strict=True)]
