"""A tokenizer's chat template: its rendering of a conversation, and where each field came to stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.errors import ConfigError, DeepFabricTrainerError, TemplateError
from deepfabric_trainer.processing import tokenizer_of
from deepfabric_trainer.schema import Message, Tool
from deepfabric_trainer.template.brackets import Span, has_brackets, take_out
from deepfabric_trainer.template.budget import OverBudgetError
from deepfabric_trainer.template.catalogue import KnownTools
from deepfabric_trainer.template.dialect import Dialect, choose_dialect
from deepfabric_trainer.template.direct import DirectRenderer
from deepfabric_trainer.template.marks import Field, Marking, bracket_fields

_LONGEST_REASON = 500
"""Characters of a template's own words."""


@dataclass(frozen=True)
class Rendering:
    """A conversation as the template renders it.

    Args:
        text (`str`): What `apply_chat_template(tokenize=False)` gives, to the byte.
        fields (`tuple[tuple[Field, tuple[Span, ...] | None], ...]`): For each piece of text that a message has, the
            characters that it gave, proved by equality: none where the template left it out, more than one span where
            it stands there more than once. `None` where that could not be proved.
    """

    text: str
    fields: tuple[tuple[Field, tuple[Span, ...] | None], ...] = ()

    def of(self, message: int) -> list[tuple[Field, tuple[Span, ...] | None]]:
        """Return the fields of one message."""
        return [(field, spans) for field, spans in self.fields if field.message == message]

    def beginning(self, length: int, last: int) -> "Rendering":
        """Return its first `length` characters, with the fields that the messages up to `last` gave there."""

        def within(spans: tuple[Span, ...] | None) -> tuple[Span, ...] | None:
            return None if spans is None else tuple(span for span in spans if span.end <= length)

        fields = tuple((field, within(spans)) for field, spans in self.fields if field.message <= last)
        return Rendering(self.text[:length], fields)


class ChatTemplate:
    """Renders conversations as a tokenizer's chat template does, and finds the fields with a proof of equality.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Whose `apply_chat_template` is the truth.
        chat_template (`str`, *optional*): Another template, or the name of one in a dictionary of templates.
        variables (`Mapping[str, Any]`, *optional*): More variables for the template, such as `enable_thinking`.
        direct (`DirectRenderer`, *optional*): Shared with other templates, if there are any.
    Raises:
        ConfigError: If the tokenizer has no chat template.
    """

    def __init__(
        self,
        processing_class: Any,
        *,
        chat_template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        direct: DirectRenderer | None = None,
    ) -> None:
        self.processing_class = processing_class
        self.tokenizer = tokenizer_of(processing_class)
        self.variables = dict(variables or {})
        self._chosen = chat_template
        self._dialects: dict[str, Dialect] = {}
        self._direct = direct or DirectRenderer(KnownTools())
        if chat_template is None and not getattr(processing_class, "chat_template", None):
            raise ConfigError(
                f"the tokenizer {type(self.tokenizer).__name__} has no chat template",
                expected="a template that renders the conversations",
                fix="set `chat_template_path` in the config, or `tokenizer.chat_template`",
            )

    def source(self, tools: Sequence[Tool] | None) -> str:
        """Return the Jinja text used for a conversation with these tools: a dictionary may hold one for tool use."""
        templates = self.processing_class.chat_template
        if not isinstance(templates, dict):
            return str(self._chosen or templates)
        name = self._chosen or ("tool_use" if tools and "tool_use" in templates else "default")
        if name not in templates and self._chosen is None:
            raise ConfigError(
                f"the tokenizer has the chat templates {', '.join(map(repr, sorted(templates)))}, and no default",
                expected="the name of one of them",
                fix="pass `chat_template` with the name",
            )
        return str(templates.get(name, name))

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
        return self._render(
            self.dialect(tools), messages, tools, add_generation_prompt=add_generation_prompt, **variables
        )

    def dialect(self, tools: Sequence[Tool] | None) -> Dialect:
        """Return the form in which the template for these tools wants messages."""
        source = self.source(tools)
        if source not in self._dialects:
            self._dialects[source] = choose_dialect(lambda dialect, probe: self._render(dialect, probe, tools))
        return self._dialects[source]

    def render_with_fields(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> Rendering:
        """Render, and find the characters that each field gave.

        The brackets must leave the rendering as it is; where they do not, fewer fields are bracketed. What is not
        proved is not in the result.
        """
        text = self.render(messages, tools)
        for marking in () if has_brackets(text) else Marking:
            bracketed, fields, numbers = bracket_fields(messages, marking)
            try:
                found = take_out(self.render(bracketed, tools))
            except TemplateError:
                continue
            if found.text == text:
                return Rendering(
                    text,
                    tuple(
                        (field, tuple(found.spans.get(field.number, ())) if field.number in numbers else None)
                        for field in fields
                    ),
                )
        return Rendering(text, tuple((field, None) for field in bracket_fields(messages)[1]))

    def render_marked(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> tuple[str, dict[int, set[Any]]] | None:
        """Render with the tools between brackets; see [`DirectRenderer.render_marked`]."""
        spoken = [self.dialect(tools)(message) for message in messages]
        return self._direct.render_marked(self.processing_class, self.source(tools), spoken, tools, self.variables)

    def _render(
        self, dialect: Dialect, messages: Sequence[Message], tools: Sequence[Tool] | None, **variables: Any
    ) -> str:
        spoken = [dialect(message) for message in messages]
        source, given = self.source(tools), {**self.variables, **variables}

        def public() -> str:
            return str(
                self.processing_class.apply_chat_template(
                    spoken, tools=list(tools) if tools else None, chat_template=source, tokenize=False, **given
                )
            )

        try:
            return self._direct.render(self.processing_class, source, spoken, tools, given, public)
        except DeepFabricTrainerError:
            raise
        except OverBudgetError as error:
            raise TemplateError(
                f"the chat template was stopped: {error}",
                fix="use a template that you know; one that takes so much may be made to do harm",
            ) from error
        except Exception as error:  # a stranger's template raises what it likes
            raise TemplateError(
                f"the chat template refuses the conversation: {_shown(error)}",
                fix="change the row so that the template takes it, or use another `chat_template_path`",
            ) from error


def _shown(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
