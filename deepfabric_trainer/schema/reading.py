"""Reading a field's value, with errors that name the field and the edit."""

import json
from collections.abc import Mapping
from typing import Any

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema.strict_json import NotJsonError, decode, plain
from deepfabric_trainer.schema.types import Repair


def read_json(text: str, path: str, expected: str) -> Any:
    """Decode the JSON text of a field.

    Args:
        text (`str`): The text.
        path (`str`): The field's place in the row.
        expected (`str`): What the text should hold, for the error.

    Raises:
        DataFormatError: If it is not JSON, or holds what JSON's standard does not have.
    """
    try:
        value = decode(text)
    except json.JSONDecodeError as error:
        raise DataFormatError(
            f"the text is not JSON ({error.msg} at character {error.pos}): {_shorten(text)}",
            expected=f"the JSON text of {expected}",
            fix="write the value with a JSON encoder",
            path=path,
        ) from None
    except ValueError as error:
        raise DataFormatError(
            str(error), expected=f"the JSON text of {expected}", fix="write a value that JSON can hold", path=path
        ) from None
    return read_plain(value, path, set())


def read_plain(value: Any, path: str, repairs: set[Repair]) -> Any:
    """Return a field's value with JSON's own types only; the value itself if it has no others.

    Args:
        value (`Any`): As it came.
        path (`str`): The field's place in the row.
        repairs (`set[Repair]`): What was mended is added to it.

    Raises:
        DataFormatError: If JSON text cannot hold it; it names the place inside the value.
    """
    try:
        read = plain(value)
    except NotJsonError as error:
        raise not_json(error, path) from None
    if read is not value:
        repairs.add(Repair.PLAIN_VALUES)
    return read


def not_json(error: NotJsonError, path: str) -> DataFormatError:
    """Return the error for a field whose value JSON text cannot hold."""
    return DataFormatError(
        error.reason,
        expected="text, finite numbers, true, false, null, and lists and objects of these",
        fix="write the value as one of these; rows with images go to the trainer with their `images` column",
        path=f"{path}{error.path}",
    )


def is_missing(value: Any) -> bool:
    """Tell whether a column has no value in a row: null, or the NaN that data frames write for it."""
    return value is None or (isinstance(value, float) and value != value)


def listed(names: Mapping[Any, Any]) -> str:
    """Return the names that were found, for an error."""
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
