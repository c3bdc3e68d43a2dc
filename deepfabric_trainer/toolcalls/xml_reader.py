"""The reader of calls that are written between tags, as in XML."""

import re
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.toolcalls.argument_types import Schemas, typed_argument
from deepfabric_trainer.toolcalls.pieces import lenient, skip_space
from deepfabric_trainer.toolcalls.readers import NAME, argument_name
from deepfabric_trainer.toolcalls.values import Malformed, read_json

_XML_KEY = argument_name("<>")


@dataclass(frozen=True)
class XmlReader:
    """A name, then each argument between tags: `<parameter=city>Rome</parameter>`.

    Args:
        after_name (`str`): What stands behind the name.
        opening (`str`): What stands before an argument's name.
        between (`str`): What stands between it and a text.
        between_other (`str`): The same before values of other types.
        closing (`str`): What stands behind a value.
        following (`str`): A pattern of what follows the last argument.
        quoted (`bool`): Whether texts are written as JSON, in quotes.
    """

    after_name: str
    opening: str
    between: str
    between_other: str
    closing: str
    following: str
    quoted: bool = False

    @property
    def beginning(self) -> str:
        """See [`Reader`]."""
        return rf"{NAME}{lenient(self.after_name)}\s*{lenient(self.opening)}"

    def read(self, text: str, position: int, schemas: Schemas) -> tuple[dict[str, Any], int]:
        """See [`Reader`]."""
        head = re.compile(rf"\s*({NAME}){lenient(self.after_name)}").match(text, position)
        if head is None:
            raise Malformed("the call has no name")
        name, position = head[1], head.end()
        opening = lenient(self.opening.strip())
        betweens = "|".join(f"({_against_value(one, at_end=True)})" for one in (self.between, self.between_other))
        argument = re.compile(rf"\s*{opening}\s*({_XML_KEY})(?:{betweens})")
        shut = _against_value(self.closing, at_end=False)
        last = re.compile(rf"{shut}(?=\s*(?:{opening}|{self.following}))")
        arguments: dict[str, Any] = {}
        while (key := argument.match(text, position)) is not None:
            end = last.search(text, key.end()) or re.compile(shut).search(text, key.end())
            if end is None:
                raise Malformed(f"the argument {key[1]!r} of {name!r} is not closed by {self.closing.strip()}")
            written, position = self._value(text, key.end(), end.start()), end.end()
            is_told = self.between != self.between_other
            if self.quoted or (is_told and key[2] is None):
                arguments[key[1]] = _json_or_text(written)
            else:
                arguments[key[1]] = written if is_told else typed_argument(written, name, key[1], schemas)
        return {"name": name, "arguments": arguments}, position

    def _value(self, text: str, begin: int, end: int) -> str:
        """Return a value without the line breaks around it, where they are those of Windows: one gives up its LF."""
        value = text[begin:end]
        on_lines = self.between.endswith("\n") and text[begin - 1] != "\n"
        return value[2:-1] if on_lines and value.startswith("\r\n") and value.endswith("\r") else value


def _against_value(text: str, *, at_end: bool) -> str:
    """Return a pattern for what stands next to a value, whose own white space counts: one line break is given up."""
    stripped = text.rstrip() if at_end else text.lstrip()
    pattern = lenient(stripped.strip())
    if stripped == text:
        return pattern
    return rf"{pattern}\n?" if at_end else rf"\n?{pattern}"


def _json_or_text(text: str) -> Any:
    try:
        value, end = read_json(text, 0)
    except Malformed:
        return text
    return value if skip_space(text, end) == len(text) else text
