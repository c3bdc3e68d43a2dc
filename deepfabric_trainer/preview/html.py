import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from deepfabric_trainer.encode import EncodedExample, Region
from deepfabric_trainer.preview.rows import PreviewedRow, notes_on
from deepfabric_trainer.preview.tokens import Stretch, TokenGroup, stretches
from deepfabric_trainer.visible import visible, visible_controls

_CLASSES = {
    Region.CONTEXT: "x",
    Region.REASONING: "r",
    Region.CONTENT: "c",
    Region.TOOL_NAME: "n",
    Region.TOOL_ARGUMENTS: "a",
    Region.FORMAT: "f",
    Region.STOP: "s",
}
_HEAD, _TAIL = 60, 120
"""Tokens, at most, that are shown of the ends of a long untrained stretch; they break at a newline if there is one."""
_LEAST_FOLDED = 60
"""Tokens; less is not worth a click."""
_MARKS = {"\n": "↵", "\t": "⇥", "\u00a0": "⍽", "\u202f": "⍽"}
_INVISIBLE = "\u00a0\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff\U000e0000-\U000e007f"
"""Characters that a page does not show, or that change the order of others; not the joiners that scripts need."""
_MARKED_IN_CONTEXT = re.compile(f"([{_INVISIBLE}])")
_MARKED_IN_TRAINED = re.compile(f"([\n\t{_INVISIBLE}])")


@dataclass(frozen=True)
class _Token:
    """What the page shows of a group: a tooltip, and pieces of text, each with the mark that stands before it."""

    title: str
    pieces: list[tuple[str, str]]


@dataclass(frozen=True)
class _Tokens:
    """Successive tokens, and how much that is."""

    tokens: list[_Token]
    count: int
    characters: int


@dataclass(frozen=True)
class _Run:
    """Tokens of one region: shown, shown by an earlier example, folded away, and shown behind those."""

    style: str
    count: int
    title: str
    head: _Tokens
    repeated: _Tokens
    folded: _Tokens
    tail: _Tokens


@dataclass(frozen=True)
class _Shared:
    """What an example has in common with the beginning of an earlier one of its row, by its number from 1."""

    example: int
    tokens: int


@dataclass(frozen=True)
class _Example:
    shared: _Shared
    tokens: int
    trained: int
    regions: list[tuple[str, str, int]]
    notes: list[str]
    runs: list[_Run]


@dataclass(frozen=True)
class _Row:
    number: int
    notes: Sequence[str]
    examples: list[_Example]
    error: str | None
    json: str | None

    @property
    def tokens(self) -> int:
        return sum(example.tokens for example in self.examples)

    @property
    def trained(self) -> int:
        return sum(example.trained for example in self.examples)


def render_html(
    rows: Sequence[PreviewedRow],
    tokenizer: Any,
    *,
    title: str = "Which tokens are trained",
    facts: Mapping[str, str] | None = None,
) -> str:
    """Return one page that needs nothing else: every token of every row, its region, and why rows were rejected.

    Args:
        rows (`Sequence[PreviewedRow]`): What to show, in this order.
        tokenizer (`PreTrainedTokenizerBase`): Decodes their tokens.
        title (`str`, *optional*, defaults to `"Which tokens are trained"`): The heading.
        facts (`Mapping[str, str]`, *optional*): What else to say at the top: `{"tokenizer:": "Qwen/Qwen3-0.6B"}`.

    Returns:
        `str`: HTML. It loads nothing and has no scripts, and its own policy forbids both.

    Example:
    ```python
    rows = [PreviewedRow(0, row, encoder.encode(row))]
    Path("page.html").write_text(render_html(rows, tokenizer), encoding="utf-8")
    ```
    """
    views = [_row(row, tokenizer) for row in rows]
    return _template().render(
        title=title,
        facts={name: visible(fact) for name, fact in (facts or {}).items()},
        rows=views,
        legend=[(style, _name(region)) for region, style in _CLASSES.items()],
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))


