"""Rendering without writing the same tools out again: the template that `apply_chat_template` runs, run directly.

`apply_chat_template` copies all tools for every rendering, and the template writes each of them out with `tojson`.
Here it gets the same values, with a `tojson` that remembers what a tool was written as. The first renderings of every
template and a sample of the others are compared with the public ones; a template that ever differs is rendered in
public from then on.
"""

import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from deepfabric_trainer.schema import Tool
from deepfabric_trainer.template.bounded import HARMLESS, BoundedTemplates, bounded_environment
from deepfabric_trainer.template.brackets import MAX_NUMBER, bracket
from deepfabric_trainer.template.budget import OverBudgetError
from deepfabric_trainer.template.catalogue import Catalogue, KnownTool, KnownTools
from deepfabric_trainer.template.compiling import DROPS_NULLS, plain_data, with_reasoning_fields

logger = logging.getLogger(__name__)

_FIRST, _EVERY = 4, 128
"""Renderings that are compared: so many at first, then each of so many."""
_MOST_TEMPLATES = 64
_OPTIONS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
"""What is not a variable of the template, but tells `apply_chat_template` what to do."""
_OF_DICTIONARIES = frozenset(dir(dict))
FIRST_TOOL = 0x7000
"""The number of the brackets around the first tool; what stands in messages has numbers below it."""


class DirectRenderer:
    """Renders through the templates that `transformers` compiles.

    Args:
        tools (`KnownTools`): The tools of the conversations.
    """

    def __init__(self, tools: KnownTools) -> None:
        self._tools = tools
        self._templates: OrderedDict[str, jinja2.Template | None] = OrderedDict()
        self._bounded = BoundedTemplates()
        self._refused: dict[str, str] = {}
        self._rendered: dict[str, int] = {}
        self._places: dict[int, int] | None = None
        self._styles: dict[int, set[Any]] = {}

    def render(
        self,
        processing_class: Any,
        source: str,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] | None,
        variables: Mapping[str, Any],
        public: Callable[[], str],
    ) -> str:
        """Render a conversation as the public function does.

        Args:
            processing_class (`PreTrainedTokenizerBase`): Whose variables the template gets; any other kind of object
                is asked for its own rendering.
            source (`str`): The template.
            messages (`Sequence[Mapping[str, Any]]`): In the template's dialect.
            tools (`Sequence[Tool]`, *optional*): Of the conversation.
            variables (`Mapping[str, Any]`): Of the template, and the options of `apply_chat_template`.
            public (`Callable[[], str]`): Renders the same in public.
        Raises:
            OverBudgetError: If the template costs too much, now or at an earlier rendering.
        """
        with self._remembering_refusals(source):
            template = self._template(processing_class, source, variables)
            if template is None:
                return self._in_public(public)
            try:
                text = self._run(template, processing_class, messages, tools, variables)
            except OverBudgetError:
                raise
            except Exception:
                # The error of the public function is the one to report.
                text = None
            count = self._rendered[source] = self._rendered.get(source, 0) + 1
            if text is not None and count > _FIRST and count % _EVERY:
                return text
            return self._compared(source, text, public)

    def _in_public(self, public: Callable[[], str]) -> str:
        with self._bounded.in_public():
            return public()

    def _compared(self, source: str, text: str | None, public: Callable[[], str]) -> str:
        """Return the public rendering; if ours differs, the template is not run directly any more."""
        expected = self._in_public(public)
        # A clock that the template reads may have gone on.
        if text != expected and self._in_public(public) == expected:
            self._templates[source] = None
            logger.warning(
                "a chat template renders differently when it is run directly, so it is run through "
                "`apply_chat_template` from now on, which takes longer"
            )
        return expected

    def render_marked(
        self,
        processing_class: Any,
        source: str,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] | None,
        variables: Mapping[str, Any],
    ) -> tuple[str, dict[int, set[Any]]] | None:
        """Render with every known tool that is written out as a whole between brackets.

        Returns:
            `tuple[str, dict[int, set[Any]]]`, *optional*: The text, and for each number of brackets the keys of
            `written` of the tool with this number less [`FIRST_TOOL`]. `None` where it cannot be done.
        """
        template = self._template(processing_class, source, variables)
        known = tools.known if isinstance(tools, Catalogue) else ()
        if template is None or len(known) > MAX_NUMBER - FIRST_TOOL or len(known) != len(tools or ()):
            return None
        self._places, self._styles = {id(one): FIRST_TOOL + place for place, one in enumerate(known)}, {}
        try:
            with self._remembering_refusals(source):
                return self._run(template, processing_class, messages, tools, variables), self._styles
        except Exception:
            return None
        finally:
            self._places = None

    @contextmanager
    def _remembering_refusals(self, source: str) -> Iterator[None]:
        """Refuse at once what has cost too much before, so that a thousand rows do not wait a thousand times."""
        if source in self._refused:
            raise OverBudgetError(self._refused[source])
        try:
            yield
        except OverBudgetError as error:
            if len(self._refused) >= _MOST_TEMPLATES:
                self._refused.clear()
            self._refused[source] = str(error)
            raise

    def _run(
        self,
        template: jinja2.Template,
        processing_class: Any,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] | None,
        variables: Mapping[str, Any],
    ) -> str:
        given = [
            {key: value for key, value in message.items() if value is not None or not DROPS_NULLS}
            for message in messages
        ]
        known = tools.tools if isinstance(tools, Catalogue) else plain_data(tools or None)
        return template.render(
            messages=with_reasoning_fields(plain_data(given)),
            tools=known,
            documents=None,
            **{
                "add_generation_prompt": False,
                **plain_data({**processing_class.special_tokens_map, **variables}),
            },
        )

    def _template(self, processing_class: Any, source: str, variables: Mapping[str, Any]) -> jinja2.Template | None:
        """Return the template with our `tojson`, `None` where only the public function will do."""
        if not _is_plain(processing_class) or not _OPTIONS.isdisjoint(variables.keys() - {"add_generation_prompt"}):
            return None
        if source not in self._templates:
            if len(self._templates) >= _MOST_TEMPLATES:
                self._rendered.pop(self._templates.popitem(last=False)[0], None)
            self._templates[source] = self._compile(source)
        return self._templates[source]

    def _compile(self, source: str) -> jinja2.Template | None:
        try:
            own: Any = bounded_environment()
            own.filters = {**own.filters, "tojson": self._remembering(own.filters["tojson"])}
            own.is_safe_attribute = _remembering_verdicts(own.is_safe_attribute)
            own.getattr = _reading_keys_first(own.getattr)
            own.extensions = {**own.extensions, _Generation.identifier: _Generation(own)}
            template: jinja2.Template = own.from_string(source)
        except OverBudgetError:
            raise
        except Exception:  # the public function says what is wrong
            return None
        return template

    def _remembering(self, tojson: Callable[..., str]) -> Callable[..., str]:
        def remembering(value: Any, *args: Any, **options: Any) -> str:
            found = self._tools.owner(value)
            if found is None:
                return tojson(value, *args, **options)
            known: KnownTool = found[0]
            style: Any = found[1]
            if args or options:
                style = (style, args, tuple(options.items()))
            try:
                text = known.written.get(style)
            except TypeError:  # an argument that is not hashable
                return tojson(value, *args, **options)
            if text is None:
                text = known.written[style] = tojson(value, *args, **options)
            number = None if self._places is None else self._places.get(id(known))
            if number is None:
                return text
            self._styles.setdefault(number, set()).add(style)
            return bracket(text, number)

        return remembering


