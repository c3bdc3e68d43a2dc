"""Probing a chat template: what it writes for an assistant turn, alone and with messages behind it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deepfabric_trainer.errors import DeepFabricTrainerError, TemplateError
from deepfabric_trainer.schema import Message, Tool, ToolCall
from deepfabric_trainer.template.rendering import ChatTemplate
from deepfabric_trainer.toolcalls.pieces import after_common_start

QUESTION, ANSWER, THOUGHT, RESULT = "a probing question", "a probing answer", "a probing thought", "a probing result"
FIRST, SECOND = "probe_first", "probe_second"
KEYS = ("probe_key_a", "probe_key_b")
VALUES = ("probing value a", "probing value b")
_TYPES = {
    "count": "integer",
    "share": "number",
    "yes": "boolean",
    "nothing": "null",
    "list": "array",
    "tree": "object",
}
_TYPED = {
    **{"count": 7, "share": 2.5, "yes": True, "nothing": None},
    **{"list": [1, "x", None], "tree": {"inner": {"y": [False]}, "text": "z"}},
}
_TRICKY = {KEYS[0]: 'It\'s "so"', KEYS[1]: "Köln\n\\x, {y} = [z]"}
_EMPTY: dict[str, Any] = {}


def _tool(name: str) -> Tool:
    types = {**dict.fromkeys(KEYS, "string"), **_TYPES}
    properties = {key: {"type": kind, "description": "A probe."} for key, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": []}
    return {
        "type": "function",
        "function": {"name": name, "description": "A probe.", "parameters": parameters},
    }


TOOLS = [_tool(FIRST), _tool(SECOND)]


def call(name: str, arguments: dict[str, Any], index: int = 0, *, named_id: bool = False) -> ToolCall:
    """Return a call with an id of nine characters, or one that holds its name as the ids of Kimi do."""
    identifier = f"functions.{name}:{index}" if named_id else f"probe000{index}"
    return {"type": "function", "id": identifier, "function": {"name": name, "arguments": arguments}}


def plain_call(name: str = FIRST) -> tuple[str, dict[str, Any]]:
    """Return the call that notations are learned from."""
    return name, dict(zip(KEYS, VALUES, strict=True))


CHECKS: tuple[tuple[tuple[str, dict[str, Any]], ...], ...] = (
    (plain_call(),),
    (plain_call(), plain_call(SECOND)),
    ((FIRST, _TYPED),),
    ((FIRST, _EMPTY),),
    ((FIRST, _TRICKY),),
    ((FIRST, _EMPTY), (SECOND, _TYPED)),
)
"""Calls that a notation must read back."""


@dataclass(frozen=True)
class Prober:
    """Renders probes.

    Args:
        template (`ChatTemplate`): The template.
        named_ids (`bool`): Whether the ids of calls hold their names.
    """

    template: ChatTemplate
    named_ids: bool = False
    question: list[Message] = field(default_factory=lambda: [Message(role="user", content=QUESTION)])

    def prompt(self) -> str:
        """Return the prompt for the turn: the question and the generation prompt."""
        return self.template.render(self.question, TOOLS, add_generation_prompt=True)

    def asked(self) -> str:
        """Return what of the prompt comes behind the question."""
        return self.prompt().rpartition(QUESTION)[2]

    def turn(
        self,
        *calls: tuple[str, dict[str, Any]],
        content: str = "",
        reasoning: str | None = None,
        following: Sequence[Message] = (),
    ) -> str | None:
        """Return what the template writes behind the prompt; `None` if it refuses the turn."""
        message = Message(role="assistant", content=content)
        if reasoning is not None:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [
                call(name, arguments, index, named_id=self.named_ids) for index, (name, arguments) in enumerate(calls)
            ]
        try:
            rendered = self.template.render([*self.question, message, *following], TOOLS)
            return after_common_start(rendered, self.prompt())
        except TemplateError:
            return None

    def result_of(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> list[Message]:
        """Return the messages with the results of calls."""
        ids = [call(name, {}, index, named_id=self.named_ids)["id"] for index, (name, _) in enumerate(calls)]
        return [
            Message(role="tool", content=RESULT, tool_call_id=identifier, name=name)
            for identifier, (name, _) in zip(ids, calls, strict=True)
        ]


def prober_of(processing_class: Any) -> Prober:
    """Return a prober of the template of a tokenizer or processor.

    Raises:
        TemplateError: If there is no template, or it cannot render a question with tools.
    """
    try:
        prober = Prober(ChatTemplate(processing_class))
        prober.prompt()
    except DeepFabricTrainerError as error:
        raise TemplateError(
            f"the chat template cannot render a tool call ({error.found})",
            expected="a template that renders `tools` and `tool_calls`",
            fix="set `processing_class.chat_template` to one that does",
        ) from error
    return prober
