"""Reading rows from files, with line numbers in the errors, and keeping them whole in a `Dataset`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import parquet

from deepfabric_trainer.arrow_files import is_damage
from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.hub import wanted
from deepfabric_trainer.json_columns import encode_json_columns

JSON_ENDINGS = {".jsonl", ".json", ".ndjson"}


def load_rows(name_or_path: str, *, split: str = "train") -> Dataset:
    """Load a dataset from a JSON Lines, JSON or Parquet file, a folder that `datasets` knows, or the Hub.

    Args:
        name_or_path (`str`): A path, or a name on the Hub.
        split (`str`, *optional*, defaults to `"train"`): The split of a Hub dataset or folder.
    Raises:
        ConfigError: If there is no such file, folder or dataset; a `HubError`, if the Hub was not reached.
        DataFormatError: If a file cannot be read; it names the line.
    """
    path = Path(name_or_path)
    if path.suffix.lower() in JSON_ENDINGS:
        return to_dataset(read_rows(path))
    if path.suffix.lower() == ".parquet":
        _require_file(path)
        try:
            parquet.read_schema(path)
        except (OSError, ValueError) as error:
            raise DataFormatError(f"not a Parquet file: {_first_line(error)}", where=str(path)) from error
        with _whole_cache(name_or_path):
            return Dataset.from_parquet(str(path))
    try:
        with wanted("the dataset", name_or_path, by="load_dataset"), _whole_cache(name_or_path):
            return load_dataset(name_or_path, split=split)
    except ConfigError:
        raise
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise ConfigError(
            f"cannot load the dataset {name_or_path!r}: {_first_line(error)}",
            expected="a .jsonl, .json or .parquet file, or the name of a dataset on the Hub",
        ) from error


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON Lines file, or of a JSON file that holds one list.

    Raises:
        ConfigError: If there is no such file.
        DataFormatError: If it is empty, not UTF-8, not JSON, or a row is not an object; it names the line.
    """
    path = Path(path)
    _require_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFormatError(
            f"the file is not UTF-8 (byte {error.start})", expected="UTF-8 text", where=str(path)
        ) from None
    if not text.strip():
        raise DataFormatError("the file is empty", expected="one JSON object a line", where=str(path))
    if text.lstrip().startswith("["):
        return _read_list(text, path)
    lines = text.split("\n")
    return [_read_line(line, number, path) for number, line in enumerate(lines, start=1) if line.strip()]


def to_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """Make a `Dataset` that gives back every row as it is.

    Arrow would give every tool the properties of all others; columns whose rows differ in shape are kept as JSON.
    """
    features = Dataset.from_list(rows, on_mixed_types="use_json").features
    return Dataset.from_list([encode_json_columns(row, features) for row in rows], features=features)


def _read_list(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataFormatError(
            f"not JSON: {error.msg} (column {error.colno})", where=f"{path}, line {error.lineno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataFormatError(f"not JSON: {error}", where=str(path)) from None
    if not rows:
        raise DataFormatError("the list of rows is empty", expected="at least one row", where=str(path))
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataFormatError(
                f"the row is of type {type(row).__name__}", expected="an object", where=f"{path}, row {number}"
            )
    return list(rows)


def _read_line(line: str, number: int, path: Path) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataFormatError(
            f"not JSON: {error.msg} (column {error.colno})", expected="one JSON object a line", where=where
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataFormatError(f"not JSON: {error}", where=where) from None
    if not isinstance(row, dict):
        raise DataFormatError(f"the line is of type {type(row).__name__}", expected="one JSON object", where=where)
    return row


@contextmanager
def _whole_cache(name: str) -> Iterator[None]:
    """Name the cache of `datasets` when what it holds is damaged."""
    try:
        yield
    except Exception as error:
        if not is_damage(error):
            raise
        raise ConfigError(
            f"what is cached of {name!r} is damaged: {_first_line(error)}",
            fix=f"delete its folder in {datasets.config.HF_DATASETS_CACHE}, and load it anew",
        ) from error


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder", expected="a file of rows")
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", expected="the path of a file of rows")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