class _Generation(Extension):
    """Writes the body of a `generation` block as it is: where it stands in the text is not asked for here."""

    tags = {"generation"}  # noqa: RUF012
    priority = 101
    """Of two extensions with one tag the later has it: not that of `transformers`, which calls the body as a macro."""

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        # What the body sets stays inside, as it does in a macro.
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _reading_keys_first(read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Read the keys of dictionaries without a look for an attribute of that name, which plain ones do not have.

    The methods of texts that templates call need no verdict of the sandbox either.
    """

    def reading(owner: Any, name: str) -> Any:
        kind = type(owner)
        if kind is dict:
            if name not in _OF_DICTIONARIES and name in owner:
                return owner[name]
        elif kind is str and name in HARMLESS:
            return getattr(owner, name)
        return read(owner, name)

    return reading


def _remembering_verdicts(is_safe: Callable[[Any, str, Any], bool]) -> Callable[[Any, str, Any], bool]:
    """Remember what the sandbox says of attributes: it judges them by their names and by what they are attributes of.

    It asks for each attribute that a template reads, a third of all the time that rendering takes.
    """
    verdicts: dict[tuple[type, str, type], bool] = {}

    def remembering(owner: Any, name: str, value: Any) -> bool:
        key = (type(owner), name, type(value))
        verdict = verdicts.get(key)
        if verdict is None:
            verdict = verdicts[key] = is_safe(owner, name, value)
        return verdict

    return remembering


def _is_plain(processing_class: Any) -> bool:
    """Tell whether chat templates are applied by the function that is known here."""
    kind = type(processing_class)
    return (
        isinstance(processing_class, PreTrainedTokenizerBase)
        and kind.apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
        and kind.get_chat_template is PreTrainedTokenizerBase.get_chat_template
        and "apply_chat_template" not in vars(processing_class)
    )
