"""Readers of one call: JSON, Pythonic, and keys with values, for whatever a template puts around them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from deepfabric_trainer.toolcalls.argument_types import Schemas
from deepfabric_trainer.toolcalls.pieces import skip_space
from deepfabric_trainer.toolcalls.values import WORDS, Data, Malformed, evaluate, read_json, read_value, text_end

NAME = r"[^\s<>{}()\[\]\"',=]{1,256}"


def argument_name(signs: str) -> str:
    """Return a pattern for an argument's name: none of these signs, and no white space around it to be tried anew."""
    return rf"[^\s{signs}](?:[^\n{signs}]{{0,254}}?[^\s{signs}])??"


_PYTHON_KEY = argument_name(r"=,()'\"")
_BARE_KEY = argument_name(r":{}\[\],")
_ARGUMENT_KEYS = ("arguments", "parameters")


class Reader(Protocol):
    """Reads one call, from where the text that introduces it ends."""

    @property
    def beginning(self) -> str:
        """A pattern of how a call begins, for calls that nothing introduces."""

    def read(self, text: str, position: int, schemas: Schemas) -> tuple[dict[str, Any], int]:
        """Return the call's name and arguments, and the position behind them.

        Raises:
            Malformed: If there is no such call.
        """


@dataclass(frozen=True)
class JsonReader:
    """`{"name": "f", "arguments": {...}}`, with any keys, perhaps inside another object.

    Args:
        outer (`tuple[str, ...]`): The keys that lead to the object with name and arguments.
        name_key (`str`): The key of the name.
        arguments_key (`str`): The key of the arguments.
        is_python (`bool`): Whether the object is written as Python writes it.
        as_text (`bool`): Whether the arguments are JSON text inside the JSON.
    """

    outer: tuple[str, ...] = ()
    name_key: str = "name"
    arguments_key: str = "arguments"
    is_python: bool = False
    as_text: bool = False

    @property
    def beginning(self) -> str:
        """See [`Reader`]."""
        keys = {*self.outer, self.name_key, self.arguments_key, "name", "type", "function", *_ARGUMENT_KEYS}
        return rf"\{{\s*(?:[\"'](?:{'|'.join(map(re.escape, sorted(keys)))})[\"']|[\"']?\w*$)"

    def read(self, text: str, position: int, schemas: Schemas) -> tuple[dict[str, Any], int]:
        """See [`Reader`]."""
        value, end = (read_value if self.is_python else read_json)(text, position)
        for key in self.outer or ("function",):
            if isinstance(value, dict) and isinstance(value.get(key), dict):
                value = value[key]
        if not isinstance(value, dict):
            raise Malformed(f"the call is a {type(value).__name__}, not an object")
        name = value.get(self.name_key, value.get("name"))
        if not isinstance(name, str) or not name:
            raise Malformed("the call has no name")
        keys = (self.arguments_key, *_ARGUMENT_KEYS)
        if schemas and name not in schemas and not any(key in value for key in keys):
            raise Data(f"{name!r} is no tool, and there are no arguments")
        arguments = next((value[key] for key in keys if key in value), None)
        if self.as_text and isinstance(arguments, str):
            arguments, _ = read_json(arguments or "{}", 0)
        return {"name": name, "arguments": _object(arguments, f"the {self.arguments_key} of {name!r}")}, end


@dataclass(frozen=True)
class NamedJsonReader:
    """A name, a text between, and the arguments as a JSON object: `f[ARGS]{...}`.

    Args:
        between (`str`): A pattern of the text between.
    """

    between: str

    @property
    def head(self) -> str:
        """A pattern of what stands before the arguments."""
        return rf"({NAME}){self.between}"

    @property
    def beginning(self) -> str:
        """See [`Reader`]."""
        return rf"{NAME}{self.between}\{{"

    def read(self, text: str, position: int, schemas: Schemas) -> tuple[dict[str, Any], int]:
        """See [`Reader`]."""
        head = re.compile(rf"\s*{self.head}").match(text, position)
        if head is None:
            raise Malformed("the call has no name, or no arguments behind it")
        value, end = read_json(text, head.end())
        return {"name": head[1], "arguments": _object(value, f"the arguments of {head[1]!r}")}, end


