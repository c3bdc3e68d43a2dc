"""Batches in which examples begin alike in several ways."""

import random
from typing import Any

KINDS = [
    "one catalogue",
    "two catalogues",
    "three catalogues below one system prompt",
    "a catalogue in a catalogue",
    "some alone",
    "nothing shared",
    "beginnings of one another",
    "parts of a rewritten history",
]


def make_examples(kind: str) -> list[dict[str, Any]]:
    """Return a batch in which examples begin alike in the way that `kind` says."""
    generator = random.Random(kind)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(1, 97) for _ in range(count)]

    trunk, other = tokens(40), tokens(30)
    below = [trunk + tokens(count) for count in (20, 24, 31)]
    contexts = {
        "one catalogue": [trunk] * 4,
        "two catalogues": [trunk, other, trunk, other, trunk],
        "three catalogues below one system prompt": [below[number] for number in (0, 1, 2, 0, 1, 2, 2)],
        "a catalogue in a catalogue": [trunk, trunk + other, trunk, trunk + other],
        "some alone": [trunk, trunk, tokens(35), tokens(5)],
        "nothing shared": [tokens(20), tokens(25), tokens(3)],
    }
    examples = []
    for context in contexts.get(kind, []):
        own = tokens(generator.randrange(2, 12))
        labels = [-100] * (len(context) + 1) + [token if generator.random() < 0.7 else -100 for token in own[1:]]
        examples.append({"input_ids": context + own, "labels": [*labels[:-1], own[-1]]})
    if kind == "beginnings of one another":
        row = trunk + tokens(20)
        cuts = [45, 52, 60, 60]
        examples = [{"input_ids": row[:cut], "labels": [-100] * (cut - 3) + row[cut - 3 : cut]} for cut in cuts]
    if kind == "parts of a rewritten history":
        # Each part trains its last turn; the turns before it stand there without their reasoning.
        history, examples = trunk, []
        for _ in range(3):
            turn, question = tokens(9), tokens(18)
            examples.append({"input_ids": history + turn, "labels": [-100] * len(history) + turn})
            history = history + turn[5:] + question
    return examples
