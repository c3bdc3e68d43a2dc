"""What an analysis of a dataset finds, in numbers and in words."""

from dataclasses import asdict, dataclass
from typing import Any

LIMITS = (1024, 2048, 4096, 8192)
"""Tokens: lengths that people set `max_length` to."""
_SHOWN = 5

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Catalogue:
    """A list of tools that rows offer.

    Args:
        tools (`int`): How many tools it holds; 0 for rows that offer none.
        rows (`int`): How many rows offer it.
        first_row (`int`): The first of them.
    """

    tools: int
    rows: int
    first_row: int


@dataclass(frozen=True)
class TokenReport:
    """The tokens of the rows that can be trained on, with every assistant turn trained and nothing cut.

    Args:
        examples (`int`): The sequences that are trained: a row gives several when the template rewrites its history.
        tokens (`int`): Those of all examples.
        by_region (`dict[str, int]`): How many tokens are `context`, which is not trained, and how many of each kind
            that is.
        lengths (`dict[str, int]`): Of the longest example of each row: `"min"`, `"50%"`, `"90%"`, `"99%"`, `"max"`.
        rows_over (`dict[int, int]`): How many rows are longer than 1,024, 2,048, 4,096 and 8,192 tokens.
        longest_rows (`tuple[tuple[int, int], ...]`): The five longest: number and length.
        shared (`float`): The part of the tokens, from 0 to 1, that need not be computed when examples that begin alike
            stand in batches of eight; measured on the first four million tokens.
    """

    examples: int
    tokens: int
    by_region: dict[str, int]
    lengths: dict[str, int]
    rows_over: dict[int, int]
    longest_rows: tuple[tuple[int, int], ...]
    shared: float

    @property
    def trained(self) -> int:
        """The tokens that are trained."""
        return self.tokens - self.by_region["context"]


