"""Messages on disk that wait for their server, oldest first."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from deepfabric_trainer.callbacks._sinks.records import json_line
from deepfabric_trainer.callbacks._sinks.run_file import ends_a_line

MOST_BYTES = 64 * 2**20
"""Some 150,000 messages; the same metrics are in `metrics.jsonl`."""

_SMALL = 2**20
"""Up to this size writing a file anew costs next to nothing (bytes)."""


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

    It is there only while messages wait. In a large one what was dropped stays until it is half of it: a kill in
    between sends messages again, which the server tells by their `message_id`. Not safe for threads: one at a time.

    Args:
        path (`Path`): The file.
        server (`str`): Where this run's messages go: another run's may go elsewhere.
        most_bytes (`int`, *optional*, defaults to 64 MiB): How large the file may grow.
    """

    def __init__(self, path: Path, server: str, most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._server = server
        self._most_bytes = most_bytes
        self._waiting: int | None = None
        self._done = 0
        """How many bytes at the beginning hold no message that waits for this server."""

    def __len__(self) -> int:
        """Return how many messages wait for this server."""
        if self._waiting is None:
            self._waiting = sum(1 for _ in self._read())
        return self._waiting

    def head(self, count: int) -> list[Message]:
        """Return the first `count` messages, or as many as there are."""
        return [message for _, message in islice(self._read(), count)]

    def append(self, messages: Sequence[Message]) -> None:
        """Put messages at the end.

        Raises:
            OSError: If the disk does not take them, or the file has its full size.
        """
        waiting = len(self)
        lines = [self._line(message) for message in messages]
        self._require_room(lines)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab") as file:
            if not ends_a_line(self._path):
                file.write(b"\n")
            file.writelines(lines)
        self._waiting = waiting + len(messages)

    def prepend(self, messages: Sequence[Message]) -> None:
        """Put messages before all that wait; see `append`."""
        if not len(self):
            self.append(messages)
            return
        waiting = len(self)
        lines = [self._line(message) for message in messages]
        self._require_room(lines)
        self._rewrite(lines)
        self._waiting = waiting + len(messages)

    def drop(self, count: int) -> None:
        """Remove the first `count` messages."""
        left = len(self) - count
        for end, _ in islice(self._read(), count):
            self._done = end
        self._waiting = left
        size = self._path.stat().st_size if self._path.exists() else 0
        if not left or size < _SMALL or 2 * self._done > size:
            self.tidy()

    def tidy(self) -> None:
        """Take what was dropped out of the file."""
        if self._done:
            self._rewrite([])

    def _require_room(self, lines: Sequence[bytes]) -> None:
        size = self._path.stat().st_size if self._path.exists() else 0
        if size + sum(map(len, lines)) > self._most_bytes:
            raise OSError(f"{self._path.name} has {size / 2**20:.0f} MiB, and grows no further")

    def _rewrite(self, first: Sequence[bytes]) -> None:
        """Write the file anew, without what was dropped, and with these lines before those that wait."""
        others = [line for end, line in self._lines(0) if end <= self._done and self._message(line) is None]
        lines = [*others, *first, *(line for _, line in self._lines(self._done))]
        if lines:
            new = self._path.with_name(f"{self._path.name}.tmp")
            new.write_bytes(b"".join(lines))
            os.replace(new, self._path)
        else:
            self._path.unlink(missing_ok=True)
        self._done = 0

    def _read(self) -> Iterator[tuple[int, Message]]:
        """Give the messages that wait, each with the place where its line ends."""
        for end, line in self._lines(self._done):
            message = self._message(line)
            if message is not None:
                yield end, message

    def _lines(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Give the lines from a place on, each with the place where it ends."""
        try:
            with open(self._path, "rb") as file:
                end = file.seek(start)
                for line in file:
                    end += len(line)
                    yield end, line if line.endswith(b"\n") else line + b"\n"
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
