"""Calls as name and arguments, and when two of them are equal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema import strict_json

Call = tuple[str, Any]
"""A name and arguments."""


def functions_of(calls: Sequence[Mapping[str, Any]] | None, path: str) -> list[Call]:
    """Return the names and arguments of calls.

    Raises:
        DataFormatError: If a call has no name.
    """
    return [_function(call, f"{path}[{index}]") for index, call in enumerate(calls or [])]


def _function(call: Mapping[str, Any], path: str) -> Call:
    """Return a call's name and arguments; a JSON string becomes its value, and stays when it is not JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataFormatError(
            f"a tool call without a name: {call!r}",
            expected='`{"function": {"name": ..., "arguments": ...}}` or `{"name": ..., "arguments": ...}`',
            path=path,
        )
    arguments = function.get("arguments", {})
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        try:
            arguments = strict_json.decode(arguments)
        except ValueError:
            return function["name"], arguments
    return function["name"], arguments


def _canonical(value: Any) -> Any:
    """Return a hashable value that is equal exactly when the JSON values are equal with their types."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return type(value).__name__, value
    if isinstance(value, Mapping):
        return "object", frozenset((key, _canonical(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return "array", tuple(map(_canonical, value))
    return "number", value


def canonical_calls(calls: Sequence[Call]) -> Counter[Any]:
    """Count calls by a hashable value that is equal exactly when names, and arguments as typed JSON, are."""
    return Counter((name, _canonical(arguments)) for name, arguments in calls)
