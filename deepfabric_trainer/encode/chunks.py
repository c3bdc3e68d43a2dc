"""Tokenizing texts that repeat, such as renderings of one tool catalogue: what was tokenized before is remembered.

A text is cut where its tokens are those of the pieces, as `cuts` finds out for a tokenizer. All the same the first
texts and a sample of the others are compared with the tokens of the whole.
"""

import logging
import re
from array import array
from dataclasses import dataclass
from typing import Any, NamedTuple

from deepfabric_trainer.encode.cuts import find_cut

logger = logging.getLogger(__name__)

_FIRST, _EVERY = 4, 256
"""Texts that are compared with the tokens of the whole: so many at first, then each of so many."""
_SHORTEST_TEXT = 256
_SHORTEST, _SHORT = 48, 96
"""Characters of a chunk that is looked up wherever it stands, and at most of one between two that were found."""
_TOOL = 256
"""Characters of a chunk that most likely comes again, if it stands in front of all that is trained: a tool does."""
_LONG = 1024
"""Characters of a beginning that is remembered as a whole."""
_MOST_CHUNKS, _MOST_CHARACTERS, _MOST_SEEN = 8192, 2 * 2**20, 16384
"""Chunks are kept in two generations of this size each; those not used for a whole one are forgotten."""


class Encoding(NamedTuple):
    """The tokens of a text.

    Args:
        input_ids (`array[int]`): All of them, int32, length T.
        offsets (`list[tuple[int, int]]`): The characters of those from `first` on, length T - first.
        first (`int`): How many stand before them.
    """

    input_ids: "array[int]"
    offsets: list[tuple[int, int]]
    first: int = 0


@dataclass(frozen=True)
class _Chunk:
    input_ids: "array[int]"
    starts: "array[int]"
    ends: "array[int]"

    def places(self, position: int) -> list[tuple[int, int]]:
        return [(start + position, end + position) for start, end in zip(self.starts, self.ends, strict=True)]


class _Building:
    """The tokens of a text as far as it was gone over.

    Args:
        start (`int`): Where in the text the characters of tokens begin to matter.
    """

    def __init__(self, start: int) -> None:
        self.ids = array("i")
        self._start = start
        self._offsets: list[tuple[int, int]] = []
        self._first = 0

    def encoding(self) -> Encoding:
        return Encoding(self.ids, self._offsets, self._first)

    def skip(self, input_ids: "array[int]") -> None:
        self.ids += input_ids
        self._first += len(input_ids)

    def add_chunk(self, chunk: _Chunk, position: int, end: int) -> None:
        if end <= self._start and not self._offsets:
            self.skip(chunk.input_ids)
        else:
            self.ids += chunk.input_ids
            self._offsets += chunk.places(position)

    def add_encoding(self, encoding: Any, position: int, end: int) -> None:
        if end <= self._start and not self._offsets:
            self.skip(array("i", encoding.ids))
        else:
            self.ids.extend(encoding.ids)
            self._offsets += [(start + position, last + position) for start, last in encoding.offsets]


