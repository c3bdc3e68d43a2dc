"""Counting messages, turns, calls and tools."""

import json
from collections import Counter
from hashlib import blake2b
from typing import Any

from deepfabric_trainer.analyze.report import Catalogue
from deepfabric_trainer.schema import Conversation, Tool

_MOST_LISTS = 256


class ConversationCounts:
    """What the conversations of a dataset are made of."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.turns_with_call = 0
        self.turns_without_call = 0
        self.calls: Counter[str] = Counter()
        self.declared: Counter[str] = Counter()
        self._catalogues: dict[bytes, Catalogue] = {}
        self._keys: dict[int, tuple[list[Tool], bytes]] = {}

    def add(self, number: int, conversation: Conversation) -> None:
        """Count a conversation, whose tools nobody changes as long as there are more."""
        for message in conversation.messages:
            self.messages[message["role"]] += 1
            if message["role"] == "assistant":
                calls = message.get("tool_calls") or []
                self.calls.update(call["function"]["name"] for call in calls)
                self.turns_with_call += bool(calls)
                self.turns_without_call += not calls
        tools = conversation.tools or []
        self.declared.update(dict.fromkeys((tool["function"]["name"] for tool in tools), 1))
        key = self._key(tools)
        known = self._catalogues.get(key)
        self._catalogues[key] = Catalogue(
            tools=len(tools),
            rows=1 if known is None else known.rows + 1,
            first_row=number if known is None else known.first_row,
        )

    def catalogues(self) -> tuple[Catalogue, ...]:
        """Return the different lists of tools, that of most rows first."""
        return tuple(sorted(self._catalogues.values(), key=lambda catalogue: -catalogue.rows))

    def _key(self, tools: list[Tool]) -> bytes:
        if id(tools) not in self._keys:
            if len(self._keys) >= _MOST_LISTS:
                self._keys.clear()
            self._keys[id(tools)] = tools, digest(tools)
        return self._keys[id(tools)][1]


def digest(value: Any) -> bytes:
    """Return 16 bytes that equal JSON values share, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).digest()