@dataclass(frozen=True)
class PythonicReader:
    """`f(city='Rome', days=3)`; nothing is evaluated but literals.

    Args:
        escapes (`bool`): Whether quotes and backslashes inside texts are escaped.
    """

    escapes: bool = True
    _HEAD = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*\(")
    _KEY = re.compile(rf"\s*({_PYTHON_KEY})\s*=\s*")
    _END = re.compile(r"\s*([,)])")

    @property
    def beginning(self) -> str:
        """See [`Reader`]."""
        return r"[A-Za-z_][\w.\-]*\s*\("

    def read(self, text: str, position: int, schemas: Schemas) -> tuple[dict[str, Any], int]:
        """See [`Reader`]."""
        head = self._HEAD.match(text, position)
        if head is None:
            raise Malformed("the call has no name with a bracket behind it")
        arguments: dict[str, Any] = {}
        position = head.end()
        closing = skip_space(text, position)
        if text.startswith(")", closing):
            return {"name": head[1], "arguments": arguments}, closing + 1
        while True:
            key = self._KEY.match(text, position)
            if key is None:
                raise Malformed(f"an argument of {head[1]!r} has no name")
            arguments[key[1]], position = self._value(text, key.end())
            end = self._END.match(text, position)
            if end is None:
                raise Malformed(f"the argument {key[1]!r} of {head[1]!r} is not followed by a comma or a bracket")
            position = end.end()
            if end[1] == ")":
                return {"name": head[1], "arguments": arguments}, position

    def _value(self, text: str, position: int) -> tuple[Any, int]:
        quote = text[position : position + 1]
        if quote not in ("'", '"'):
            return read_value(text, position)
        literals = list(_texts(text, position)) if self.escapes else []
        if literals and self._END.match(text, literals[-1][1]):
            # Python takes texts beside each other for one.
            return evaluate(" ".join(_one_line(text[begin:end]) for begin, end in literals)), literals[-1][1]
        # Without escapes, or with a forgotten one, the text ends where an argument can end.
        last = re.compile(rf"{quote}(?=\s*(?:,\s*[^\n=,()'\"]{{1,256}}=|\)\s*(?:[,\]<]|$)))").search(
            text, position + 1
        )
        if last is None:
            raise Malformed("a text is not closed by its quote")
        return text[position + 1 : last.start()], last.end()


@dataclass(frozen=True)
class KeyedReader:
    """`f{city:<|"|>Rome<|"|>,days:3}`: keys without quotes, texts between marks of their own.

    Args:
        between (`str`): A pattern of what stands between the name and the first brace.
        opening (`str`): The mark before a text.
        closing (`str`): The mark behind it.
    """

    between: str
    opening: str
    closing: str
    _KEY = re.compile(rf"\s*({_BARE_KEY})\s*:")
    _ATOM = re.compile(r"\s*([^\s,\[\]{}<>]+)")

    @property
    def beginning(self) -> str:
        """See [`Reader`]."""
        return rf"{NAME}{self.between}\{{"

    def read(self, text: str, position: int, schemas: Schemas) -> tuple[dict[str, Any], int]:
        """See [`Reader`]."""
        head = re.compile(rf"\s*({NAME}){self.between}\s*(?=\{{)").match(text, position)
        if head is None:
            raise Malformed("the call has no name with a brace behind it")
        arguments, end = self._value(text, head.end(), 0)
        return {"name": head[1], "arguments": arguments}, end

    def _value(self, text: str, position: int, depth: int) -> tuple[Any, int]:
        if depth > 100:
            raise Malformed("the values are nested too deeply")
        position = skip_space(text, position)
        if text.startswith(self.opening, position):
            return self._text(text, position + len(self.opening))
        if text.startswith("{", position):
            return self._items(text, position + 1, "}", depth)
        if text.startswith("[", position):
            return self._items(text, position + 1, "]", depth)
        atom = self._ATOM.match(text, position)
        if atom is None:
            raise Malformed("a value is missing")
        return (WORDS[atom[1]], atom.end()) if atom[1] in WORDS else read_json(text, atom.start(1))

    def _items(self, text: str, position: int, closing: str, depth: int) -> tuple[Any, int]:
        keyed: dict[str, Any] = {}
        listed: list[Any] = []
        position = skip_space(text, position)
        while not text.startswith(closing, position):
            if closing == "}":
                key = self._KEY.match(text, position)
                if key is None:
                    raise Malformed("a value has no key before it")
                name = key[1].removeprefix(self.opening).removesuffix(self.closing)
                keyed[name], position = self._value(text, key.end(), depth + 1)
            else:
                item, position = self._value(text, position, depth + 1)
                listed.append(item)
            position = skip_space(text, position)
            if text.startswith(",", position):
                position = skip_space(text, position + 1)
            elif not text.startswith(closing, position):
                raise Malformed(f"a value is not followed by a comma or {closing}")
        return keyed if closing == "}" else listed, position + 1

    def _text(self, text: str, position: int) -> tuple[str, int]:
        end = re.compile(rf"{re.escape(self.closing)}(?=\s*[,}}\]])").search(text, position)
        if end is None:
            raise Malformed(f"a text is not closed by {self.closing}")
        return text[position : end.start()], end.end()


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{what} are not an object")
    return value


def _texts(text: str, position: int) -> Iterator[tuple[int, int]]:
    """Go over quoted texts with only white space between them: where each begins, and the position behind it."""
    while text[position : position + 1] in ("'", '"'):
        end = text_end(text, position)
        if end is None:
            return
        yield position, end
        position = skip_space(text, end)
        if position == end:
            return


def _one_line(literal: str) -> str:
    """Return a quoted text with its line breaks escaped, as Python wants them."""
    return literal.replace("\r", "\\r").replace("\n", "\\n").replace("\0", "\\0")
