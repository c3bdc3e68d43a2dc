import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.encode import EncodedExample
from deepfabric_trainer.visible import visible


@dataclass(frozen=True)
class PreviewedRow:
    """A row, and what the encoder made of it.

    Args:
        number (`int`): Its number in the data, counted from 0.
        row (`Mapping[str, Any]`): The row itself, shown when it was rejected.
        examples (`Sequence[EncodedExample]`, *optional*): The examples that it gives; none when it was rejected.
        notes (`Sequence[str]`, *optional*): What was mended in it or left out of it.
        error (`str`, *optional*): Why it was rejected.
    """

    number: int
    row: Mapping[str, Any]
    examples: Sequence[EncodedExample] = ()
    notes: Sequence[str] = ()
    error: str | None = None

    def as_json(self) -> str:
        """Return the row as indented JSON in which every character can be seen, and written as UTF-8."""
        text = json.dumps(self.row, indent=2, ensure_ascii=False, default=str)
        return visible(text)


def notes_on(example: EncodedExample) -> Iterator[str]:
    """Go over what there is to say about an example beside its tokens."""
    for context, turns in Counter(example.contexts).items():
        yield f"trained turns behind {context}: {turns}"
    if example.unstopped_turns:
        yield f"trained turns that the template ends without a stop token: {example.unstopped_turns}"
    if example.lost_reasoning:
        yield f"assistant messages whose reasoning the template left out: {example.lost_reasoning}"
    weights = [weight for weight, label in zip(example.weights or (), example.labels, strict=False) if label != -100]
    if weights:
        low, high = min(weights), max(weights)
        yield f"trained tokens weigh {low:g}" if low == high else f"trained tokens weigh from {low:g} to {high:g}"
