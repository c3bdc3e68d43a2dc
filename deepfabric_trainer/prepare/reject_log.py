"""Rows that are left out while training runs, named once a run, by whichever process meets them."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepfabric_trainer.prepare.report import RejectedRow

logger = logging.getLogger(__name__)

_ROW = re.compile(rb'\{"row": (\d+),')


class RejectLog:
    """A JSON Lines file of rejected rows, which several processes write to: a whole line at a time, each row once.

    When it cannot be written a process says so once, and goes on without it.

    Args:
        path (`Path`, *optional*): The file. `None`: nothing is written, and each process knows only its own rows.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: set[int] = set()
        self._read_to = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_known": set(), "_read_to": 0}

    def start(self) -> None:
        """Begin a run: what an earlier one wrote is kept as `<name>.previous.jsonl`."""
        if self._path is not None and self._path.exists():
            try:
                self._path.replace(self._path.with_suffix(f".previous{self._path.suffix}"))
            except OSError as error:
                self._give_up(error)

    def add(self, rejected: RejectedRow, data: Any) -> bool:
        """Write a row down, unless it is there.

        Args:
            rejected (`RejectedRow`): The row's number and findings.
            data (`Any`): The row itself.

        Returns:
            `bool`: Whether it was new.
        """
        if rejected.row in self._known:
            return False
        if self._path is not None:
            try:
                return self._write(self._path, rejected, data)
            except OSError as error:
                self._give_up(error)
        self._known.add(rejected.row)
        return True

    def _write(self, path: Path, rejected: RejectedRow, data: Any) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with _locked(descriptor):
                self._read(descriptor)
                if rejected.row in self._known:
                    return False
                line = _line(rejected, data)
                while line:
                    line = line[os.write(descriptor, line) :]
                self._known.add(rejected.row)
        finally:
            os.close(descriptor)
        return True

    def _give_up(self, error: OSError) -> None:
        logger.warning("%s cannot be written (%s); rejected rows are named in the log only", self._path, error)
        self._path = None

    def _read(self, descriptor: int) -> None:
        """Learn which rows others have written since the last time."""
        os.lseek(descriptor, self._read_to, os.SEEK_SET)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            for line in file:
                found = _ROW.match(line)
                if found:
                    self._known.add(int(found[1]))
                self._read_to += len(line)


def _line(rejected: RejectedRow, data: Any) -> bytes:
    findings = [{**asdict(finding), "row": rejected.row} for finding in rejected.findings]
    line = {"row": rejected.row, "findings": findings, "data": data}
    return (json.dumps(line, ensure_ascii=False, default=str) + "\n").encode("utf-8", "surrogatepass")


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Keep other processes from the file; on Windows, where data loaders seldom have workers, they are not kept."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
