"""Text of strangers on its way into a page: made visible, and cut to size."""

from dataclasses import dataclass

from deepfabric_trainer.visible import visible


@dataclass(frozen=True)
class Cut:
    """A text, and how many characters of it are left out behind it."""

    text: str
    left_out: int = 0


def cut(text: str, most: int) -> Cut:
    """Return a visible text of so many characters of the given one, and how many there are beyond."""
    return Cut(visible(text[:most]), max(0, len(text) - most))
