"""Carrying trained characters over to tokens, and proving the result."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.encode.turns import TrainedTurn
from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.template import Span

IGNORED = -100
"""The label of a token that is not trained, as PyTorch's cross-entropy and Hugging Face's collators have it."""


def regions_of_tokens(offsets: Sequence[tuple[int, int]], turns: Sequence[TrainedTurn]) -> list[Region]:
    """Return the region of each token.

    A token belongs to the region that holds most of its characters; format yields to a field.

    Args:
        offsets (`Sequence[tuple[int, int]]`): Each token's characters in the rendering, ascending, length T.
        turns (`Sequence[TrainedTurn]`): What is trained, in order, without overlap.
    Returns:
        `list[Region]`: Length T.
    """
    pieces = [piece for turn in turns for piece in _pieces(turn)]
    regions, position = [], 0
    for start, end in offsets:
        while position < len(pieces) and pieces[position][1].end <= start:
            position += 1
        region, most = Region.CONTEXT, 0.0
        for kind, span in pieces[position:]:
            if span.start >= end:
                break
            shared = min(end, span.end) - max(start, span.start) - (0.5 if kind is Region.FORMAT else 0.0)
            if shared > most:
                region, most = kind, shared
        regions.append(region)
    return regions


def prove(
    text: str,
    input_ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    regions: Sequence[Region],
    turns: Sequence[TrainedTurn],
    tokenizer: Any,
) -> None:
    """Require that the trained tokens of each turn decode to the turn, and that the last of them stops it.

    Raises:
        TemplateError: If they do not; it shows what they decode to.
    """
    if any(later[0] < earlier[0] for earlier, later in pairwise(offsets)):
        raise TemplateError(
            "the tokenizer's offsets do not ascend, so labels cannot be placed",
            expected="a fast tokenizer that keeps track of its characters",
        )
    for turn in turns:
        trained = [
            position
            for position, (start, end) in enumerate(offsets)
            if regions[position] is not Region.CONTEXT and start < turn.span.end and end > turn.span.start
        ]
        decoded = tokenizer.decode(
            [input_ids[position] for position in trained],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        expected = text[turn.span.start : turn.span.end]
        normalized = _normalize(expected, tokenizer)
        if expected not in decoded and normalized not in _normalize(decoded, tokenizer):
            raise TemplateError(
                f"the trained tokens decode to {decoded[:80]!r}, not to the turn, {expected[:80]!r}",
                expected="a tokenizer that keeps the text",
                path=f"messages[{turn.message}]",
            )
        if not trained or regions[trained[-1]] is not Region.STOP:
            raise TemplateError("the last trained token does not stop the turn", path=f"messages[{turn.message}]")


def _pieces(turn: TrainedTurn) -> list[tuple[Region, Span]]:
    """Cut the turn's span into its fields and the format between them."""
    pieces, position = [], turn.span.start
    for region, span in turn.fields:
        if position < span.start:
            pieces.append((Region.FORMAT, Span(position, span.start)))
        pieces.append((region, span))
        position = span.end
    return pieces


def _normalize(text: str, tokenizer: Any) -> str:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return text if normalizer is None else str(normalizer.normalize_str(text))
