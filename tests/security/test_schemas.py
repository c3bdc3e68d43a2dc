"""Schemas of tools come with the data: they reach no network, and nothing in them ends in another error than ours."""

import json
import socket
from typing import Any

import pytest

from deepfabric_trainer import ConversationEncoder, score_tool_calls, validate_dataset
from deepfabric_trainer.errors import DeepFabricTrainerError
from tests.fixtures.tiny import call, tiny_tokenizer


def row_with(parameters: Any, arguments: Any) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call("f")]}]
    messages[1]["tool_calls"][0]["function"]["arguments"] = arguments  # type: ignore[index]
    return {"messages": messages, "tools": [tool]}


def look_at(parameters: Any, arguments: Any) -> None:
    """Do all that is done with a schema; our own errors may come out."""
    row = row_with(parameters, arguments)
    validate_dataset([row])
    calls = row["messages"][1]["tool_calls"]
    for work in (
        lambda: score_tool_calls(calls, calls, row["tools"]),
        lambda: ConversationEncoder(tiny_tokenizer()).encode(row),
    ):
        try:
            work()
        except DeepFabricTrainerError as error:
            _require_short(error)


def _require_short(error: Exception) -> None:
    assert len(str(error)) < 10_000


@pytest.mark.parametrize(
    "reference",
    [
        "http://127.0.0.1:9/s.json",
        "https://example.com/s.json#/a",
        "file:///etc/hostname",
        "ftp://127.0.0.1/x",
        "s.json",
    ],
)
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef", "$schema", "$id"])
def test_no_schema_reaches_out(keyword: str, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []

    def refuse(*args: Any, **options: Any) -> Any:
        reached.append(args)
        raise OSError("nothing is reached here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    look_at({keyword: reference, "type": "object", "properties": {"a": {keyword: reference}}}, {"a": 1})
    assert reached == []  # an error may have been taken for a bad schema


_DEEP: Any = 1
for _ in range(3000):
    _DEEP = {"properties": {"a": _DEEP}}


@pytest.mark.parametrize(
    "parameters",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        _DEEP,
        {"properties": {"a": {"multipleOf": 1e-320}}},
        {"properties": {"a": {"multipleOf": 0}}},
        {"properties": {"a": {"minimum": 10**5000}}},
        {"properties": {"a": {"pattern": "("}}},
        {"properties": {"a": {"enum": [float("nan")]}}},
        {"required": 7, "properties": []},
    ],
    ids=["self", "circle", "recursive", "deep", "tiny", "zero", "huge", "pattern", "nan", "wrong types"],
)
@pytest.mark.parametrize(
    "value",
    [1, 1e300, 10**5000, "text", [[]], None, float("inf")],
    ids=["one", "large", "huge", "text", "lists", "null", "infinite"],
)
def test_odd_schemas_and_values_end_in_our_errors(parameters: Any, value: Any) -> None:
    look_at(parameters, {"a": value})


@pytest.mark.parametrize("text", ['{"a": 1e400}', '{"a": %s}' % ("9" * 10_000), '{"a": ' + "[" * 100_000, "[" * 5000])
def test_arguments_as_odd_text_end_in_our_errors(text: str) -> None:
    look_at({"type": "object", "properties": {"a": {"type": "number"}}}, text)


@pytest.mark.parametrize(
    ("parameters", "arguments", "finding"),
    [
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 40 + "!"}, "does not match"),
        ({"properties": {"a": {"pattern": "^(a|aa)+$"}}}, {"a": "a" * 60 + "!"}, "timed out"),
        ({"patternProperties": {"^(a|a)*$": {}}}, {"a" * 40 + "!": 1}, "timed out"),
    ],
)
def test_patterns_are_bounded(parameters: Any, arguments: Any, finding: str) -> None:
    """A pattern that would backtrack without end is judged, or said to take too long."""
    findings = validate_dataset([row_with({"type": "object", **parameters}, arguments)]).findings
    assert [finding in each.found for each in findings] == [True]
    look_at({"type": "object", **parameters}, arguments)


def test_lines_that_are_no_rows_are_named(tmp_path: Any) -> None:
    from deepfabric_trainer.rows import read_rows

    for text in ("[" * 100_000, '{"a": ' * 100_000, '{"a": %s}' % ("9" * 10_000), "\x00", '{"a": 1}\n{"b"'):
        path = tmp_path / "rows.jsonl"
        path.write_text(text)
        with pytest.raises(DeepFabricTrainerError, match=r"rows\.jsonl"):
            read_rows(path)
    path.write_text(json.dumps({"a": "\ud800"}))
    assert read_rows(path)
