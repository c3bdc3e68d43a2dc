"""The sandbox that `transformers` renders chat templates in, with a count of what they cost.

A template is compiled to Python that counts its own steps: each turn of a loop, each call, each stretch of statements;
and what can make much of little is looked at before. What is rendered is the same, to the byte.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from threading import RLock, get_ident
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from deepfabric_trainer.template.budget import Budget, OverBudgetError
from deepfabric_trainer.template.counted_code import COMPARES, SHORT, CountingCode
from deepfabric_trainer.template.growth import CHECKED, GROWING_FILTERS, check_filter, check_formatted, check_method

LONGEST_SOURCE = 200_000
"""Characters of a template; those of real models have some thousands."""
_MOST_TEMPLATES = 64
_SMALL = frozenset(["abs", "attr", "count", "d", "default", "first", "float", "int", "last", "length"])
"""Filters that give back what they are given, or a number."""
_SMALL_TEXT = 256
"""Characters of a text that is not worth a look."""
HARMLESS = frozenset(
    [
        *("startswith", "endswith", "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition"),
        *("rpartition", "find", "rfind", "index", "rindex", "count", "lower", "upper", "title", "capitalize"),
        *("removeprefix", "removesuffix", "isdigit", "isspace", "isalpha", "isalnum"),
    ]
)
"""Methods of texts that make nothing longer than three times the text."""
_OF_NO_USE = ("lipsum",), ("urlize", "xmlattr")
"""Globals and filters that write HTML, at any length."""
_SWAP = RLock()


class BoundedTemplates:
    """Compiles templates so that they end in an error that names the bound, whatever they try.

    Raises:
        OverBudgetError: By `compile` and by whatever renders its templates.
    """

    def __init__(self) -> None:
        self._templates: OrderedDict[str, jinja2.Template] = OrderedDict()

    def compile(self, source: str) -> jinja2.Template:
        """Return a template as `transformers` compiles it, with a budget."""
        if source not in self._templates:
            if len(self._templates) >= _MOST_TEMPLATES:
                self._templates.popitem(last=False)
            self._templates[source] = bounded_environment().from_string(source)
        return self._templates[source]

    @contextmanager
    def in_public(self) -> Iterator[None]:
        """Let `apply_chat_template` use these templates inside the block, in this thread."""
        thread = get_ident()
        with _SWAP:
            given = chat_template_utils._compile_jinja_template

            def chosen(source: str) -> Any:
                return self.compile(source) if get_ident() == thread else given(source)

            chat_template_utils._compile_jinja_template = chosen
            try:
                yield
            finally:
                chat_template_utils._compile_jinja_template = given


def bounded_environment() -> "BoundedEnvironment":
    """Return an environment like that of `transformers`, with a budget of its own."""
    given = _sandbox().overlay()
    own = BoundedEnvironment.__new__(BoundedEnvironment)
    own.__dict__.update(given.__dict__)
    own.bound()
    return own


def parse(source: str) -> nodes.Template:
    """Parse a template as `transformers` does, without computing anything.

    Raises:
        OverBudgetError: If it is too long.
        jinja2.TemplateSyntaxError: If it is no template.
    """
    _require_short(source)
    return _sandbox().parse(source)


@lru_cache(maxsize=1)
def _sandbox() -> jinja2.Environment:
    """Return the environment that `transformers` gives a template; an empty one, as compiling may compute much."""
    environment: jinja2.Environment = chat_template_utils._cached_compile_jinja_template("").environment
    return environment


class _BoundedTemplate(jinja2.Template):
    """A template whose every rendering has a budget."""

    def new_context(self, vars: Any = None, shared: bool = False, locals: Any = None) -> Any:
        """Begin a rendering."""
        self.environment.budget.start(vars or {})  # type: ignore[attr-defined]
        return super().new_context(vars, shared, locals)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates count what they cost; made by `bounded_environment`."""

    code_generator_class = CountingCode
    template_class = _BoundedTemplate
    intercepted_binops = frozenset(CHECKED)
    budget: Budget

    def bound(self) -> None:
        """Begin to count."""
        self.budget = Budget()
        unused_globals, unused_filters = _OF_NO_USE
        namespace: Any = self.globals["namespace"]
        self.globals = {name: value for name, value in self.globals.items() if name not in unused_globals}
        self.globals["namespace"] = type("Namespace", (namespace,), {"__repr__": lambda self: "<Namespace>"})
        self.filters = {
            name: function if name in _SMALL else self._counted_filter(name, function)
            for name, function in self.filters.items()
            if name not in unused_filters
        }

    def from_string(self, source: Any, *args: Any, **options: Any) -> jinja2.Template:
        """Compile a template; what is computed meanwhile is counted, too."""
        _require_short(source)
        self.budget.start({})
        return super().from_string(source, *args, **options)

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a template, a macro or a block has written."""
        pieces = list(pieces)
        self.budget.made_text(sum(map(len, pieces)))
        return "".join(pieces)

    def text(self, value: Any) -> str:
        """Return a value as a template writes it."""
        if type(value) is str:
            return value
        text = value if isinstance(value, str) else str(value)
        self.budget.made_text(len(text))
        return text

    def joined(self, join: Callable[[Any], str], parts: tuple[Any, ...]) -> str:
        """Return `parts[0] ~ parts[1] ~ ...`."""
        self.budget.made_text(sum(map(self.budget.weight, parts)))
        return join(parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute what can make much of little."""
        CHECKED[operator](self.budget, left, right)
        return self.budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:
        """Call something, such as a macro or a method of a text."""
        owner: Any = __obj.__self__ if type(__obj) is BuiltinMethodType else getattr(__obj, "__self__", None)
        kind = type(owner)
        if (kind is str and __obj.__name__ in HARMLESS) or kind is dict:
            options.pop("_loop_vars", None)
            options.pop("_block_vars", None)
            found = __obj(*args, **options)
            return found if kind is dict or len(str(owner)) <= _SMALL_TEXT else __self.budget.took(found)
        if isinstance(owner, str | bytes | int):
            own = {name: value for name, value in options.items() if name not in ("_loop_vars", "_block_vars")}
            args = check_method(__self.budget, owner, __obj.__name__, args, own)
        elif __obj is __self.globals.get("strftime_now") and len(str(args)) + len(str(options)) > SHORT:
            raise OverBudgetError("it asks for a date in a format of too many characters")
        return __self.budget.took(super().call(__context, __obj, *args, **options))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return `str.format`, with a look at how wide it formats."""
        if not isinstance(value, BuiltinMethodType | MethodType):
            return None
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @wraps(formatted)
        def checked(*args: Any, **options: Any) -> str:
            check_formatted(self.budget, value.__self__, [*args, *options.values()])
            return formatted(*args, **options)

        return checked

    def call_filter(self, *args: Any, **options: Any) -> Any:
        """Call a filter for each of many values."""
        self.budget.spend(4)
        return super().call_filter(*args, **options)

    def call_test(self, *args: Any, **options: Any) -> Any:
        """Make a test of each of many values."""
        self.budget.spend(COMPARES)
        return super().call_test(*args, **options)

    def _counted_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        place = 1 if hasattr(function, "jinja_pass_arg") else 0
        is_growing = name in GROWING_FILTERS

        @wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            value: Any = args[place]
            is_plain = len(args) == place + 1 and not options
            if type(value) is str and len(value) <= _SMALL_TEXT and (is_plain or not is_growing):
                return function(*args, **options)
            if is_growing and not (is_plain and name == "tojson"):
                value = check_filter(self.budget, name, value, args[place + 1 :], options)
                args = (*args[:place], value, *args[place + 1 :])
            if isinstance(value, str | bytes | list | tuple | dict | range):
                sized: Any = value
                self.budget.spend(len(sized) >> 3)
            return self.budget.took(function(*args, **options))

        return counted


def _require_short(source: Any) -> None:
    if isinstance(source, str) and len(source) > LONGEST_SOURCE:
        raise OverBudgetError(f"it is {len(source):,} characters long, and may have {LONGEST_SOURCE:,}")
