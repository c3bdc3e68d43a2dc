"""Conversations of other shapes than one call: several exchanges over overlapping catalogues, and plain text."""

import random
from collections.abc import Iterator
from typing import Any

from benchmarks.catalogue import make_rows, make_tools

Json = dict[str, Any]

_KITS = 8
_TOOLS_OF_A_KIT = 14
_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "jel", "ki", "lor", "mun", "nap", "quo", "res", "sti", "tu", "vex")


def make_sessions(count: int, seed: int = 0) -> list[Json]:
    """Return rows of three to five exchanges with a call each, over one to three kits of tools.

    There are eight kits of fourteen tools. A row lists its kits whole and always in the same order, so that some
    catalogues are the same, and others begin alike.

    Args:
        count (`int`): The rows; the first ones do not depend on it.
        seed (`int`, *optional*, defaults to 0): Makes them.
    """
    rng = random.Random(f"sessions {seed}")
    tools = make_tools(_KITS * _TOOLS_OF_A_KIT, seed)
    kits = [tools[start : start + _TOOLS_OF_A_KIT] for start in range(0, len(tools), _TOOLS_OF_A_KIT)]
    rows = []
    for number in range(count):
        chosen = sorted(rng.sample(range(_KITS), rng.choice((1, 2, 2, 3))))
        catalogue = [tool for kit in chosen for tool in kits[kit]]
        exchanges = make_rows(
            rng.randint(3, 5), catalogue=catalogue, tools_per_row=len(catalogue), seed=1000 * seed + number
        )
        rows.append({"messages": [message for row in exchanges for message in row["messages"]], "tools": catalogue})
    return rows


def make_texts(count: int, words: int, seed: int = 0) -> list[Json]:
    """Return rows of one question and one answer, of random words, that have no beginning in common.

    Args:
        count (`int`): The rows.
        words (`int`): Of a row, half of them in the answer; a tenth more or less.
        seed (`int`, *optional*, defaults to 0): Makes them.
    """
    rng = random.Random(f"texts {seed}")

    def text() -> str:
        return " ".join(_words(rng, round(words / 2 * rng.uniform(0.9, 1.1))))

    return [
        {"messages": [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]}
        for _ in range(count)
    ]


def _words(rng: random.Random, count: int) -> Iterator[str]:
    for _ in range(count):
        yield "".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4)))
