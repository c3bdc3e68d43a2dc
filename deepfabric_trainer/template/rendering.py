"""A tokenizer's chat template: its rendering of a conversation, and where each message and field came to stand."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2

from deepfabric_trainer.errors import ConfigError, TemplateError
from deepfabric_trainer.schema import Message, Tool
from deepfabric_trainer.template.brackets import MAX_NUMBER, Bracket, Span, has_brackets, take_out
from deepfabric_trainer.template.loops import compile_with_brackets
from deepfabric_trainer.template.marks import Field, bracket_fields


@dataclass(frozen=True)
class Rendering:
    """A conversation as the template renders it.

    Args:
        text (`str`): What `apply_chat_template(tokenize=False)` gives, to the byte.
        messages (`tuple[Span | None, ...]`): For each message, the characters its turn in the template's loop gave.
        fields (`tuple[tuple[Field, Span | None], ...]`): For each piece of text that a message has, the characters it
            gave, `None` where the template left it out or that could not be proved.
        left_out (`frozenset[Field]`): Those of the fields that the template is proved to have left out.
    """

    text: str
    messages: tuple[Span | None, ...]
    fields: tuple[tuple[Field, Span | None], ...]
    left_out: frozenset[Field] = frozenset()

    def lacks(self, field: Field, span: Span | None) -> bool:
        """Tell whether a field is missing: proved by its marks, or since its text stands nowhere."""
        if span is not None or field in self.left_out:
            return span is None
        return field.text not in self.text and json.dumps(field.text, ensure_ascii=False)[1:-1] not in self.text


class ChatTemplate:
    """Renders conversations as a tokenizer's chat template does, and finds the spans with a proof of equality.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Whose `apply_chat_template` is the truth.
        chat_template (`str`, *optional*): Another template, or the name of one in a dictionary of templates.
        variables (`Mapping[str, Any]`, *optional*): More variables for the template, such as `enable_thinking`.
    Raises:
        ConfigError: If the tokenizer has no chat template.
    """

    def __init__(
        self,
        processing_class: Any,
        *,
        chat_template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.processing_class = processing_class
        self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.variables = dict(variables or {})
        self._chosen = chat_template
        if chat_template is None and not getattr(processing_class, "chat_template", None):
            raise ConfigError(
                f"the tokenizer {type(self.tokenizer).__name__} has no chat template",
                expected="a template that renders the conversations",
                fix="set `chat_template_path` in the config, or `tokenizer.chat_template`",
            )

    def source(self, tools: Sequence[Tool] | None) -> str:
        """Return the Jinja text used for a conversation with these tools: a dictionary may hold one for tool use."""
        return str(self.tokenizer.get_chat_template(self._chosen, tools))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Render through the public `apply_chat_template`, perhaps with more variables than the template's own.

        Raises:
            TemplateError: If the template refuses the conversation; it carries the template's own words.
        """
        try:
            return str(
                self.processing_class.apply_chat_template(
                    list(messages),
                    tools=list(tools) if tools else None,
                    chat_template=self.source(tools),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **{**self.variables, **variables},
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise TemplateError(
                f"the chat template refuses the conversation: {error}",
                fix="change the row so that the template takes it, or use another `chat_template_path`",
            ) from error

    def render_with_spans(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> Rendering:
        """Render, and find what each message and each field gave.

        Both kinds of brackets go into one rendering; when it differs from the plain one, each kind is tried alone.
        What neither proves has no span in the result, never a guessed one.
        """
        text = self.render(messages, tools)
        if has_brackets(text) or len(messages) > MAX_NUMBER:
            return Rendering(text, (None,) * len(messages), _unfound(messages))
        both = self._find_spans(text, messages, tools, loops=True, marks=True)
        if both is not None:
            return both
        loops = self._find_spans(text, messages, tools, loops=True, marks=False)
        marks = self._find_spans(text, messages, tools, loops=False, marks=True)
        return Rendering(
            text,
            loops.messages if loops else (None,) * len(messages),
            marks.fields if marks else _unfound(messages),
            marks.left_out if marks else frozenset(),
        )

    @cached_property
    def renders_reasoning(self) -> bool:
        """Whether the template has a place for `reasoning_content` in the last assistant turn."""
        probe = [
            Message(role="user", content="question"),
            Message(role="assistant", content="answer", reasoning_content="a probe of reasoning"),
        ]
        return "a probe of reasoning" in self.render(probe, None)

    @cached_property
    def generation_prompt(self) -> str:
        """What the template appends to a conversation to ask for an assistant turn; empty when it appends nothing."""
        probe = [Message(role="user", content="question")]
        asked, plain = self.render(probe, None, add_generation_prompt=True), self.render(probe, None)
        return asked[len(plain) :] if asked.startswith(plain) else ""

    def _find_spans(
        self, text: str, messages: Sequence[Message], tools: Sequence[Tool] | None, *, loops: bool, marks: bool
    ) -> Rendering | None:
        """Render once more with brackets around messages, fields or both; `None` when the rest differs from `text`."""
        fields: list[Field] = []
        chat: list[Message] = copy.deepcopy(list(messages))
        if marks:
            chat, fields = bracket_fields(messages)
        try:
            bracketed = take_out(self._render_loops(chat, tools) if loops else self.render(chat, tools))
        except (jinja2.TemplateError, TemplateError, TypeError, ValueError, KeyError):
            return None
        if bracketed.text != text:
            return None
        return Rendering(
            text,
            tuple(bracketed.only(Bracket.MESSAGE, index) for index in range(len(messages))),
            tuple((field, bracketed.only(Bracket.FIELD, number)) for number, field in enumerate(fields)),
            frozenset(field for number, field in enumerate(fields) if (Bracket.FIELD, number) not in bracketed.seen),
        )

    def _render_loops(self, chat: list[Message], tools: Sequence[Tool] | None) -> str:
        variables = {
            **self.tokenizer.special_tokens_map,
            **self.variables,
            "tools": copy.deepcopy(list(tools)) if tools else None,
            "documents": None,
            "add_generation_prompt": False,
        }
        return compile_with_brackets(self.source(tools))([_with_aliases(message) for message in chat], variables)


def _with_aliases(message: Message) -> dict[str, Any]:
    """Give a message's reasoning under the name that gpt-oss's template reads too, as `apply_chat_template` does."""
    if "reasoning_content" not in message:
        return dict(message)
    return {"thinking": message["reasoning_content"], **message}


def _unfound(messages: Sequence[Message]) -> tuple[tuple[Field, Span | None], ...]:
    return tuple((field, None) for field in bracket_fields(messages)[1])
