"""The sandbox that `transformers` renders chat templates in, with a count of what they cost.

A template is compiled to Python that counts its own steps: each turn of a loop, each call, each stretch of statements;
and what can make much of little is looked at before. What is rendered is the same, to the byte.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from itertools import islice
from threading import RLock, get_ident
from types import BuiltinMethodType, MethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from transformers.utils import chat_template_utils

from deepfabric_trainer.template.budget import Budget, OverBudgetError
from deepfabric_trainer.template.counted_code import COMPARES, SHORT, CountingCode
from deepfabric_trainer.template.growth import CHECKED, GROWING_FILTERS, check_filter, check_formatted, check_method

LONGEST_SOURCE = 100_000
"""Characters of a template; those of real models have some thousands."""
_MOST_TEMPLATES = 64
_SMALL = frozenset(["abs", "attr", "count", "d", "default", "first", "last", "length"])
"""Filters that give back what they are given, or how much it is."""
_READS = frozenset(["get", "items", "keys", "values"])
"""Methods of objects that make nothing."""
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
_ACTS = 32
"""Steps of a call or a filter, which may go through all that it is given."""
_PIECES = 1024
"""Pieces of text that are counted together."""
_OF_NO_USE = ("lipsum",), ("urlize", "xmlattr")
"""Globals and filters that write HTML, at any length."""
_SWAP = RLock()


def _renew_lock() -> None:
    """Begin a forked process with a lock of its own: nobody there would release one that another thread held."""
    global _SWAP
    _SWAP = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


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
        self.globals = {name: value for name, value in self.globals.items() if name not in unused_globals}
        self.globals["namespace"] = self._namespace
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
        written: list[str] = []
        rest, length = iter(pieces), 0
        while some := list(islice(rest, _PIECES)):
            length += sum(map(len, some))
            self.budget.made_text(length)
            written += some
        return "".join(written)

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
        if (kind is dict and __obj.__name__ in _READS) or (
            kind is str
            and __obj.__name__ in HARMLESS
            and len(owner) <= _SMALL_TEXT
            and (not args or type(args[0]) is not str or len(args[0]) <= _SMALL_TEXT)
        ):
            options.pop("_loop_vars", None)
            options.pop("_block_vars", None)
            return __obj(*args, **options)
        __self.budget.spend(_ACTS)
        if isinstance(owner, str | bytes | int):
            own = {name: value for name, value in options.items() if name not in ("_loop_vars", "_block_vars")}
            args = check_method(__self.budget, owner, __obj.__name__, args, own)
        elif __obj is __self.globals.get("strftime_now") and len(str(args)) + len(str(options)) > SHORT:
            raise OverBudgetError("it asks for a date in a format of too many characters")
        return __self.budget.took(super().call(__context, __obj, *args, **options))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Read an attribute for a filter, which does so for each of many values and keeps what it reads."""
        self.budget.spend(COMPARES)
        return self.budget.took(self.item(obj, argument))

    def item(self, obj: Any, argument: Any) -> Any:
        """Read what stands in `[]`."""
        return super().getitem(obj, argument)

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
        is_joining = name == "join"

        @wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            value: Any = args[place]
            is_plain = len(args) == place + 1 and not options
            if type(value) is str and len(value) <= _SMALL_TEXT and (is_plain or not is_growing):
                return function(*args, **options)
            self.budget.spend(_ACTS)
            if is_joining:
                args, options = self._with_texts(args, options)
                value = args[place]
            if is_growing and not (is_plain and name == "tojson"):
                value = check_filter(self.budget, name, value, args[place + 1 :], options)
                args = (*args[:place], value, *args[place + 1 :])
            if isinstance(value, str | bytes | list | tuple | dict | range):
                sized: Any = value
                self.budget.spend(len(sized) >> 3)
            return self.budget.took(function(*args, **options))

        return counted

    def _with_texts(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of `join` with the texts that it would make of the values, counted one by one."""
        context, value, *rest = args
        attribute = options.get("attribute", rest[1] if len(rest) > 1 else None)
        if not isinstance(value, str):
            read = make_attrgetter(self, attribute) if attribute is not None else (lambda item: item)
            items = map(read, value)
            value = [item if hasattr(item, "__html__") else self.text(item) for item in items]
            return (context, value, *rest[:1]), {name: each for name, each in options.items() if name != "attribute"}
        return args, dict(options)

    def _namespace(self, *args: Any, **options: Any) -> "_Namespace":
        """Make a namespace of a copy of what it begins with."""
        begins = dict(*args, **options)
        self.budget.spend(_ACTS + 8 * len(begins))
        return _Namespace(begins)


class _Namespace(Namespace):
    """A namespace that does not write out all that it holds, which may be itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _require_short(source: Any) -> None:
    if isinstance(source, str) and len(source) > LONGEST_SOURCE:
        raise OverBudgetError(f"it is {len(source):,} characters long, and may have {LONGEST_SOURCE:,}")
