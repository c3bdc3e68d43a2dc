"""Greedy generation in batches, in which the beginnings that prompts share are computed once."""

import functools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.generate.cache import BranchesCache, Past, RowsPast
from deepfabric_trainer.generate.mode import generation_mode
from deepfabric_trainer.generate.plain import HasEnded, base_of, generate_plain, why_not_shared
from deepfabric_trainer.generate.prefill import Prefill
from deepfabric_trainer.generate.prefix_tree import Node, build_prefix_tree
from deepfabric_trainer.generate.shared_attention import attending_to, can_attend

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
        self._reason = why_not_shared(model)
        if self._reason is not None:
            _warn_once(f"{type(model).__name__} {self._reason}: its prompts are generated in plain padded batches")
        self._reads_once = self._reason is None and can_attend(base_of(model))
        self._prefill = Prefill(model, pad_token_id)
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
                has_ended=self._has_ended,
            )
        groups = _grouped(self._nodes, indices)
        reads_once = self._reads_once and _saves_half(groups)
        rows = [index for members in groups.values() for index in members]
        own = [len(self._prompts[index]) - 1 - _length(self._nodes[index]) * reads_once for index in rows]
        past = RowsPast(own, self._max_new_tokens)
        for node, members in groups.items():
            self._prefill_own(node, members, rows, past, reads_once=reads_once)
        cache = past.cache([(self._past_of(node), len(members)) for node, members in groups.items() if reads_once])
        self.forget(indices)
        with attending_to(cache, base_of(self._model)) if reads_once else nullcontext():
            continuations = self._decode([self._prompts[index] for index in rows], own, cache)
        in_order = dict(zip(rows, continuations, strict=True))
        return [in_order[index] for index in indices]

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

    def _past_of(self, node: Node | None) -> Past:
        """Return the keys and values of a shared beginning, computed when it is first asked for."""
        if node is None:
            return []
        if node not in self._pasts:
            begin = _length(node.parent)
            own = self._prompts[node.prompt][begin : node.length]
            self._pasts[node] = self._prefill.one(self._past_of(node.parent), own, begin)
        return self._pasts[node]

    def _prefill_own(
        self, node: Node | None, members: Sequence[int], rows: Sequence[int], past: RowsPast, *, reads_once: bool
    ) -> None:
        """Compute what prompts have behind a beginning, but for the last token, and put it into their rows."""
        begin, before = _length(node), self._past_of(node)
        own = {rows.index(index): self._prompts[index][begin:-1] for index in members}
        for row in [row for row in own if not own[row]]:
            if before:
                past.put(row, before, 0, begin if reads_once else 0)
            del own[row]
        for row, computed, source, first in self._prefill.each(before, own, begin, joined=reads_once):
            past.put(row, computed, source, first if reads_once else 0)

    def _decode(self, prompts: Sequence[list[int]], own: Sequence[int], cache: BranchesCache) -> list[list[int]]:
        """Generate behind the last tokens of prompts; of those before, each has so many of its own in the cache."""
        device, longest = self._model.device, max(own) + 1
        mask = torch.ones(len(prompts), longest + self._max_new_tokens, dtype=torch.long, device=device)
        for row, length in enumerate(own):
            mask[row, : longest - 1 - length] = 0
        tokens = torch.tensor([[prompt[-1]] for prompt in prompts], device=device)
        positions = torch.tensor([[len(prompt) - 1] for prompt in prompts], device=device)
        continuations: list[list[int]] = [[] for _ in prompts]
        rows, ended = list(range(len(prompts))), set[int]()
        has_ended = self._has_ended or _never
        for step in range(self._max_new_tokens):
            output = self._model(
                input_ids=tokens,
                attention_mask=mask[:, : longest + step],
                position_ids=positions + step,
                past_key_values=cache,
                **self._prefill.options,
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
                kept = torch.tensor(going, device=device)
                cache.batch_select_indices(kept)
                tokens, positions, mask = tokens[kept], positions[kept], mask[kept]
                rows = [rows[place] for place in going]
        return continuations


def _length(node: Node | None) -> int:
    return node.length if node else 0


def _grouped(nodes: Sequence[Node | None], indices: Iterable[int]) -> dict[Node | None, list[int]]:
    """Group prompts by the beginning that they go on from."""
    groups: dict[Node | None, list[int]] = {}
    for index in indices:
        groups.setdefault(nodes[index], []).append(index)
    return groups


def _saves_half(groups: Mapping[Node | None, Sequence[int]]) -> bool:
    """Tell whether reading each beginning once leaves half of the keys unread; below that it is no faster."""
    once = sum(map(_length, groups))
    return 0 < 2 * once <= sum(_length(node) * len(members) for node, members in groups.items())


def _never(tokens: Sequence[int]) -> bool:
    return False


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
