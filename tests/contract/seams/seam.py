"""What the test of a seam says when it fails: library and version, what moved, and which of our files needs it.

A seam is what we rely on in another library: a name, a signature, or a behaviour that no documentation promises.
"""

from contextlib import ContextDecorator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PRIVATE: dict[str, set[str]] = {}
"""The private names that tests of seams answer for, by our file."""


class Seam(ContextDecorator):
    """Makes a failure inside say which seam has moved. A skipped test stays one.

    Args:
        library (`str`): The name of its distribution.
        what (`str`): What we rely on.
        files (`str`): Ours that do, from the root of the checkout.
        private (`tuple[str, ...]`): The private names among it.
    """

    def __init__(self, library: str, what: str, *files: str, private: tuple[str, ...] = ()) -> None:
        missing = [name for name in files if not (ROOT / name).is_file()]
        if missing:
            raise ValueError(f"no such file: {', '.join(missing)}")
        self.library, self.what, self.files = library, what, files
        for file in files:
            PRIVATE.setdefault(file, set()).update(private)

    def __enter__(self) -> "Seam":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            raise SeamMovedError(self, error) from error


class SeamMovedError(AssertionError):
    """Another library is not any more, or not yet, as we rely on it."""

    def __init__(self, seam: Seam, error: Exception) -> None:
        installed = f"{seam.library} {version(seam.library)}"
        reason = str(error).strip().split("\n")[0]
        super().__init__(
            f"{installed}: {seam.what} has moved; {', '.join(seam.files)} depends on it "
            f"({type(error).__name__}{': ' if reason else ''}{reason})"
        )
