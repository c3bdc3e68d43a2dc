"""Computing the keys and values of tokens that stand behind a past which is there already."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from deepfabric_trainer.generate.cache import Past, cache_of, past_of
from deepfabric_trainer.generate.plain import base_of, forward_parameters

MAX_TOKENS = 512
"""Tokens of several prompts, padding included, that are computed at a time; more would not be faster on a CPU."""

Tokens = Sequence[int]


class Prefill:
    """Computes tokens behind a past of one row.

    Args:
        model (`PreTrainedModel` or `PeftModel`): In generation mode.
        pad_token_id (`int`): Fills up rows; never seen by another token.

    Attributes:
        options (`dict[str, Any]`): What each call of the model is given.
    """

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self._model = model
        self._pad_token_id = pad_token_id
        # The logits are not used, and those of a long prompt are large.
        keeps_logits = "logits_to_keep" in forward_parameters(base_of(model))
        self.options: dict[str, Any] = {"use_cache": True} | ({"logits_to_keep": 1} if keeps_logits else {})

    def one(self, before: Past, tokens: Tokens, begin: int) -> Past:
        """Return a past of `begin` tokens with more behind it."""
        return self._padded(before, [tokens], begin)

    def each(
        self, before: Past, rows: Mapping[int, Tokens], begin: int, *, joined: bool
    ) -> Iterator[tuple[int, Past, int, int]]:
        """Compute the tokens of rows that all go on from one past.

        Args:
            before (`Past`): Of one row.
            rows (`Mapping[int, list[int]]`): Their tokens, at least one each, by any number.
            begin (`int`): How many tokens the past has.
            joined (`bool`): Compute several rows as one, in which none sees another: without padding, and with the
                past read once. For models with full attention that take a mask of four dimensions.

        Yields:
            `tuple[int, Past, int, int]`: The number of a row, what holds its keys and values, in which row of it, and
            where the tokens behind the past begin in that.
        """
        for chunk in _chunks(rows, padded=not joined):
            tokens = [rows[number] for number in chunk]
            if not joined:
                computed = self._padded(before, tokens, begin)
                yield from ((number, computed, source, begin) for source, number in enumerate(chunk))
                continue
            computed, first = self._joined(before, tokens, begin), begin
            for number in chunk:
                yield number, computed, 0, first
                first += len(rows[number])

    def _padded(self, before: Past, rows: Sequence[Tokens], begin: int) -> Past:
        """Compute rows beside each other; padding at their end is seen by none."""
        longest = max(map(len, rows))
        ids = [[*row, *[self._pad_token_id] * (longest - len(row))] for row in rows]
        return self._run(before, ids, [range(begin, begin + longest)] * len(rows))

    def _joined(self, before: Past, rows: Sequence[Tokens], begin: int) -> Past:
        """Compute rows behind each other."""
        if len(rows) == 1:
            return self._padded(before, rows, begin)
        numbers = torch.tensor([number for number, row in enumerate(rows) for _ in row], device=self._model.device)
        own = (numbers[:, None] == numbers).tril()
        mask = torch.cat([own.new_ones(len(numbers), begin), own], dim=1)[None, None]
        positions = chain.from_iterable(range(begin, begin + len(row)) for row in rows)
        return self._run(before, [[*chain.from_iterable(rows)]], [[*positions]], attention_mask=mask)

    def _run(self, before: Past, ids: Sequence[Tokens], positions: Sequence[Tokens], **options: torch.Tensor) -> Past:
        cache = cache_of(before, len(ids))
        self._model(
            input_ids=torch.tensor(ids, device=self._model.device),
            position_ids=torch.tensor([[*row] for row in positions], device=self._model.device),
            past_key_values=cache,
            **self.options,
            **options,
        )
        return past_of(cache)


def _chunks(rows: Mapping[int, Tokens], *, padded: bool) -> Iterator[list[int]]:
    """Cut rows into chunks of at most `MAX_TOKENS`, padding included, or of one row; the longest first."""
    chunk: list[int] = []
    tokens = 0
    for number in sorted(rows, key=lambda number: -len(rows[number])):
        added = len(rows[chunk[0] if padded and chunk else number])
        if chunk and tokens + added > MAX_TOKENS:
            yield chunk
            chunk, tokens, added = [], 0, len(rows[number])
        chunk.append(number)
        tokens += added
    if chunk:
        yield chunk
