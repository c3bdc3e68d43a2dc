"""What an assistant turn is made of beside calls: reasoning, frames around the content, and the tokens that end it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from deepfabric_trainer.template.habits import TAG
from deepfabric_trainer.toolcalls.pieces import lenient

KNOWN_STOPS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>")
"""Ends of turns of many tokenizers, also where a template writes others."""


@dataclass(frozen=True)
class TurnForm:
    """How a template writes an assistant turn.

    Args:
        reasoning_open (`str`): What it writes before a reasoning.
        reasoning_close (`str`): The tag behind a reasoning.
        opens_reasoning (`bool`): Whether the generation prompt leaves a reasoning open.
        message_start (`str`): Between a reasoning and the frame of what follows, such as `<|start|>assistant`.
        header_end (`str`): The tag that ends the header of a framed text, such as `<|message|>`; empty: no frames.
        own_stops (`tuple[str, ...]`): The texts with which the template ends a turn.
        stops (`tuple[str, ...]`): The texts that end a turn, those of other templates too.
    """

    reasoning_open: str = "<think>"
    reasoning_close: str = "</think>"
    opens_reasoning: bool = False
    message_start: str = ""
    header_end: str = ""
    own_stops: tuple[str, ...] = ()
    stops: tuple[str, ...] = KNOWN_STOPS

    def leading_reasoning(self, text: str) -> tuple[list[str], str]:
        """Return the reasonings that a text begins with, and the rest; one that is not closed takes all."""
        thoughts: list[str] = []
        while (opening := self._opening.match(text)) is not None:
            thought, _, text = text[opening.end() :].partition(self.reasoning_close)
            thoughts.append(thought.strip())
        return thoughts, text

    def body(self, turn: str) -> str:
        """Return a turn that the template wrote, up to its end and without its reasoning."""
        _, text = self.leading_reasoning(turn)
        if self.opens_reasoning and self.reasoning_close in text:
            text = text.partition(self.reasoning_close)[2]
        return cut(text, self.stops)

    def closes_unopened(self) -> bool:
        """Whether a closing tag alone tells that a reasoning ends there."""
        return self.opens_reasoning or self.reasoning_close.startswith(("</", "[/"))

    def unframed(self, text: str) -> str:
        """Return a text that stands outside reasoning and calls without its headers, its messages set apart."""
        if not self.header_end:
            return text
        contents = []
        for message in self._message_ends.split(text):
            _, header_end, content = message.rpartition(self.header_end)
            contents.append(content if header_end else TAG.split(message, maxsplit=1)[0])
        return "\n\n".join(filter(None, contents))

    @cached_property
    def _opening(self) -> re.Pattern[str]:
        start = rf"(?:{lenient(self.message_start)}\s*)?" if self.message_start else ""
        return re.compile(rf"\s*{start}{lenient(self.reasoning_open.strip())}")

    @cached_property
    def _message_ends(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.reasoning_close))


def cut(text: str, stops: Iterable[str]) -> str:
    """Return a text up to the first of the texts that end a turn."""
    return text[: min((at for at in map(text.find, stops) if at != -1), default=len(text))]
