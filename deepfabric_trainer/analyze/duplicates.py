"""Finding rows that say the same, and prompts that are answered differently."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deepfabric_trainer.analyze.conversations import digest
from deepfabric_trainer.schema import Conversation, Message

Groups = tuple[tuple[int, ...], ...]
"""The numbers of rows that belong together, each group ascending."""


class Duplicates:
    """Which rows, and which prompts, are there more than once.

    The ids of calls do not count: they are often drawn anew for each copy. A prompt is what stands before the first
    assistant turn, with the tools; that turn is its answer.
    """

    def __init__(self) -> None:
        self._rows: dict[bytes, list[int]] = {}
        self._prompts: dict[bytes, list[int]] = {}
        self._answers: dict[bytes, set[bytes]] = {}

    def add(self, number: int, conversation: Conversation) -> None:
        """Take a row in."""
        messages = [_without_ids(message) for message in conversation.messages]
        self._rows.setdefault(digest([messages, conversation.tools]), []).append(number)
        first = next((place for place, message in enumerate(messages) if message["role"] == "assistant"), 0)
        if first:
            prompt = digest([messages[:first], conversation.tools])
            self._prompts.setdefault(prompt, []).append(number)
            self._answers.setdefault(prompt, set()).add(digest(messages[first]))

    def rows(self) -> Groups:
        """Return the groups of rows that are equal, the largest first."""
        return _groups(self._rows.values())

    def prompts(self) -> Groups:
        """Return the groups of rows with the same prompt, the largest first."""
        return _groups(self._prompts.values())

    def conflicts(self) -> Groups:
        """Return those of `prompts` whose answers differ."""
        return _groups(rows for prompt, rows in self._prompts.items() if len(self._answers[prompt]) > 1)


def _groups(groups: Iterable[Sequence[int]]) -> Groups:
    return tuple(sorted((tuple(group) for group in groups if len(group) > 1), key=lambda group: (-len(group), group)))


def _without_ids(message: Message) -> dict[str, Any]:
    bare: dict[str, Any] = {
        name: value for name, value in message.items() if name not in ("tool_calls", "tool_call_id")
    }
    calls: Sequence[Mapping[str, Any]] = message.get("tool_calls") or []
    return bare | {"calls": [call["function"] for call in calls]} if calls else bare
