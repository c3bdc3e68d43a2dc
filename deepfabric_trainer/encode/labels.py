"""Carrying trained characters over to tokens, and proving the result."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import inf
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deepfabric_trainer.encode.chunks import Encoding
from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.encode.turns import Context, TrainedTurn
from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import Message
from deepfabric_trainer.template import Span


def regions_of_tokens(encoding: Encoding, turns: Sequence[TrainedTurn]) -> list[Region]:
    """Return the region of each token whose characters are known; all before them are context.

    A token belongs to the region that holds most of its characters; format yields to a field.

    Args:
        encoding (`Encoding`): T tokens, with the characters in the rendering of those in the turns, ascending.
        turns (`Sequence[TrainedTurn]`): What is trained, without overlap.
    Returns:
        `list[Region]`: Length T - first.
    Raises:
        TemplateError: If the offsets do not ascend.
    """
    offsets = encoding.offsets
    starts = [start for start, _ in offsets]
    if starts != sorted(starts):
        raise TemplateError(
            "the tokenizer's offsets do not ascend, so labels cannot be placed",
            expected="a fast tokenizer that keeps track of its characters",
        )
    regions = [Region.CONTEXT] * len(offsets)
    for turn in turns:
        pieces, position = _pieces(turn), 0
        for token in tokens_within(offsets, turn.span):
            start, end = offsets[token]
            while position < len(pieces) and pieces[position][1].end <= start:
                position += 1
            kind, (first, last) = pieces[min(position, len(pieces) - 1)]
            is_inside = first <= start < end <= last
            regions[token] = kind if is_inside else _region_of(start, end, pieces[position:])
    return regions


def tokens_within(offsets: Sequence[tuple[int, int]], span: Span) -> range:
    """Return the tokens that share characters with a span."""
    first = bisect_right(offsets, (span.start, inf)) - 1
    while first > 0 and offsets[first - 1][1] > span.start:
        first -= 1
    last = bisect_left(offsets, (span.end, -inf))
    first = max(first, 0)
    while first < last and offsets[first][1] <= span.start:
        first += 1
    return range(first, last)


def weights_of(encoding: Encoding, turns: Sequence[TrainedTurn], messages: Sequence[Message]) -> list[float] | None:
    """Return the weight of each token; `None` when no turn has one of its own."""
    if all(messages[turn.message].get("weight", 1.0) == 1.0 for turn in turns):
        return None
    weights = [1.0] * len(encoding.input_ids)
    for turn in turns:
        for token in tokens_within(encoding.offsets, turn.span):
            weights[encoding.first + token] = messages[turn.message].get("weight", 1.0)
    return weights


def context_of(turn: TrainedTurn, encoding: Encoding) -> Context:
    """Return what a turn stands behind, now that it is known where tokens begin."""
    first = tokens_within(encoding.offsets, turn.span).start
    if turn.context is Context.EXACT and encoding.offsets[first][0] != turn.span.start:
        return Context.JOINED_TOKEN
    return turn.context


def prove(
    text: str, encoding: Encoding, regions: Sequence[Region], turns: Sequence[TrainedTurn], tokenizer: Any
) -> None:
    """Require that the trained tokens of each turn decode to the turn, and that the last of them stops it.

    The regions are those that `regions_of_tokens` gives.

    Raises:
        TemplateError: If they do not; it shows what they decode to.
    """
    context = Region.CONTEXT
    for turn in turns:
        path = f"messages[{turn.message}]"
        within = tokens_within(encoding.offsets, turn.span)
        trained = [token for token in within if regions[token] is not context]
        decoded = _decode([encoding.input_ids[encoding.first + token] for token in trained], tokenizer)
        expected = text[turn.span.start : turn.span.end]
        if expected not in decoded and not _is_like(expected, decoded, tokenizer):
            raise TemplateError(
                f"the trained tokens decode to {decoded[:80]!r}, not to the turn, {expected[:80]!r}",
                expected="a tokenizer that keeps the text",
                path=path,
            )
        if turn.stops and (not trained or regions[trained[-1]] is not Region.STOP):
            raise TemplateError("the last trained token does not stop the turn", path=path)


def _region_of(start: int, end: int, pieces: Sequence[tuple[Region, Span]]) -> Region:
    """Return the region that holds most characters of a token, format yielding to others."""
    region, most = Region.CONTEXT, 0.0
    for kind, span in pieces:
        if span.start >= end:
            break
        shared = min(end, span.end) - max(start, span.start) - (0.5 if kind is Region.FORMAT else 0.0)
        if shared > most:
            region, most = kind, shared
    return region


def _pieces(turn: TrainedTurn) -> list[tuple[Region, Span]]:
    """Cut the turn's span into its fields and the format between them."""
    pieces, position = [], turn.span.start
    for region, span in turn.fields:
        if position < span.start:
            pieces.append((Region.FORMAT, Span(position, span.start)))
        pieces.append((region, span))
        position = span.end
    if position < turn.span.end:
        pieces.append((Region.FORMAT, Span(position, turn.span.end)))
    return pieces


def _decode(ids: list[int], tokenizer: Any) -> str:
    kind = type(tokenizer)
    if kind.decode is PreTrainedTokenizerBase.decode and kind._decode is PreTrainedTokenizerFast._decode:
        # What that comes to for a list of ids.
        return str(tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _is_like(expected: str, decoded: str, tokenizer: Any) -> bool:
    """Tell whether a text is in another but for white space, of which decoders add and strip some at word beginnings.

    That no white space is missing, the offsets show: each character of the turn belongs to one of its tokens.
    """
    forms = ("".join(_normalize(text, tokenizer).replace("\u2581", " ").split()) for text in (expected, decoded))
    return next(forms) in next(forms)


def _normalize(text: str, tokenizer: Any) -> str:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return text if normalizer is None else str(normalizer.normalize_str(text))
