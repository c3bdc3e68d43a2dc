"""Where texts may be cut so that their tokens are those of the pieces.

The pre-tokenizers of byte-level tokenizers end a word behind a line end, in front of a visible ASCII character,
whatever stands around it; no token is made over the border of two words. Whether a tokenizer is of that kind is read
from its parts and tried on all pairs of characters.
"""

import itertools
import json
import re
from functools import lru_cache
from typing import Any

_VISIBLE = [chr(code) for code in range(33, 127) if chr(code) != "/"]
"""What may stand behind a cut. Some tokenizers join a slash to the line end before it."""
_CUTS = (re.compile(r"\n(?=[!-.0-~])"), re.compile(r"(?<=\S)\n(?=[!-.0-~])"))
"""Behind any line end, or only behind one that ends a line that does not end in white space."""
_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")
"""They change nothing around a line end with a visible ASCII character behind it."""
_NOT_LOCAL = re.compile(r"\(\?<|\\[bBAGzZK]|[\^$]")
"""Of a regular expression: what looks at the text before a match, or at where the text begins and ends."""
_SET = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")
_PROBES = "é\u3000日\u0301\u2028\x00/𝄞"


def find_cut(tokenizer: Any) -> re.Pattern[str] | None:
    """Return where texts may be cut so that their tokens are those of the chunks, `None` if that cannot be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or any("\n" in token.content or token.lstrip for token in _added_tokens(tokenizer)):
        return None
    if type(backend.model).__name__ != "BPE" or backend.model.dropout:
        return None
    normalizer, pre_tokenizer = _state(backend.normalizer), _state(backend.pre_tokenizer)
    if normalizer is not None and normalizer["type"] not in _NORMALIZERS:
        return None
    steps = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if not steps or not all(_is_local(step) for step in steps) or steps[-1]["type"] != "ByteLevel":
        return None
    # What follows the first step works inside the words that it makes.
    first = backend.pre_tokenizer if len(steps) == 1 else backend.pre_tokenizer[0]
    return next((cut for cut in _CUTS if _makes_no_difference(cut, _Step(first))), None)


class _Step:
    """A step of a pre-tokenizer, equal to others with the same state.

    Args:
        step (`tokenizers.pre_tokenizers.PreTokenizer`): The step.
    """

    def __init__(self, step: Any) -> None:
        self.split = step.pre_tokenize_str
        self._state = step.__getstate__()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Step) and self._state == other._state

    def __hash__(self) -> int:
        return hash(self._state)


def _added_tokens(tokenizer: Any) -> list[Any]:
    return list(tokenizer.added_tokens_decoder.values())


def _state(part: Any) -> dict[str, Any] | None:
    return None if part is None else dict(json.loads(part.__getstate__()))


def _is_local(step: dict[str, Any]) -> bool:
    """Tell whether a step of a pre-tokenizer finds words from left to right, by nothing that stands before them."""
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    if step["type"] == "Digits":
        return True
    if step["type"] != "Split" or step["behavior"] not in ("Isolated", "Removed"):
        return False
    pattern = step["pattern"].get("Regex")
    return pattern is None or not _NOT_LOCAL.search(_SET.sub("", pattern))


@lru_cache(maxsize=64)
def _makes_no_difference(cut: re.Pattern[str], step: _Step) -> bool:
    """Tell whether a step of a pre-tokenizer ends a word at every cut, and finds the same words without what follows.

    Tried on all visible characters behind a cut and on many texts before it.
    """
    pairs = itertools.product(" \t\n\ra1}é", repeat=2)
    for before in dict.fromkeys([*_PROBES, *_VISIBLE, *map("".join, pairs)]):
        line = f"a {before}\n"
        text, places = "", []
        for behind in _VISIBLE:
            if cut.search(line + behind):
                places.append(len(text))
                text += f"{line}{behind}\n\n"
        if not places:
            continue
        alone = [word for _, word in step.split(line)]
        words = {word for _, word in step.split(text)}
        if not all((place + start, place + end) in words for place in places for start, end in alone):
            return False
    return True
