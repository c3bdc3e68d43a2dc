import json
from pathlib import Path
from typing import Any

import pytest

from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.rows import load_rows, read_rows, to_dataset


def write(tmp_path: Path, text: str | bytes, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_json_lines_are_read_with_blank_lines_between(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path, '{"a": 1}\n\n{"a": "\u2028"}\n')) == [{"a": 1}, {"a": "\u2028"}]


def test_a_json_list_is_read(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path, '[{"a": 1}, {"a": 2}]', "rows.json")) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ('{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ('{"a": 1}\n[1]\n', "line 2: the line is of type list"),
        ('[{"a": 1},\n 3]', "row 1: the row is of type int"),
        ('[{"a": 1},\n {]', "line 2: not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataFormatError, match=words):
        read_rows(write(tmp_path, text))


def test_a_missing_file_and_a_folder_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        read_rows(tmp_path / "nowhere.jsonl")
    with pytest.raises(ConfigError, match="is a folder"):
        read_rows(tmp_path)
    with pytest.raises(ConfigError, match="cannot load the dataset"):
        load_rows(str(tmp_path / "nowhere"))


def test_rows_of_different_shape_come_back_as_they_were(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"tools": [{"function": {"parameters": {"properties": {"city": {"default": None}}}}}], "x": 1},
        {"tools": [{"function": {"parameters": {"properties": {"days": {"type": "integer"}}}}}], "x": None},
    ]
    assert list(to_dataset(rows)) == rows
    path = write(tmp_path, "\n".join(map(json.dumps, rows)))
    assert list(load_rows(str(path))) == rows


def test_parquet_files_are_loaded(tmp_path: Path) -> None:
    to_dataset([{"a": "x"}]).to_parquet(str(tmp_path / "rows.parquet"))
    assert list(load_rows(str(tmp_path / "rows.parquet"))) == [{"a": "x"}]


@pytest.mark.parametrize(
    "value", [0.7, 1e-12, 1 / 3, 2**60, -0.0, 5.0, "5", "null", '{"a": 1}', "0.7", ["7", {"x": "true"}]]
)
def test_values_come_back_as_they_are_from_columns_of_mixed_types(value: Any) -> None:
    rows = [
        {"messages": [{"role": "assistant", "content": "5", "arguments": {"a": value, "b": 1}}]},
        {"messages": [{"role": "assistant", "content": "x", "arguments": {"a": {"c": [1]}, "d": None}}]},
    ]
    read = to_dataset(rows)
    assert list(read) == rows
    assert repr(read[0]["messages"][0]["arguments"]["a"]) == repr(value)
