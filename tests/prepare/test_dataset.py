"""What comes out does not depend on how rows are stored, nor on how many processes prepare them."""

import copy
import json
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from benchmarks.catalogue import as_text, make_rows, make_tools
from deepfabric_trainer.encode import ConversationEncoder, EncodedExample
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.prepare import encode_dataset, prepare_dataset
from deepfabric_trainer.rows import to_dataset
from deepfabric_trainer.validate import Rule
from tests.fixtures.templates import tokenizer_with
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer, tool_rows

ONE_CATALOGUE = make_rows(6, catalogue=make_tools(3), tools_per_row=3)
DRAWN = make_rows(6, catalogue=make_tools(9), tools_per_row=3)
BROKEN: dict[str, Any] = {"messages": [{"role": "user", "content": "no answer"}], "tools": TOOLS}
UNDECLARED = {
    "messages": [
        {"role": "user", "content": "Fly!"},
        {"role": "assistant", "content": "", "tool_calls": [call("fly", to="Rome")]},
    ],
    "tools": TOOLS,
}
MIXED = [*tool_rows()[:3], BROKEN, *tool_rows()[3:], UNDECLARED, *DRAWN]


def lists(examples: list[EncodedExample]) -> list[dict[str, list[int]]]:
    return [
        {"input_ids": example.input_ids, "labels": example.labels, "regions": example.regions} for example in examples
    ]


def padded(rows: list[dict[str, Any]]) -> Dataset:
    """Return rows as Arrow structs, which give every tool and call the keys of all others."""
    return Dataset.from_list(rows)


@pytest.mark.parametrize("store", [to_dataset, padded, lambda rows: to_dataset(as_text(rows))])
@pytest.mark.parametrize("rows", [ONE_CATALOGUE, DRAWN])
def test_all_ways_to_store_rows_give_the_examples_of_the_rows_alone(store: Any, rows: list[dict[str, Any]]) -> None:
    encoder, stored = ConversationEncoder(tiny_tokenizer()), store(rows)
    expected = lists([example for row in stored for example in encoder.encode(row)])
    assert prepare_dataset(stored, encoder).to_list() == expected
    streamed = list(prepare_dataset(stored.to_iterable_dataset(), encoder))
    assert [{name: row[name] for name in expected[0]} for row in streamed] == expected


@pytest.mark.parametrize("format_type", ["numpy", "pandas"])
def test_rows_in_a_format_of_the_users_own_give_the_same(format_type: str) -> None:
    rows = to_dataset(as_text(DRAWN))
    encoder = ConversationEncoder(tiny_tokenizer())
    prepared = prepare_dataset(rows.with_format(format_type), encoder)
    assert prepared.format["type"] == format_type
    assert prepared.with_format(None).to_list() == prepare_dataset(rows, encoder).to_list()


def test_rows_that_a_transform_makes_are_encoded_as_it_makes_them() -> None:
    rows = to_dataset(tool_rows()[:4])
    plain = prepare_dataset(rows, ConversationEncoder(tiny_tokenizer()))

    def without_tools(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        talk = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]]
        return {"messages": talk * len(batch["messages"]), "tools": [None] * len(batch["messages"])}

    changed = prepare_dataset(rows.with_transform(without_tools), ConversationEncoder(tiny_tokenizer()))
    assert len(changed.with_format(None)[0]["input_ids"]) < len(plain[0]["input_ids"])


def test_each_example_names_its_row() -> None:
    turns = [
        message
        for text in ("one", "two")
        for message in (
            {"role": "user", "content": text},
            {"role": "assistant", "content": text, "reasoning_content": f"because {text}"},
        )
    ]
    short = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": messages} for messages in (short, turns, short[:1], turns, short)]
    prepared, report = encode_dataset(to_dataset(rows), ConversationEncoder(tokenizer_with("qwen3")))
    assert report.rows_of_examples.tolist() == [0, 1, 1, 3, 3, 4]
    assert len(prepared) == report.examples == 6
    assert [rejected.row for rejected in report.rejected] == [2]


def test_findings_of_many_rows_with_one_account_are_told_apart() -> None:
    rows = to_dataset([tool_rows()[0], UNDECLARED, BROKEN, UNDECLARED, *tool_rows()[:2], BROKEN])
    _, report = encode_dataset(rows, ConversationEncoder(tiny_tokenizer()))
    assert [(entry.row, entry.rules) for entry in report.rejected] == [
        (1, {Rule.UNDECLARED_TOOL}),
        (2, {Rule.NO_ASSISTANT}),
        (3, {Rule.UNDECLARED_TOOL}),
        (6, {Rule.NO_ASSISTANT}),
    ]
    assert [{finding.row for finding in entry.findings} for entry in report.rejected] == [{1}, {2}, {3}, {6}]
    assert report.rows_of_examples.tolist() == [0, 4, 5]
    tolerant = encode_dataset(rows, ConversationEncoder(tiny_tokenizer()), check=False)[1]
    assert tolerant.findings[Rule.UNDECLARED_TOOL] == 2


def test_tools_that_were_changed_between_two_datasets_are_read_anew() -> None:
    encoder = ConversationEncoder(tiny_tokenizer())
    rows = tool_rows()[:2]
    before = prepare_dataset(to_dataset(rows), encoder).to_list()
    for row in rows:
        row["tools"] = copy.deepcopy(TOOLS)
        row["tools"][0]["function"]["parameters"]["properties"]["city"] = {"type": "integer"}
    with pytest.raises(DataFormatError, match="2 of 2 rows"):
        prepare_dataset(to_dataset(rows), encoder)
    assert prepare_dataset(to_dataset(tool_rows()[:2]), encoder).to_list() == before


def test_rows_are_not_changed() -> None:
    rows = to_dataset(MIXED)
    before = json.dumps(list(rows))
    encode_dataset(rows, ConversationEncoder(tiny_tokenizer()))
    assert json.dumps(list(rows)) == before


def test_prepared_rows_are_on_disk_and_not_in_memory() -> None:
    encoder = ConversationEncoder(tiny_tokenizer())
    rows = to_dataset(as_text(make_rows(60, catalogue=make_tools(20), tools_per_row=20)))
    encode_dataset(rows.select(range(3)), encoder)
    before = pa.total_allocated_bytes()
    prepared, report = encode_dataset(rows, encoder)
    held = pa.total_allocated_bytes() - before
    size = sum(len(row["input_ids"]) for row in prepared) * 9
    assert size > 2 * 2**20
    assert held < size / 10
    assert report.examples == 60


@pytest.mark.slow
def test_two_processes_give_the_same_in_the_same_order() -> None:
    rows = to_dataset(MIXED * 3)
    alone, report = encode_dataset(rows, ConversationEncoder(tiny_tokenizer()))
    # Other rows for the cache, so that they are prepared again.
    other = to_dataset([{**row, "id": number} for number, row in enumerate(MIXED * 3)])
    together, other_report = encode_dataset(other, ConversationEncoder(tiny_tokenizer()), num_proc=2)
    assert together.to_list() == alone.to_list()
    assert other_report == report
    assert other_report.rows_of_examples.tolist() == report.rows_of_examples.tolist()