class ChunkTokenizer:
    """Tokenizes texts as a tokenizer does, without special tokens of its own, and remembers chunks of them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added: int | None = None
        self._cut: re.Pattern[str] | None = None
        self._texts = 0
        self._chunks: dict[str, _Chunk] = {}
        self._older: dict[str, _Chunk] = {}
        self._characters = 0
        self._seen: set[int] = set()
        self._last = ""
        self._beginning = "", array("i")

    def encode(self, text: str, start: int = 0) -> Encoding:
        """Return the tokens of a text, with the characters of those behind `start` at least."""
        cut = self._find_cut() if len(text) >= _SHORTEST_TEXT else None
        if cut is None:
            return self.encode_whole(text)
        found = self._encode(text, start, cut)
        self._texts += 1
        if self._texts <= _FIRST or self._texts % _EVERY == 0:
            whole = self._run(text)
            if found != (array("i", whole.ids), whole.offsets[found.first :], found.first):
                self._cut = None
                self._forget()
                logger.warning(
                    "the tokens of a text differ from the tokens of its lines, so whole texts are tokenized from now "
                    "on, which takes longer"
                )
                return self.encode_whole(text)
        return found

    def encode_whole(self, text: str) -> Encoding:
        """Return the tokens of a text, with the characters of each."""
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return Encoding(array("i", encoding["input_ids"]), encoding["offset_mapping"])

    def _encode(self, text: str, start: int, cut: re.Pattern[str]) -> Encoding:
        building = _Building(start)
        pending = position = 0
        known = len(self._beginning[0])
        # What follows may be another character than the one in front of which the beginning was cut.
        if 0 < known <= start and text.startswith(self._beginning[0]) and cut.match(text, known - 1):
            building.skip(self._beginning[1])
            pending = position = known
        unbroken, reach = not position, (0, 0)
        for match in cut.finditer(text, position):
            end = match.end()
            if end - position >= _SHORTEST:
                chunk = self._look_up(text[position:end], is_likely=end <= start and end - position >= _TOOL)
                if chunk is not None:
                    between = self._look_up(text[pending:position]) if 0 < position - pending <= _SHORT else None
                    if between is not None:
                        building.add_chunk(between, pending, position)
                    elif pending < position:
                        building.add_encoding(self._run(text[pending:position]), pending, position)
                        unbroken = False
                    building.add_chunk(chunk, position, end)
                    pending = end
                    if unbroken:
                        reach = end, len(building.ids)
            position = end
        if pending < len(text):
            building.add_encoding(self._run(text[pending:]), pending, len(text))
        if reach[0] >= _LONG:
            self._remember(text, building.ids, reach)
        return building.encoding()

    def _remember(self, text: str, input_ids: "array[int]", reach: tuple[int, int]) -> None:
        """Remember a beginning of two texts in a row, so that its chunks need not be looked up one by one."""
        beginning = text[: reach[0]]
        if beginning == self._last:
            self._beginning = beginning, input_ids[: reach[1]]
        self._last = beginning

    def _look_up(self, piece: str, *, is_likely: bool = False) -> _Chunk | None:
        """Return a chunk that was seen before or is likely to come again; others are only remembered as seen."""
        chunk = self._chunks.get(piece)
        if chunk is not None:
            return chunk
        chunk = self._older.get(piece) or self._learn(piece, is_likely)
        if chunk is not None:
            self._chunks[piece] = chunk
            self._characters += len(piece)
            if self._characters > _MOST_CHARACTERS or len(self._chunks) > _MOST_CHUNKS:
                self._chunks, self._older, self._characters = {}, self._chunks, 0
        return chunk

    def _learn(self, piece: str, is_likely: bool) -> _Chunk | None:
        key = hash(piece)
        if not is_likely and key not in self._seen:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            self._seen.add(key)
            return None
        encoding = self._run(piece)
        offsets = encoding.offsets
        return _Chunk(
            array("i", encoding.ids),
            array("i", [start for start, _ in offsets]),
            array("i", [end for _, end in offsets]),
        )

    def _forget(self) -> None:
        self._chunks, self._older, self._characters = {}, {}, 0
        self._last = ""
        self._beginning = "", array("i")

    def _run(self, piece: str) -> Any:
        return self._tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False)

    def _find_cut(self) -> re.Pattern[str] | None:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        added = 0 if backend is None else len(backend.get_added_tokens_decoder())
        if added != self._added:
            # At first, and when somebody has given the tokenizer more tokens since.
            self._forget()
            self._added, self._cut = added, find_cut(self._tokenizer)
        if self._cut is None or backend is None:
            return None
        # A call with truncation or padding leaves them behind.
        is_plain = backend.truncation is None and backend.padding is None and not backend.encode_special_tokens
        return self._cut if is_plain else None
