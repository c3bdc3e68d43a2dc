"""Counting the tokens of rows as they would be trained."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepfabric_trainer.analyze.report import LIMITS, TokenReport
from deepfabric_trainer.collators.prefix_tree import build_forest
from deepfabric_trainer.encode import ConversationEncoder, Region
from deepfabric_trainer.encode.examples import PackedExample
from deepfabric_trainer.schema import Conversation

_MOST_TOKENS = 4_000_000
"""Tokens that are kept to see what is shared: some 16 MB."""
_BATCH = 8
_MIN_SHARED = 16
_LONGEST = 5


class TokenCounts:
    """The tokens of rows, encoded with every assistant turn trained and nothing cut.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Whose chat template renders them.

    Raises:
        ConfigError: If it has no chat template.
    """

    def __init__(self, processing_class: Any) -> None:
        self._encoder = ConversationEncoder(processing_class)
        self._by_region: Counter[int] = Counter()
        self._examples = 0
        self._rows: list[int] = []
        self._lengths: list[int] = []
        self._kept: list[tuple[np.ndarray[Any, Any], int]] = []
        self._room = _MOST_TOKENS

    def add(self, number: int, conversation: Conversation, chat_template_kwargs: Mapping[str, Any] | None) -> None:
        """Encode a row and count its tokens.

        Raises:
            DataFormatError: If it trains nothing.
            TemplateError: If the chat template drops or refuses something of it.
        """
        examples = self._encoder.encode_packed(conversation, chat_template_kwargs).examples
        self._examples += len(examples)
        self._rows.append(number)
        self._lengths.append(max(len(example.input_ids) for example in examples))
        for example in examples:
            self._by_region[Region.CONTEXT] += example.first
            self._by_region.update(example.regions)
            self._keep(example)

    def _keep(self, example: PackedExample) -> None:
        if self._room > 0:
            self._room -= len(example.input_ids)
            trained = next(place for place, region in enumerate(example.regions, example.first) if region)
            self._kept.append((np.frombuffer(example.input_ids, np.int32), trained))

    def report(self) -> TokenReport | None:
        """Return what was counted; `None` when no row could be encoded."""
        if not self._rows:
            return None
        lengths = np.array(self._lengths)
        names, places = ("min", "50%", "90%", "99%", "max"), (0, 0.5, 0.9, 0.99, 1)
        quantiles = np.quantile(lengths, places, method="higher").tolist()
        longest = np.argsort(-lengths, kind="stable")[:_LONGEST]
        by_region = {region.name.lower(): self._by_region[region] for region in Region}
        return TokenReport(
            examples=self._examples,
            tokens=sum(by_region.values()),
            by_region=by_region,
            lengths=dict(zip(names, quantiles, strict=True)),
            rows_over={limit: int((lengths > limit).sum()) for limit in LIMITS},
            longest_rows=tuple((self._rows[place], self._lengths[place]) for place in longest.tolist()),
            shared=shared_part(self._kept),
        )


def shared_part(examples: Sequence[tuple[np.ndarray[Any, Any], int]]) -> float:
    """Return which part of the tokens is not computed when eight examples that begin alike make a batch.

    Args:
        examples (`Sequence[tuple[np.ndarray, int]]`): The ids of each and how many stand before the first trained one.
    """
    # Big-endian bytes sort as the ids do.
    ordered = sorted(examples, key=lambda example: example[0].astype(">i4").tobytes())
    tokens = computed = 0
    for start in range(0, len(ordered), _BATCH):
        batch = ordered[start : start + _BATCH]
        ids = [example.tolist() for example, _ in batch]
        labels = [[-100] * trained + row[trained:] for row, (_, trained) in zip(ids, batch, strict=True)]
        tokens += sum(map(len, ids))
        computed += sum(root.tokens() for root in build_forest(ids, labels, _MIN_SHARED))
    return 1 - computed / tokens
