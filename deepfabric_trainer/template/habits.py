"""What a chat template does around an assistant turn, learned by rendering probes through it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import Message, Tool
from deepfabric_trainer.template.appended import appends_prompt
from deepfabric_trainer.template.rendering import ChatTemplate

_QUESTION, _ANSWER, _THOUGHT = "a probing question", "a probing answer", "a probing thought"
TAG = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z][A-Z_]{1,38}\]|\[\|[a-z]+\|\]")
"""Text that looks like a control token, for tokenizers that do not know the template's own."""
_THINKING = re.compile(r"\s*(?:<([^<>/\s]*think[^<>\s]*)>\s*</\1>|\[THINK\]\s*\[/THINK\])\s*")
_SWITCHES = ({"enable_thinking": False}, {"thinking": False}, {"enable_thinking": True}, {"thinking": True})


@dataclass(frozen=True)
class Habits:
    """Learns on demand what a template does.

    Args:
        template (`ChatTemplate`): The template.
        tools (`Sequence[Tool]`, *optional*): What the probes show: a dictionary may hold a template for tool use, and
            such a template may insist on tools.
    """

    template: ChatTemplate
    tools: Sequence[Tool] | None = None

    @cached_property
    def generation_prompt(self) -> str:
        """What the template appends to a conversation to ask for an assistant turn; empty when it appends nothing."""
        asked, plain = self._render(self._question, add_generation_prompt=True), self._render(self._question)
        return asked[len(plain) :] if asked.startswith(plain) else ""

    @cached_property
    def renders_reasoning(self) -> bool:
        """Whether the template has a place for `reasoning_content` in the last assistant turn."""
        return _THOUGHT in self._turn(_THOUGHT)

    @cached_property
    def empty_thinking(self) -> tuple[re.Pattern[str], ...]:
        """Patterns of a reasoning block without a reasoning, as templates invent it for turns that have none."""
        turn = self._turn(_THOUGHT)
        if _THOUGHT not in turn or _ANSWER not in turn:
            return (_THINKING,)
        before, _, rest = turn.partition(_THOUGHT)
        openings, closing = list(TAG.finditer(before)), TAG.search(rest.partition(_ANSWER)[0])
        if not openings or closing is None:
            return (_THINKING,)
        opening = before[openings[-1].start() :].strip()
        return (_THINKING, re.compile(rf"\s*{re.escape(opening)}\s*{re.escape(closing[0])}\s*"))

    @cached_property
    def after_turn(self) -> str:
        """What the template writes behind the content of the last assistant turn, without surrounding white space."""
        return self._turn(None).rpartition(_ANSWER)[2].strip()

    @cached_property
    def switches(self) -> tuple[dict[str, bool], ...]:
        """The settings of inference that switch reasoning on and off, as far as the template reads them."""
        source = self.template.source(self.tools)
        return tuple(switch for switch in _SWITCHES if re.search(rf"\b{next(iter(switch))}\b", source))

    @cached_property
    def appended(self) -> tuple[str, tuple[str, ...]] | None:
        """What the template appends to any conversation for its prompt, and with each switch; `None` if it does else.

        That it is the same for any conversation is read from the template; what it is, a probe shows.
        """
        names = frozenset(name for switch in self.switches for name in switch)
        if "add_generation_prompt" in self.template.variables:
            return None
        if not appends_prompt(self.template.source(self.tools), names):
            return None
        plain = self._render(self._question)
        asked = [self._render(self._question, add_generation_prompt=True, **more) for more in ({}, *self.switches)]
        if not plain or not all(text.startswith(plain) for text in asked):
            return None
        usual, *switched = [text[len(plain) :] for text in asked]
        return usual, tuple(switched)

    def _turn(self, thought: str | None) -> str:
        """Return what stands behind a probe's question: the rest of its message, and the turn; empty if refused."""
        answer = Message(role="assistant", content=_ANSWER)
        if thought is not None:
            answer["reasoning_content"] = thought
        return self._render(self._question, answer).rpartition(_QUESTION)[2]

    @property
    def _question(self) -> Message:
        return Message(role="user", content=_QUESTION)

    def _render(self, *messages: Message, **variables: bool) -> str:
        try:
            return self.template.render(messages, self.tools, **variables)
        except TemplateError:
            return ""