@dataclass(frozen=True)
class DatasetReport:
    """What is in a dataset; rows are numbered from 0. `str(report)` sums it up, `to_dict()` gives it to a program.

    Args:
        rows (`int`): The rows that were read.
        messages (`dict[str, int]`): The messages of each role.
        turns_with_call (`int`): The assistant turns that call a tool.
        turns_without_call (`int`): Those that call none.
        calls_by_tool (`dict[str, int]`): The calls of each tool, most first.
        rows_by_tool (`dict[str, int]`): How many rows offer each tool, most first.
        catalogues (`tuple[Catalogue, ...]`): The different lists of tools, that of most rows first.
        rejected_by_rule (`dict[str, int]`): How many rows break each rule because of which rows are not trained on.
        rejected_rows (`tuple[int, ...]`): These rows.
        duplicate_rows (`tuple[tuple[int, ...], ...]`): Groups of rows that are equal, but for the ids of calls.
        repeated_prompts (`tuple[tuple[int, ...], ...]`): Groups of rows with the same tools and the same messages
            before the first assistant turn.
        conflicting_prompts (`tuple[tuple[int, ...], ...]`): Those whose first assistant turns differ.
        tokens (`TokenReport`, *optional*): When there is a tokenizer, and a row that it can encode.
    """

    rows: int
    messages: dict[str, int]
    turns_with_call: int
    turns_without_call: int
    calls_by_tool: dict[str, int]
    rows_by_tool: dict[str, int]
    catalogues: tuple[Catalogue, ...]
    rejected_by_rule: dict[str, int]
    rejected_rows: tuple[int, ...]
    duplicate_rows: Groups
    repeated_prompts: Groups
    conflicting_prompts: Groups
    tokens: TokenReport | None = None

    @property
    def tools_never_called(self) -> list[str]:
        """The tools that rows offer and no turn calls."""
        return [name for name in self.rows_by_tool if name not in self.calls_by_tool]

    @property
    def copies(self) -> int:
        """How many rows are copies of an earlier one."""
        return sum(len(group) - 1 for group in self.duplicate_rows)

    @property
    def remarks(self) -> list[str]:
        """What to look at, in plain words, the most important first; empty when nothing stands out."""
        from deepfabric_trainer.analyze.remarks import remarks_on  # which reads reports

        return remarks_on(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: the fields, and with them what is derived from them."""
        fields = asdict(self)
        if self.tokens is not None:
            fields["tokens"]["trained"] = self.tokens.trained
        derived = {"tools_never_called": self.tools_never_called, "copies": self.copies, "remarks": self.remarks}
        return fields | derived

    def __str__(self) -> str:
        lines = [self._headline(), *(f"{name:<12}{text}" for name, text in self._facts() if text)]
        remarks = self.remarks
        return "\n".join([*lines, *(["", "What to look at"] if remarks else []), *(f"- {one}" for one in remarks)])

    def _headline(self) -> str:
        roles = ", ".join(f"{count:,} {role}" for role, count in self.messages.items())
        messages = count_of(sum(self.messages.values()), "message")
        return f"{count_of(self.rows, 'row')}, {messages}" + (f" ({roles})" if roles else "")

    def _facts(self) -> list[tuple[str, str]]:
        """Return what to print beside which name; what is empty is not there."""
        with_call, without_call = self.turns_with_call, self.turns_without_call
        turns = f"{with_call + without_call:,} by the assistant: {with_call:,} make a call, {without_call:,} make none"
        rules = ", ".join(f"{count:,} {rule}" for rule, count in self.rejected_by_rule.items())
        return [
            ("turns", turns),
            *_call_facts(self.calls_by_tool),
            *self._tool_facts(),
            ("rejected", f"{count_of(len(self.rejected_rows), 'row')}: {rules}" if rules else ""),
            ("duplicates", copies_of(self.copies) if self.copies else ""),
            *([] if self.tokens is None else _token_facts(self.tokens)),
        ]

    def _tool_facts(self) -> list[tuple[str, str]]:
        offered = [catalogue for catalogue in self.catalogues if catalogue.tools]
        if not offered:
            return []
        sizes = {catalogue.tools for catalogue in offered}
        span = str(min(sizes)) if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
        never, most = len(self.tools_never_called), count_of(offered[0].rows, "row")
        return [
            ("tools", f"{len(self.rows_by_tool):,} offered, {never:,} never called; {span} a row"),
            ("catalogues", f"{len(offered):,} different lists of tools; the most frequent is in {most}"),
        ]


def _call_facts(calls_by_tool: dict[str, int]) -> list[tuple[str, str]]:
    if not calls_by_tool:
        return []
    most = ", ".join(f"{name} ({count:,})" for name, count in list(calls_by_tool.items())[:_SHOWN])
    return [("calls", f"{sum(calls_by_tool.values()):,} of {count_of(len(calls_by_tool), 'tool')}: {most}")]


def _token_facts(report: TokenReport) -> list[tuple[str, str]]:
    regions = {name.replace("_", " "): count for name, count in report.by_region.items() if name != "context"}
    of_trained = ", ".join(f"{name} {share_of(count, report.trained)}" for name, count in regions.items() if count)
    over = ", ".join(f"{count:,} over {limit:,}" for limit, count in report.rows_over.items() if count)
    longest = ", ".join(f"row {row} ({length:,})" for row, length in report.longest_rows)
    quantiles = ", ".join(f"{name} {length:,}" for name, length in report.lengths.items())
    examples, trained = count_of(report.examples, "example"), share_of(report.trained, report.tokens)
    return [
        ("tokens", f"{report.tokens:,} in {examples}; {trained} trained"),
        ("trained", of_trained),
        ("lengths", quantiles),
        ("", f"rows: {over}" if over else ""),
        ("longest", longest),
        ("shared", f"{share_of(report.shared, 1)} of the tokens in batches of 8 rows that begin alike"),
    ]


def copies_of(count: int) -> str:
    """Return how many rows repeat others, in words."""
    return f"{count_of(count, 'row')} {'is a copy of an earlier one' if count == 1 else 'are copies of earlier ones'}"


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def share_of(part: float, whole: float) -> str:
    """Return a part in percent."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f}%" if 0 < percent < 10 else f"{percent:.0f}%"