def _row(row: PreviewedRow, tokenizer: Any) -> _Row:
    return _Row(
        number=row.number,
        notes=row.notes,
        examples=[
            _example(example, tokenizer, _shared(example, row.examples[:earlier]))
            for earlier, example in enumerate(row.examples)
        ],
        error=None if row.error is None else visible(row.error),
        json=None if row.error is None else row.as_json(),
    )


def _shared(example: EncodedExample, earlier: Sequence[EncodedExample]) -> _Shared:
    """Return the earlier example that begins the most like this one."""
    found = []
    for number, other in enumerate(earlier, start=1):
        pairs = zip(example.input_ids, other.input_ids, strict=False)
        found.append(_Shared(number, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))))
    return max(found, key=lambda shared: shared.tokens, default=_Shared(0, 0))


def _example(example: EncodedExample, tokenizer: Any, shared: _Shared) -> _Example:
    counts = Counter(Region(region) for region in example.regions)
    return _Example(
        shared=shared,
        tokens=len(example.input_ids),
        trained=sum(label != -100 for label in example.labels),
        regions=[(style, _name(region), counts[region]) for region, style in _CLASSES.items() if counts[region]],
        notes=list(notes_on(example)),
        runs=[_run(stretch, example.weights, shared.tokens) for stretch in stretches(example, tokenizer)],
    )


def _run(stretch: Stretch, weights: Sequence[float] | None, shared: int) -> _Run:
    groups = stretch.groups
    start, stop = _fold(groups) if stretch.region is Region.CONTEXT else (len(groups), len(groups))
    fresh = next((index for index, group in enumerate(groups) if group.start + len(group.ids) > shared), len(groups))
    middle = min(fresh, stop) if fresh - start >= _LEAST_FOLDED else start
    return _Run(
        style=_CLASSES[stretch.region],
        count=stretch.tokens,
        title=f"{_name(stretch.region)}: {stretch.tokens:,} from #{groups[0].start}",
        head=_tokens(groups[:start], weights),
        repeated=_tokens(groups[start:middle], weights),
        folded=_tokens(groups[middle:stop], weights),
        tail=_tokens(groups[stop:], weights),
    )


def _fold(groups: Sequence[TokenGroup]) -> tuple[int, int]:
    """Return between which groups a long untrained stretch is folded, so that whole lines are left at its ends."""
    if len(groups) < _HEAD + _LEAST_FOLDED + _TAIL:
        return len(groups), len(groups)
    line_starts = [index for index, group in enumerate(groups, start=1) if group.text.endswith("\n")]
    start = max((index for index in line_starts if index <= _HEAD), default=_HEAD)
    stop = min((index for index in line_starts if index >= len(groups) - _TAIL), default=len(groups) - _TAIL)
    return start, stop


def _tokens(groups: Sequence[TokenGroup], weights: Sequence[float] | None) -> _Tokens:
    return _Tokens(
        [_token(group, weights) for group in groups],
        count=sum(len(group.ids) for group in groups),
        characters=sum(len(group.text) for group in groups),
    )


def _token(group: TokenGroup, weights: Sequence[float] | None) -> _Token:
    last = group.start + len(group.ids) - 1
    position = f"#{group.start}" if last == group.start else f"#{group.start}-{last}"
    ids = " ".join(map(str, group.ids))
    title = f"{position} id {ids} “{repr(group.text)[1:-1]}” {_name(group.region)}"
    if group.region is Region.CONTEXT:
        return _Token(title, _pieces(group.text, _MARKED_IN_CONTEXT))
    if weights is not None:
        of_group = dict.fromkeys(weights[group.start : last + 1])
        title += " weight " + " ".join(f"{weight:g}" for weight in of_group)
    return _Token(title, _pieces(group.text, _MARKED_IN_TRAINED))


def _pieces(text: str, marked: re.Pattern[str]) -> list[tuple[str, str]]:
    parts = marked.split(text)  # plain text and marked characters, by turns
    pieces = [(_mark(part) if index % 2 else "", visible_controls(part)) for index, part in enumerate(parts)]
    return [(mark, part) for mark, part in pieces if part]


def _mark(character: str) -> str:
    return _MARKS.get(character, f"U+{ord(character):04X}")


def _name(region: Region) -> str:
    return region.name.lower().replace("_", " ")
