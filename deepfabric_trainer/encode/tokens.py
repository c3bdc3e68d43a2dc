"""Tokenizing a rendering, with control tokens that somebody wrote into it encoded as the plain text that they are."""

import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from deepfabric_trainer.encode.chunks import ChunkTokenizer, Encoding
from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.template import Span


class RenderingTokenizer:
    """Tokenizes renderings of one chat template.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
        source (`str`): The template. Its control tokens are the tokenizer's special tokens, and those of its other
            added tokens that the template writes, as in the option `sanitize_control_tokens` of `apply_chat_template`.
        chunks (`ChunkTokenizer`, *optional*): Of the tokenizer, shared with other templates, if there are any.
    """

    def __init__(self, tokenizer: Any, source: str, chunks: ChunkTokenizer | None = None) -> None:
        self.tokenizer = tokenizer
        self._chunks = chunks or ChunkTokenizer(tokenizer)
        control = {
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or (token.content in source and not token.content.isspace())
        }
        self.control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")

    def control_tokens(self, text: str) -> list[Span]:
        """Return where control tokens stand in a text."""
        return [Span(*match.span()) for match in self.control.finditer(text)]

    def encode(self, text: str, literal: Sequence[Span] = (), *, start: int = 0) -> Encoding:
        """Return the tokens of a text, in which the given spans are plain text whatever they look like.

        The characters of tokens that end before `start` may be left out.

        Raises:
            TemplateError: If the tokenizer makes a control token of the plain text.
        """
        if not literal:
            return self._chunks.encode(text, start)
        ids = array("i")
        offsets: list[tuple[int, int]] = []
        for (begin, end), is_literal in _pieces(len(text), literal):
            more, places = self._encode_piece(text[begin:end], is_literal)
            ids.extend(more)
            offsets += [(begin + first, begin + last) for first, last in places]
        return Encoding(ids, offsets)

    def _encode_piece(self, piece: str, is_literal: bool) -> tuple[list[int], list[tuple[int, int]]]:
        # Some tokenizers put a space before the first word of what they are given; behind a newline none does.
        newline, _ = self._encode("\n")
        ids, offsets = self._encode_literal("\n" + piece) if is_literal else self._encode("\n" + piece)
        if ids[: len(newline)] != newline:
            ids, offsets = self._encode_literal(piece) if is_literal else self._encode(piece)
            return ids, offsets
        return ids[len(newline) :], [(start - 1, end - 1) for start, end in offsets[len(newline) :]]

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._chunks.encode_whole(text)
        return encoding.input_ids.tolist(), encoding.offsets

    def _encode_literal(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Run the tokenizer's steps without the one that takes added tokens out."""
        backend = self.tokenizer.backend_tokenizer
        normalized = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
        words = [normalized]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]
        ids = [token.id for word in words for token in backend.model.tokenize(word)]
        added = self.tokenizer.added_tokens_decoder
        made = next((added[token].content for token in ids if token in added), None)
        if made is not None:
            raise TemplateError(
                f"the tokenizer makes the control token {made!r} of plain text",
                expected="text that does not look like the template's own",
                fix="remove it from the row",
            )
        return ids, [(1 if text[:1] == "\n" else 0, len(text))] * len(ids)


def _pieces(length: int, literal: Sequence[Span]) -> Iterator[tuple[Span, bool]]:
    position = 0
    for span in literal:
        if position < span.start:
            yield Span(position, span.start), False
        yield span, True
        position = span.end
    if position < length:
        yield Span(position, length), False
