"""Greedy generation in batches, in which the beginnings that prompts share are computed once."""

import functools
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import PartialState

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.generate.mode import generation_mode
from deepfabric_trainer.generate.pasts import Batch, SharedPasts
from deepfabric_trainer.generate.plain import HasEnded, base_of, generate_plain
from deepfabric_trainer.generate.prefill import Prefill
from deepfabric_trainer.generate.trial import find_sharing

logger = logging.getLogger(__name__)


def generate_with_shared_prefix(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    batch_size: int,
    has_ended: HasEnded | None = None,
    deadline: float | None = None,
) -> list[list[int]]:
    """Continue each prompt greedily, computing the tokens that prompts begin with only once.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Perhaps wrapped or in training; see [`generation_mode`].
        prompts (`list[list[int]]`): Token ids, B lists of length T_i > 0.
        max_new_tokens (`int`): The most tokens to generate a prompt.
        stop_token_ids (`list[int]`): Tokens that end a continuation.
        pad_token_id (`int`): Fills up batches; never seen by another token.
        batch_size (`int`): Prompts generated at a time.
        has_ended (`Callable`, *optional*): Tells of the tokens of a continuation whether they end it, where no single
            token does.
        deadline (`float`, *optional*): When to begin no more batches, by `time.monotonic()`. The first one is always
            generated. With a deadline the prompts are taken in their order; without one those that share most stand
            in one batch.

    Returns:
        `list[list[int]]`: The continuations in the order of `prompts`, each up to and with its stop token; of the
        first prompts only, where the deadline came before the others.

    Raises:
        ConfigError: If the model's weights are spread over processes.
        DataFormatError: If a prompt is empty.
    """
    if not prompts:
        return []
    continuations: dict[int, list[int]] = {}
    with generation_mode(model) as model:
        generator = BatchGenerator(
            model,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
            pad_token_id=pad_token_id,
            has_ended=has_ended,
        )
        order = generator.order if deadline is None else range(len(prompts))
        for begin in range(0, len(prompts), batch_size):
            if begin and deadline is not None and time.monotonic() >= deadline:
                break
            batch = order[begin : begin + batch_size]
            continuations.update(zip(batch, generator.generate(batch), strict=True))
    return [continuations[index] for index in sorted(continuations)]


class BatchGenerator:
    """Continues prompts greedily, a batch at a time, and keeps what the batches to come share with those before.

    [`SharedPasts`] computes what stands before the last tokens. Rows that have ended leave the batch when half of it
    has.

    Where the model's past cannot be shared, which is tried with the first generator of a model, plain batches give the
    same result, and the log says why.

    Args:
        model (`PreTrainedModel` or `PeftModel`): In [`generation_mode`], and not changed in the meantime.
        prompts (`list[list[int]]`): All of them, B lists of length T_i > 0.
        max_new_tokens (`int`): The most tokens to generate a prompt.
        stop_token_ids (`list[int]`): Tokens that end a continuation.
        pad_token_id (`int`): Fills up batches; never seen by another token.
        has_ended (`Callable`, *optional*): Tells of the tokens of a continuation whether they end it, where no single
            token does.

    Raises:
        DataFormatError: If a prompt is empty.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        has_ended: HasEnded | None = None,
    ) -> None:
        empty = next((index for index, prompt in enumerate(prompts) if not len(prompt)), None)
        if empty is not None:
            raise DataFormatError("a prompt without tokens", expected="at least one token", path=f"prompts[{empty}]")
        self._model = model
        self._prompts = prompts
        self._max_new_tokens = max_new_tokens
        self._stops = frozenset(stop_token_ids)
        self._pad_token_id = pad_token_id
        self._has_ended = has_ended
        self._sharing = find_sharing(model)
        if self._sharing.why_not is not None:
            name = type(model).__name__
            _warn_once(f"{name} {self._sharing.why_not}: its prompts are generated in plain batches")
        prefill = Prefill(model, pad_token_id)
        self._options = prefill.options
        self._pasts = SharedPasts(prompts, prefill, max_new_tokens)
        self.order = self._pasts.order
        """The prompts in an order in which those that share most are beside each other, the longest first."""

    @torch.no_grad()
    def generate(self, indices: Sequence[int]) -> list[list[int]]:
        """Continue some of the prompts in one batch, each at most once.

        Args:
            indices (`list[int]`): Which prompts.

        Returns:
            `list[list[int]]`: Their continuations, each up to and with its stop token.
        """
        if self._sharing.why_not is not None:
            return generate_plain(
                self._model,
                [self._prompts[index] for index in indices],
                max_new_tokens=self._max_new_tokens,
                stop_token_ids=self._stops,
                pad_token_id=self._pad_token_id,
                has_ended=self._has_ended,
            )
        batch = self._pasts.batch(indices, reads_once=self._sharing.reads_once)
        with batch.attending(base_of(self._model)):
            continuations = self._decode(batch)
        in_order = dict(zip(batch.indices, continuations, strict=True))
        return [in_order[index] for index in indices]

    def forget(self, indices: Iterable[int]) -> None:
        """Take it that some of the prompts are not generated any more, so that what only they share is let go."""
        self._pasts.forget(indices)

    def _decode(self, batch: Batch) -> list[list[int]]:
        """Generate behind the last tokens of prompts."""
        cache, longest = batch.cache, max(batch.own) + 1
        tokens, positions, mask = batch.inputs(self._max_new_tokens, self._model.device)
        continuations: list[list[int]] = [[] for _ in batch.prompts]
        rows, ended = list(range(len(continuations))), set[int]()
        has_ended = self._has_ended or _never
        for step in range(self._max_new_tokens):
            output = self._model(
                input_ids=tokens,
                attention_mask=mask[:, : longest + step],
                position_ids=positions + step,
                past_key_values=cache,
                **self._options,
            )
            tokens = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            going = []
            for place, (row, token) in enumerate(zip(rows, tokens[:, 0].tolist(), strict=True)):
                if row in ended:
                    continue
                continuations[row].append(token)
                if token in self._stops or has_ended(continuations[row]):
                    ended.add(row)
                else:
                    going.append(place)
            if not going:
                break
            if 2 * len(going) <= len(rows):
                kept = torch.tensor(going, device=tokens.device)
                cache.batch_select_indices(kept)
                tokens, positions, mask = tokens[kept], positions[kept], mask[kept]
                rows = [rows[place] for place in going]
        return continuations


def _never(tokens: Sequence[int]) -> bool:
    return False


@functools.cache
def _warn_once(message: str) -> None:
    if PartialState().is_main_process:
        logger.warning(message)
