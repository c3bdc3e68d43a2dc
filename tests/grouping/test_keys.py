"""Codes of raw rows, in every form in which rows are stored."""

import copy
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets

from deepfabric_trainer.grouping import row_codes
from deepfabric_trainer.rows import to_dataset


def tool(name: str, **properties: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}


WEATHER, MAIL, MAPS = (
    tool("weather", city="string"),
    tool("mail", to="string", text="string"),
    tool("maps", x="number"),
)


def row(question: str, system: str | None, *tools: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, "tools": list(tools)}


ROWS = [
    row("one", None, WEATHER, MAIL),
    row("two", None, WEATHER, MAIL),
    row("three", "Be brief.", WEATHER, MAIL),
    row("four", "Be brief.", WEATHER, MAIL),
    row("five", "Be kind.", WEATHER, MAIL),
    row("six", None, MAIL, WEATHER),
    row("seven", None, WEATHER, MAPS),
    row("eight", None),
    row("nine", None),
    row("ten", None, WEATHER, MAIL),
]
CLASSES = [0, 0, 1, 1, 2, 3, 4, 5, 5, 0]


def as_json_text(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list([{**row, "tools": json.dumps(row["tools"])} for row in rows])


def all_as_json_text(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list([{key: json.dumps(value) for key, value in row.items()} for row in rows])


def tools_as_texts(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list([{**row, "tools": [json.dumps(tool) for tool in row["tools"]]} for row in rows])


def as_share_gpt(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "conversations": [{"from": each["role"], "value": each["content"]} for each in row["messages"]],
                "tools": row["tools"],
            }
            for row in rows
        ]
    )


def as_completions(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list(
        [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:], "tools": row["tools"]} for row in rows]
    )


def as_json_columns(rows: list[dict[str, Any]]) -> Dataset:
    """Return rows whose messages and schemas differ so much that they are kept as JSON."""
    rows = copy.deepcopy(rows)
    rows[0]["messages"][-1]["content"] = [{"type": "text", "text": "Yes."}]
    rows[0]["tools"][0]["function"]["parameters"]["properties"]["city"]["default"] = 5
    rows[6]["tools"][0]["function"]["parameters"]["properties"]["city"]["default"] = "Rome"
    for number in (1, 2, 3, 4, 9):
        rows[number]["tools"][0] = rows[0]["tools"][0]
    return to_dataset(rows)


FORMS = [
    Dataset.from_list,
    to_dataset,
    as_json_text,
    all_as_json_text,
    tools_as_texts,
    as_share_gpt,
    as_completions,
    as_json_columns,
]


def classes(codes: Any) -> list[int]:
    """Return codes with numbers in the order in which they first come."""
    seen: dict[int, int] = {}
    return [seen.setdefault(code, len(seen)) for code in np.asarray(codes).tolist()]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tools_first", [False, True])
def test_rows_have_one_code_exactly_when_they_begin_alike(form: Any, tools_first: bool) -> None:
    codes = row_codes(form(ROWS), tools_first=tools_first)
    assert codes.dtype == np.int64
    assert classes(codes) == CLASSES
    assert set(codes.tolist()) == set(range(6))


@pytest.mark.parametrize("form", FORMS)
def test_mapped_sliced_and_joined_rows_keep_their_codes(form: Any) -> None:
    dataset = form(ROWS)
    order = [9, 3, 3, 7, 0, 5, 8]
    assert classes(row_codes(dataset.select(order), tools_first=True)) == classes([CLASSES[row] for row in order])
    assert classes(row_codes(dataset.select(range(2, 8)), tools_first=True)) == classes(CLASSES[2:8])
    twice = concatenate_datasets([dataset.select(range(1, 6)), dataset.shuffle(seed=0).flatten_indices()])
    expected = CLASSES[1:6] + [CLASSES[row] for row in dataset.add_column("n", range(10)).shuffle(seed=0)["n"]]
    assert classes(row_codes(twice, tools_first=False)) == classes(expected)


def test_rows_are_read_some_thousands_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.from_list(ROWS)
    whole = row_codes(dataset, tools_first=True).tolist()
    monkeypatch.setattr("deepfabric_trainer.grouping.keys._ROWS_AT_ONCE", 3)
    assert row_codes(dataset, tools_first=True).tolist() == whole
    order = np.random.default_rng(0).permutation(10)
    assert row_codes(dataset.select(order), tools_first=True).tolist() == [whole[row] for row in order]


def test_neighbours_share_what_the_template_writes_first() -> None:
    catalogues = [(WEATHER,), (MAIL,), (MAPS,), (WEATHER, MAIL), (MAIL, MAPS), (MAPS, WEATHER), (WEATHER, MAPS)]
    rows = [row("q", system, *tools) for tools in catalogues for system in ("Be brief.", "Be kind.", None)]
    dataset = Dataset.from_list(rows)
    by_tools = np.argsort(row_codes(dataset, tools_first=True))
    first_tools = [rows[number]["tools"][0]["function"]["name"] for number in by_tools]
    assert _changes(first_tools) == 2
    by_system = np.argsort(row_codes(dataset, tools_first=False))
    assert _changes([rows[number]["messages"][0]["content"] for number in by_system]) == 2


def test_only_a_first_message_of_the_system_or_developer_counts() -> None:
    messages = [
        [{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}],
        [{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be kind."}],
        [{"role": "developer", "content": "Be brief."}],
        [{"role": "System", "content": "Be brief."}],
        [{"role": "system", "content": "Be kind."}],
        [],
        None,
    ]
    for value in ([{"messages": each} for each in messages], [{"messages": json.dumps(each)} for each in messages]):
        assert classes(row_codes(Dataset.from_list(value), tools_first=True)) == [0, 0, 1, 1, 2, 0, 0]


@pytest.mark.parametrize("empty", [None, []])
def test_rows_without_tools_have_one_code(empty: Any) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}], "tools": tools} for tools in (empty, ["{}"], empty)]
    assert classes(row_codes(Dataset.from_list(rows), tools_first=True)) == [0, 1, 0]


def test_columns_may_be_missing_null_or_under_other_names() -> None:
    assert row_codes(Dataset.from_list([{"text": "a"}, {"text": "b"}]), tools_first=True).tolist() == [0, 0]
    assert row_codes(Dataset.from_list([]), tools_first=True).tolist() == []
    rows = [{"messages": None, "functions": [{"name": name}]} for name in "aba"]
    assert classes(row_codes(Dataset.from_list(rows), tools_first=True)) == [0, 1, 0]


def test_contents_of_parts_are_told_apart() -> None:
    rows = [{"messages": [{"role": "system", "content": [{"type": "text", "text": text}]}]} for text in "aba"]
    assert classes(row_codes(Dataset.from_list(rows), tools_first=True)) == [0, 1, 0]


def test_text_that_is_no_json_is_left_to_whoever_reads_the_row() -> None:
    rows = [{"messages": text} for text in ('[{"role": "system"', '"system"', '[ {"role": "system", "content": 1}]')]
    assert classes(row_codes(Dataset.from_list(rows), tools_first=True)) == [0, 0, 1]


def test_several_chunks_are_read_as_one() -> None:
    table = Dataset.from_list(ROWS).data.table
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3, 1), table.slice(4)])
    dataset = Dataset(chunked)
    assert dataset.data.table.column("tools").num_chunks == 3
    assert classes(row_codes(dataset, tools_first=True)) == CLASSES


def _changes(values: list[Any]) -> int:
    return sum(left != right for left, right in pairwise(values))
