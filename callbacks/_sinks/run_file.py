"""A file of JSON lines of one run, in a folder where earlier runs may have left theirs."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepfabric_trainer.file_names import file_name


class RunFile:
    """Lines of one run, each written through before `append` returns.

    A line that a full disk has cut off stays alone: the next one begins behind it.

    The file is opened for every write: a fork shares no handle, a kill loses nothing, and a run that has started in
    the same folder meanwhile, and set our file aside, is noticed; then ours goes on under the name it was given.

    Args:
        path (`Path`): Such as `metrics.jsonl`.
        run_id (`str`): The run. A file that another run has begun is not touched: ours is `metrics.{run_id}.jsonl`.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self.path = path
        self._own_path = named_after(path, run_id)
        self._inode: int | None = None
        self._may_be_cut = False

    def append(self, lines: Sequence[bytes]) -> None:
        """Write lines at the end.

        Raises:
            OSError: If the folder does not take them.
        """
        if self.path != self._own_path and self._is_of_another_run():
            self.path = self._own_path
        text = b"".join(lines)
        if self._may_be_cut and not ends_a_line(self.path):
            text = b"\n" + text
        self._may_be_cut = True
        with open(self.path, "ab") as file:
            self._inode = os.fstat(file.fileno()).st_ino
            file.write(text)
        self._may_be_cut = False

    def go_on_from(self, step: int) -> tuple[str | None, int]:
        """Take over what the resumed run has written up to its checkpoint, and move the rest aside.

        Lines of later steps go to the end of `metrics.superseded.jsonl`, and so does a line that was cut off.

        Args:
            step (`int`): The checkpoint's step.

        Returns:
            `tuple[str | None, int]`: The id of the run that wrote last, and how many lines went aside.
        """
        if not self.path.exists():
            return None, 0
        rest = self.path.with_name(f"{self.path.stem}.rest.tmp")
        run_id, moved = None, []
        with open(self.path, "rb") as old, open(rest, "wb") as kept:
            for line in old:
                entry = _entry(line)
                run_id = (entry or {}).get("run_id", run_id)
                if entry is None or entry.get("step", 0) > step:
                    moved.append(line.rstrip(b"\n") + b"\n")
                else:
                    kept.write(line)
        if moved:
            with open(self.path.with_name(f"{self.path.stem}.superseded.jsonl"), "ab") as superseded:
                superseded.write(b"".join(moved))
            os.replace(rest, self.path)
        else:
            rest.unlink()
        self._inode = self.path.stat().st_ino
        return run_id, len(moved)

    def set_aside(self) -> str | None:
        """Give a file that is there the name of the run that wrote last, and return the name."""
        if not self.path.exists():
            return None
        run_id = "unknown"
        with open(self.path, "rb") as file:
            for line in file:
                run_id = (_entry(line) or {}).get("run_id", run_id)
        target, count = named_after(self.path, run_id), 1
        while target.exists():
            count += 1
            target = named_after(self.path, f"{run_id}.{count}")
        self.path.rename(target)
        return target.name

    def _is_of_another_run(self) -> bool:
        try:
            return self.path.stat().st_ino != self._inode
        except FileNotFoundError:
            return False


def named_after(path: Path, run_id: str) -> Path:
    """Return `metrics.{run_id}.jsonl` for `metrics.jsonl`; the id of an earlier run is what its file says."""
    return path.with_name(f"{path.stem}.{file_name(str(run_id))}{path.suffix}")


def ends_a_line(path: Path) -> bool:
    """Return whether a file ends behind a line, as an empty one does, and one that is not there."""
    if not path.exists() or not path.stat().st_size:
        return True
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return what a whole line says, `None` if it is none of ours."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and line.endswith(b"\n") else None
