"""Messages on disk that wait for their server, oldest first."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepfabric_trainer.callbacks._sinks.records import json_line
from deepfabric_trainer.callbacks._sinks.run_file import ends_a_line


@dataclass(frozen=True)
class Message:
    """Something to POST.

    Args:
        path (`str`): `"runs"` or `"metrics"`.
        body (`dict[str, Any]`): What to send; `message_id` tells a repetition from a second message.
    """

    path: str
    body: dict[str, Any]


class Spool:
    """A file of messages for one server; those for other servers stay in it, untouched.

    It is there only while messages wait. Not safe for threads: one at a time.

    Args:
        path (`Path`): The file.
        server (`str`): Where this run's messages go: another run's may go elsewhere.
    """

    def __init__(self, path: Path, server: str) -> None:
        self._path = path
        self._server = server
        self._waiting: int | None = None

    def __len__(self) -> int:
        """Return how many messages wait for this server."""
        if self._waiting is None:
            self._waiting = sum(1 for _ in self._read())
        return self._waiting

    def head(self, count: int) -> list[Message]:
        """Return the first `count` messages, or as many as there are."""
        found = []
        for message in self._read():
            found.append(message)
            if len(found) == count:
                break
        return found

    def append(self, messages: Sequence[Message]) -> None:
        """Put messages at the end."""
        waiting = len(self)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab") as file:
            if not ends_a_line(self._path):
                file.write(b"\n")
            file.writelines(map(self._line, messages))
        self._waiting = waiting + len(messages)

    def prepend(self, messages: Sequence[Message]) -> None:
        """Put messages before all that wait."""
        if not len(self):
            self.append(messages)
            return
        waiting = len(self)
        self._rewrite([*map(self._line, messages), *self._lines()])
        self._waiting = waiting + len(messages)

    def drop(self, count: int) -> None:
        """Remove the first `count` messages."""
        left = len(self) - count
        kept = []
        for line in self._lines():
            if count and self._message(line) is not None:
                count -= 1
            else:
                kept.append(line)
        self._rewrite(kept)
        self._waiting = left

    def _rewrite(self, lines: Sequence[bytes]) -> None:
        if not lines:
            self._path.unlink(missing_ok=True)
            return
        new = self._path.with_name(f"{self._path.name}.tmp")
        new.write_bytes(b"".join(lines))
        os.replace(new, self._path)

    def _read(self) -> Iterable[Message]:
        return (message for line in self._lines() if (message := self._message(line)) is not None)

    def _lines(self) -> Iterable[bytes]:
        try:
            with open(self._path, "rb") as file:
                for line in file:
                    yield line if line.endswith(b"\n") else line + b"\n"
        except FileNotFoundError:
            return

    def _line(self, message: Message) -> bytes:
        return json_line({"server": self._server, "path": message.path, "body": message.body})

    def _message(self, line: bytes) -> Message | None:
        """Return the message of a line; `None` if it is for another server, or a kill has cut it off."""
        try:
            entry = json.loads(line)
            return Message(entry["path"], entry["body"]) if entry["server"] == self._server else None
        except (ValueError, KeyError, TypeError):
            return None
