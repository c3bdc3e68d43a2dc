"""Greedy generation in batches, in which the beginnings that prompts share are computed once."""

import functools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.generate.cache import Past, RowsPast, cache_of, past_of
from deepfabric_trainer.generate.mode import generation_mode
from deepfabric_trainer.generate.plain import base_of, forward_parameters, generate_plain, why_not_shared
from deepfabric_trainer.generate.prefix_tree import Node, build_prefix_tree

logger = logging.getLogger(__name__)

MAX_PREFILL_TOKENS = 2048
"""Tokens of several prompts, padding included, that are computed at a time; more would not be faster."""


def generate_with_shared_prefix(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    batch_size: int,
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

    Each beginning that prompts share is prefilled once, and forgotten with the last prompt that needs it. What a
    prompt has of its own is prefilled beside others with the same beginning, without its last token; with this the
    rows of a batch begin, whatever they share. Rows that have ended leave the batch when half of it has.

    Where the model's past cannot be shared, plain left-padded batches give the same result, and the log says why.

    Args:
        model (`PreTrainedModel` or `PeftModel`): In [`generation_mode`], and not changed in the meantime.
        prompts (`list[list[int]]`): All of them, B lists of length T_i > 0.
        max_new_tokens (`int`): The most tokens to generate a prompt.
        stop_token_ids (`list[int]`): Tokens that end a continuation.
        pad_token_id (`int`): Fills up batches; never seen by another token.

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
    ) -> None:
        empty = next((index for index, prompt in enumerate(prompts) if not len(prompt)), None)
        if empty is not None:
            raise DataFormatError("a prompt without tokens", expected="at least one token", path=f"prompts[{empty}]")
        self._model = model
        self._prompts = prompts
        self._max_new_tokens = max_new_tokens
        self._stops = frozenset(stop_token_ids)
        self._pad_token_id = pad_token_id
        self._reason = why_not_shared(model)
        if self._reason is not None:
            _warn_once(f"{type(model).__name__} {self._reason}: its prompts are generated in plain padded batches")
        # The prefill's logits are not used, and those of a long prompt are large.
        keeps_logits = "logits_to_keep" in forward_parameters(base_of(model))
        self._options = {"use_cache": True} | ({"logits_to_keep": 1} if keeps_logits else {})
        tree = build_prefix_tree(prompts)
        self._nodes = tree.nodes
        self.order = tree.order
        """The prompts in an order in which those that share most are beside each other, the longest first."""
        self._pasts: dict[Node, Past] = {}
        self._needed = Counter(node for index in range(len(prompts)) for node in self._path(index))

    @torch.no_grad()
    def generate(self, indices: Sequence[int]) -> list[list[int]]:
        """Continue some of the prompts in one batch, each at most once.

        Args:
            indices (`list[int]`): Which prompts.

        Returns:
            `list[list[int]]`: Their continuations, each up to and with its stop token.
        """
        if self._reason is not None:
            return generate_plain(
                self._model,
                [self._prompts[index] for index in indices],
                max_new_tokens=self._max_new_tokens,
                stop_token_ids=self._stops,
                pad_token_id=self._pad_token_id,
            )
        past = RowsPast([len(self._prompts[index]) - 1 for index in indices], self._max_new_tokens)
        for node, places in _grouped(self._nodes[index] for index in indices):
            self._prefill_own(node, places, indices, past)
        self.forget(indices)
        return self._decode([self._prompts[index] for index in indices], past)

    def forget(self, indices: Iterable[int]) -> None:
        """Take it that some of the prompts are not generated any more, so that what only they share is let go."""
        for index in indices:
            for node in self._path(index):
                self._needed[node] -= 1
                if not self._needed[node]:
                    self._pasts.pop(node, None)

    def _path(self, index: int) -> Iterator[Node]:
        """Go over the beginnings of a prompt, from the longest to the shortest."""
        node = self._nodes[index]
        while node is not None:
            yield node
            node = node.parent

    def _past_of(self, node: Node) -> Past:
        """Return the keys and values of a shared beginning, computed when it is first asked for."""
        if node not in self._pasts:
            begin = node.parent.length if node.parent else 0
            before = self._past_of(node.parent) if node.parent else []
            self._pasts[node] = self._extend(before, [self._prompts[node.prompt][begin : node.length]], begin)
        return self._pasts[node]

    def _prefill_own(self, node: Node | None, places: list[int], indices: Sequence[int], past: RowsPast) -> None:
        """Compute what prompts have behind a beginning, but for the last token, and put all of it into their rows."""
        begin = node.length if node else 0
        before = self._past_of(node) if node else []
        own = {place: self._prompts[indices[place]][begin:-1] for place in places}
        for place in [place for place in places if not own[place]]:
            if node:
                past.put(place, before, 0)
            del own[place]
        for chunk in _chunks(own):
            computed = self._extend(before, [own[place] for place in chunk], begin)
            for row, place in enumerate(chunk):
                past.put(place, computed, row)

    def _extend(self, before: Past, rows: Sequence[Sequence[int]], begin: int) -> Past:
        """Compute tokens that stand behind a past of `begin` tokens; rows are padded at their end, which none sees."""
        longest = max(map(len, rows))
        ids = [[*row, *[self._pad_token_id] * (longest - len(row))] for row in rows]
        cache = cache_of(before, len(rows))
        self._model(
            input_ids=torch.tensor(ids, device=self._model.device),
            position_ids=torch.arange(begin, begin + longest, device=self._model.device).expand(len(rows), -1),
            past_key_values=cache,
            **self._options,
        )
        return past_of(cache)

    def _decode(self, prompts: Sequence[list[int]], past: RowsPast) -> list[list[int]]:
        """Generate behind the last tokens of prompts, whose other tokens are the past."""
        device, lengths = self._model.device, [len(prompt) for prompt in prompts]
        longest = max(lengths)
        mask = torch.ones(len(prompts), longest + self._max_new_tokens, dtype=torch.long, device=device)
        for row, length in enumerate(lengths):
            mask[row, : longest - length] = 0
        tokens = torch.tensor([[prompt[-1]] for prompt in prompts], device=device)
        positions = torch.tensor([[length - 1] for length in lengths], device=device)
        cache = past.cache()
        continuations: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
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
                continuation = continuations[row]
                if continuation and continuation[-1] in self._stops:
                    continue
                continuation.append(token)
                if token not in self._stops:
                    going.append(place)
            if not going:
                break
            if 2 * len(going) <= len(rows):
                kept = torch.tensor(going, device=device)
                cache.batch_select_indices(kept)
                tokens, positions, mask = tokens[kept], positions[kept], mask[kept]
                rows = [rows[place] for place in going]
        return continuations


def _grouped(nodes: Iterable[Node | None]) -> Iterator[tuple[Node | None, list[int]]]:
    """Group the places of a batch by the beginning that they go on from."""
    groups: dict[Node | None, list[int]] = {}
    for place, node in enumerate(nodes):
        groups.setdefault(node, []).append(place)
    yield from groups.items()


def _chunks(rows: dict[int, list[int]]) -> Iterator[list[int]]:
    """Cut rows into chunks of at most `MAX_PREFILL_TOKENS`, padding included, or of one row; the longest first."""
    chunk: list[int] = []
    for place in sorted(rows, key=lambda place: -len(rows[place])):
        if chunk and (len(chunk) + 1) * len(rows[chunk[0]]) > MAX_PREFILL_TOKENS:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
