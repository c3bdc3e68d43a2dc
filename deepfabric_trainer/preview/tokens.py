"""Cutting an example into stretches of one region, and those into the smallest groups of tokens that are text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from deepfabric_trainer.encode import EncodedExample, Region

_UNDECODABLE = "\ufffd"
_BYTES_AFTER_FIRST = 3
"""Of a character in UTF-8: as many tokens may follow before it is whole."""


@dataclass(frozen=True)
class TokenGroup:
    """Tokens that are text only together: nearly always one, more where a character is split over tokens.

    Args:
        start (`int`): The position of the first one in the example.
        ids (`tuple[int, ...]`): Their ids.
        text (`str`): What they decode to.
        region (`Region`): Of the first that is trained, if any is.
    """

    start: int
    ids: tuple[int, ...]
    text: str
    region: Region


@dataclass(frozen=True)
class Stretch:
    """Successive groups of one region.

    Args:
        region (`Region`): Their region.
        groups (`tuple[TokenGroup, ...]`): At least one.
    """

    region: Region
    groups: tuple[TokenGroup, ...]

    @property
    def text(self) -> str:
        """What the tokens decode to."""
        return "".join(group.text for group in self.groups)

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return sum(len(group.ids) for group in self.groups)


def stretches(example: EncodedExample, tokenizer: Any) -> list[Stretch]:
    """Cut an example where the region changes.

    Args:
        example (`EncodedExample`): What to cut.
        tokenizer (`PreTrainedTokenizerBase`): Decodes its tokens.

    Returns:
        `list[Stretch]`: Their texts, joined, are the decoded example.
    """
    groups = _groups(example, tokenizer)
    return [Stretch(region, tuple(run)) for region, run in groupby(groups, key=lambda group: group.region)]


def _groups(example: EncodedExample, tokenizer: Any) -> Iterator[TokenGroup]:
    start = 0
    for ids, text in _decoded(example.input_ids, tokenizer):
        regions = example.regions[start : start + len(ids)]
        region = next((region for region in regions if region != Region.CONTEXT), Region.CONTEXT)
        yield TokenGroup(start, tuple(ids), text, Region(region))
        start += len(ids)


def _decoded(token_ids: Sequence[int], tokenizer: Any) -> Iterator[tuple[Sequence[int], str]]:
    """Go over the smallest runs of ids that are text, each decoded behind the one before.

    Some decoders drop the space of the first token that they are given; so no run is decoded by itself.
    """

    def decode(start: int, stop: int) -> str:
        ids = list(token_ids[start:stop])
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def is_whole(text: str, before: int, stop: int) -> bool:
        """Whether the next tokens only add to the text, however often it ends in a character that is no text."""
        ends = range(stop + 1, min(stop + _BYTES_AFTER_FIRST, len(token_ids)) + 1)
        longer = [decode(before, end) for end in ends] if text.endswith(_UNDECODABLE) else []
        grows = all(len(one) < len(next_one) for one, next_one in pairwise([text, *longer]))
        return grows and all(one.startswith(text) for one in longer)

    before, start, known = 0, 0, ""
    for stop in range(1, len(token_ids) + 1):
        text = decode(before, stop)
        if is_whole(text, before, stop):
            yield token_ids[start:stop], text[len(known) :]
            before, start, known = start, stop, decode(start, stop)
