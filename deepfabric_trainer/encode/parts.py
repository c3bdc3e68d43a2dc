"""The renderings of a conversation in which each trained turn stands in the context that inference shows.

Templates rewrite history: Qwen3 and its kin delete the reasoning of earlier turns. So one sequence cannot be right for
every turn. The whole conversation trains the turns that it is right for; each other turn is trained in the rendering
of the conversation up to it, together with the turns before it that this rendering is right for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from deepfabric_trainer.encode.turns import TrainedTurn, described, find_turn, path_of
from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import Message, Tool
from deepfabric_trainer.template import ChatTemplate, FieldKind, Rendering


@dataclass(frozen=True)
class Part:
    """One sequence to train on: a rendering, and the turns that it trains (at least one)."""

    rendering: Rendering
    turns: tuple[TrainedTurn, ...]


class PartFinder:
    """Splits conversations into parts, for one template and one set of stop tokens.

    Args:
        template (`ChatTemplate`): Renders the conversations.
        stop_texts (`Sequence[str]`): The texts of the known stop tokens.
        special_texts (`Sequence[str]`): The texts of the tokenizer's special tokens.
    """

    def __init__(self, template: ChatTemplate, stop_texts: Sequence[str], special_texts: Sequence[str]) -> None:
        self.template = template
        self.stop_texts = tuple(stop_texts)
        self.special_texts = tuple(special_texts)

    def find(self, messages: Sequence[Message], tools: Sequence[Tool] | None, wanted: Sequence[int]) -> list[Part]:
        """Return the parts that train each wanted message exactly once, the longest part first.

        Args:
            messages (`Sequence[Message]`): The conversation.
            tools (`Sequence[Tool]`, *optional*): Its tools.
            wanted (`Sequence[int]`): The indices of the assistant messages to train, ascending.
        Raises:
            TemplateError: If a wanted turn, a tool or a message before it is not in any rendering.
        """
        prompts = {index: self._prompt(messages, tools, index) for index in wanted}
        pending = list(wanted)
        parts: list[Part] = []
        lengths = [len(messages)]
        while pending:
            length = lengths.pop() if lengths else pending[-1] + 1
            rendering = self.template.render_with_spans(messages[:length], tools)
            check_context(rendering, messages[:length], tools)
            turns = []
            for index in pending:
                turn = self._try_turn(rendering, messages, tools, index, prompts[index], must=length == index + 1)
                if turn is not None and (turn.exact_context or length == index + 1):
                    turns.append(turn)
            if turns:
                parts.append(Part(rendering, tuple(turns)))
            trained = {turn.message for turn in turns}
            pending = [index for index in pending if index not in trained]
        return parts

    def find_provable(
        self,
        rendering: Rendering,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        wanted: Sequence[int],
    ) -> list[TrainedTurn]:
        """Return those of the wanted turns that can be proved in one rendering, whatever context they stand in."""
        turns = [self._try_turn(rendering, messages, tools, index, None, must=False) for index in wanted]
        return [turn for turn in turns if turn is not None]

    def _try_turn(
        self,
        rendering: Rendering,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        index: int,
        prompt: str | None,
        *,
        must: bool,
    ) -> TrainedTurn | None:
        try:
            turn = find_turn(
                rendering,
                index,
                messages[index],
                prompt=prompt,
                quiet_prompt=lambda: self.template.render(
                    messages[:index], tools, add_generation_prompt=True, enable_thinking=False
                ),
                generation_prompt=self.template.generation_prompt,
                stop_texts=self.stop_texts,
                special_texts=self.special_texts,
            )
            check_turn(turn, rendering)
        except TemplateError:
            if must:
                raise
            return None
        return turn

    def _prompt(self, messages: Sequence[Message], tools: Sequence[Tool] | None, index: int) -> str | None:
        if index == 0:
            return None
        return self.template.render(messages[:index], tools, add_generation_prompt=True)


def check_context(rendering: Rendering, messages: Sequence[Message], tools: Sequence[Tool] | None) -> None:
    """Require that every tool and every text that is not the model's stands in the rendering.

    Raises:
        TemplateError: If the template left one out without a word; it names the field.
    """
    context = _without_assistant(rendering, messages) if tools else ""
    for number, tool in enumerate(tools or []):
        lines = tool["function"].get("description", "").strip().splitlines()[:1]
        for text in (tool["function"]["name"], *lines):
            if text not in context and _escaped(text) not in context:
                raise TemplateError(
                    f"the chat template leaves out {text!r} of the tool {tool['function']['name']!r}",
                    expected="a template that renders the tools of a row",
                    fix="use a chat template with tool support (`chat_template_path`), or remove the `tools` column",
                    path=f"tools[{number}]",
                )
    for field, span in rendering.fields:
        role = messages[field.message]["role"]
        if role != "assistant" and field.kind is FieldKind.CONTENT and rendering.lacks(field, span):
            raise TemplateError(
                f"the chat template leaves out a message of role {role!r}",
                expected="every message in the rendering",
                fix="use a chat template with a place for this role (`chat_template_path`), or remove the message",
                path=f"messages[{field.message}].content",
            )


def check_turn(turn: TrainedTurn, rendering: Rendering) -> None:
    """Require that nothing of another message stands inside what a turn trains.

    Raises:
        TemplateError: If the template renders a tool result, say, inside the assistant's turn.
    """
    for field, span in rendering.fields:
        if field.message == turn.message or span is None:
            continue
        if span.start < turn.span.end and span.end > turn.span.start:
            raise TemplateError(
                f"the chat template renders messages[{field.message}] inside this assistant turn",
                expected="turns that stand one after the other; others cannot be proved yet",
                fix="use another chat template (`chat_template_path`)",
                path=f"messages[{turn.message}]",
            )


def check_assistant(rendering: Rendering, messages: Sequence[Message]) -> int:
    """Require that the content and the calls of every assistant message stand in the rendering.

    Returns:
        `int`: How many messages lost their reasoning, which templates delete from earlier turns.

    Raises:
        TemplateError: If the template left one out without a word; it names the field.
    """
    lost = set()
    for field, span in rendering.fields:
        if messages[field.message]["role"] != "assistant" or not rendering.lacks(field, span):
            continue
        if field.kind is FieldKind.REASONING:
            lost.add(field.message)
            continue
        raise TemplateError(
            f"the chat template leaves out {described(field)}",
            expected="every content and every call in the rendering",
            fix="use a chat template with a place for it (`chat_template_path`), or remove it from the row",
            path=f"messages[{field.message}].{path_of(field)}",
        )
    return len(lost)


def _without_assistant(rendering: Rendering, messages: Sequence[Message]) -> str:
    """Return the rendering without what the assistant's messages gave, as far as that is known."""
    kept, position = [], 0
    for message, span in zip(messages, rendering.messages, strict=True):
        if message["role"] == "assistant" and span is not None:
            kept.append(rendering.text[position : span.start])
            position = span.end
    return "".join((*kept, rendering.text[position:]))


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
