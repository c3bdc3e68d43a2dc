"""How a template sets calls apart from text, and finding the calls in what a model wrote."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deepfabric_trainer.template.habits import TAG
from deepfabric_trainer.toolcalls.argument_types import Schemas
from deepfabric_trainer.toolcalls.pieces import lenient, pieces
from deepfabric_trainer.toolcalls.readers import NamedJsonReader, Reader
from deepfabric_trainer.toolcalls.values import Data, Malformed

_PROGRAM_TAG = "<|python_tag|>"
"""What models of templates that put nothing before a call were taught to put there all the same."""
_NEVER = re.compile("(?!)")
_MOST_BLANKS = 20
_PUNCTUATION = tuple("_.,:;!?()'\"`")
_WORDS_BEHIND = re.compile(r"[ \t]*(?=[\w.,:;!?()'\"`])")


@dataclass(frozen=True)
class FoundCall:
    """A call, or the attempt at one, in `text[start:end]`: either `function` or `error` is set."""

    start: int
    end: int
    function: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class CallNotation:
    """What stands around calls: `block_open item_open CALL item_close separator ... item_close block_close`.

    Args:
        reader (`Reader`): Reads what stands between `item_open` and `item_close`.
        block_open (`str`): Before the first call of a row of calls.
        item_open (`str`): Before each call.
        item_close (`str`): Behind each call.
        separator (`str`): Between calls, beside white space.
        block_close (`str`): Behind the last call.
        after_content (`bool`): Whether the template writes calls behind a content, where nothing introduces them.
    """

    reader: Reader
    block_open: str = ""
    item_open: str = ""
    item_close: str = ""
    separator: str = ""
    block_close: str = ""
    after_content: bool = False

    def find(self, text: str, schemas: Schemas) -> Iterator[FoundCall]:
        """Go over the calls of a text, in their order; nothing comes behind an attempt that is malformed."""
        position = 0
        while True:
            opening = self._next_opening(text, position)
            if opening is None:
                return
            start, position, in_block, error = opening
            if error is not None and self._is_mentioned(text, start):
                position = start + 1
                continue
            if error is not None:
                yield FoundCall(start, len(text), error=error)
                return
            is_first = True
            while True:
                try:
                    function, end = self.reader.read(text, position, schemas)
                    end = self._behind(text, end, self._item_close, self.item_close, "the call is")
                    following = self._following.match(text, end)
                    if in_block and self.block_close and following is None:
                        end = self._behind(text, end, self._block_close, self.block_close, "the calls are")
                except Malformed as malformed:
                    is_data = isinstance(malformed, Data) and not self.is_introduced
                    if is_first and (is_data or self._is_mentioned(text, start)):
                        position = max(position, start + 1)
                        break
                    yield FoundCall(start, len(text), error=str(malformed))
                    return
                yield FoundCall(start, end, function=function)
                is_first = False
                if following is None or following.end() == end:
                    position = end
                    break
                start, position = end, following.end()

    @cached_property
    def is_introduced(self) -> bool:
        """Whether something stands before calls by which they are told from text."""
        return re.search(r"\w{2}|[^\w\s\[\](){}\"']{2}", self.block_open + self.item_open) is not None

    def _is_mentioned(self, text: str, start: int) -> bool:
        """Tell whether a mark stands inside a line of prose: words before it, and words behind it that are no call."""
        mark = self._marks.match(text, start) if self.is_introduced else None
        before = text[max(start - _MOST_BLANKS, 0) : start].rstrip(" \t")[-1:]
        if mark is None or TAG.match(mark[0]) is None or not (before.isalnum() or before in _PUNCTUATION):
            return False
        behind = _WORDS_BEHIND.match(text, mark.end())
        return behind is not None and re.compile(self.reader.beginning).match(text, behind.end()) is None

    def _next_opening(self, text: str, position: int) -> tuple[int, int, bool, str | None] | None:
        """Return where the next call is introduced, where it begins, whether in a block, and what is wrong."""
        if not self.is_introduced:
            return self._next_bare(text, position)
        mark = self._marks.search(text, position)
        if mark is None:
            return None
        if mark.lastgroup == "stray":
            return mark.start(), len(text), False, f"{mark[0]} without {self._first_mark}"
        opening = self._opening.match(text, mark.start())
        if opening is None:
            expected = (self.block_open + self.item_open).strip()
            return mark.start(), len(text), False, f"the call does not begin with {expected}"
        in_block = opening["block"] is not None
        return mark.start(), opening.end(), in_block, None

    def _next_bare(self, text: str, position: int) -> tuple[int, int, bool, str | None] | None:
        tag = text.find(_PROGRAM_TAG, position)
        bare = self._bare.match(text, position)
        if bare is None and self.after_content:
            bare = self._bare_line.search(text, position)
        if bare is not None and (tag == -1 or bare.start() <= tag):
            return bare.start(), bare.end(), bool(self.block_open), None
        if tag == -1:
            return None
        opening = re.compile(rf"\s*(?:{lenient(self.block_open)})").match(text, tag + len(_PROGRAM_TAG))
        behind = tag + len(_PROGRAM_TAG) if opening is None else opening.end()
        return tag, behind, bool(self.block_open) and opening is not None, None

    def _behind(self, text: str, position: int, pattern: re.Pattern[str], written: str, what: str) -> int:
        closing = pattern.match(text, position)
        if closing is None:
            raise Malformed(f"{what} not closed by {written.strip()}")
        return closing.end()

    @cached_property
    def _opening(self) -> re.Pattern[str]:
        block, item = lenient(self.block_open), "|".join(filter(None, (lenient(self.item_open), self._elsewhere)))
        item = f"(?:{item})" if self._elsewhere else item
        if not item:
            return re.compile(rf"(?P<block>{block})")
        return re.compile(rf"(?P<block>{block}\s*{item})|{item}" if block else rf"(?P<block>(?!)){item}|{item}")

    @cached_property
    def _elsewhere(self) -> str:
        """Matches what introduces calls to other things than functions: `to=browser.search` is no `to=functions.f`.

        What is called so keeps the whole of its name, which no declared tool has.
        """
        functions = re.fullmatch(r"(.*=)\w+\.", self.item_open)
        if functions is None or not isinstance(self.reader, NamedJsonReader):
            return ""
        return rf"{lenient(functions[1])}(?={self.reader.head})"

    @cached_property
    def _following(self) -> re.Pattern[str]:
        """Matches what stands between a call and the next one of the same row."""
        separator = rf"\s*{lenient(self.separator)}" if self.separator else ""
        if self.item_open:
            return re.compile(rf"{separator}\s*{lenient(self.item_open)}")
        if self.is_introduced:
            return re.compile(separator) if separator else _NEVER
        return re.compile(rf"[\s;,]*(?:{re.escape(_PROGRAM_TAG)}\s*)?(?={self.reader.beginning})")

    @cached_property
    def _item_close(self) -> re.Pattern[str]:
        return re.compile(rf"\s*{lenient(self.item_close)}" if self.item_close else "")

    @cached_property
    def _block_close(self) -> re.Pattern[str]:
        return re.compile(rf"\s*{lenient(self.block_close)}")

    @cached_property
    def _bare(self) -> re.Pattern[str]:
        tag, block = re.escape(_PROGRAM_TAG), rf"{lenient(self.block_open)}\s*" if self.block_open else ""
        return re.compile(rf"[\s;,]*(?:{tag}\s*)?{block}(?={self.reader.beginning})")

    @cached_property
    def _bare_line(self) -> re.Pattern[str]:
        return re.compile(rf"(?:^|(?<=\n)){lenient(self.block_open)}(?={self.reader.beginning})")

    @cached_property
    def _first_mark(self) -> str:
        return _first(self.block_open) or _first(self.item_open)

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """Matches the first thing that tells of a call, or of the end of one."""
        openings = dict.fromkeys(filter(None, (_first(self.block_open), _first(self.item_open))))
        closings = dict.fromkeys(TAG.findall(self.item_close) + TAG.findall(self.block_close))
        stray = [re.escape(tag) for tag in closings if tag not in openings]
        opening = "|".join(filter(None, (*map(re.escape, openings), self._elsewhere)))
        return re.compile(rf"(?P<opening>{opening})" + (rf"|(?P<stray>{'|'.join(stray)})" if stray else ""))


def _first(text: str) -> str:
    """Return the tag that a text begins with, or all of it if it begins with none."""
    first = next(iter(pieces(text)), "")
    return first if first.startswith("<") or TAG.fullmatch(first) else text
