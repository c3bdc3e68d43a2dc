import copy
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from benchmarks.catalogue import as_text, make_rows, make_tools
from deepfabric_trainer.prepare.reading import RowReader
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.tiny import TOOLS, tool_rows

ROWS = make_rows(12, catalogue=make_tools(12), tools_per_row=4)


def read(dataset: Dataset, batch_size: int = 5) -> list[dict[str, Any]]:
    reader = RowReader(dataset.features)
    return [row for table in dataset.with_format("arrow").iter(batch_size) for row in reader.rows(table)]


@pytest.mark.parametrize(
    "dataset",
    [
        to_dataset(ROWS),
        to_dataset(as_text(ROWS)),
        Dataset.from_list(ROWS),
        Dataset.from_list(ROWS).select([7, 3, 3, 0]),
        to_dataset([*tool_rows(), {**tool_rows()[0], "tools": None}, {**tool_rows()[1], "tools": []}]),
        to_dataset([{**row, "tools": [TOOLS[0], {"type": "function", "function": {"name": "a"}}]} for row in ROWS]),
        Dataset.from_list([{"conversations": [{"from": "human", "value": "Hi"}], "functions": TOOLS}] * 3),
        Dataset.from_list([{"prompt": [{"role": "user", "content": "Hi"}], "completion": None, "tools": [None]}]),
        Dataset.from_list([{"messages": ROWS[0]["messages"], "tools": TOOLS[0], "reasoning": {"content": ["a"]}}]),
        Dataset.from_list([{"messages": ROWS[0]["messages"], "tools": [1, 2]}]),
    ],
)
def test_rows_are_what_datasets_gives(dataset: Dataset) -> None:
    assert read(dataset) == list(dataset)


def test_other_columns_are_named_and_not_read() -> None:
    rows = [{**row, "id": number} for number, row in enumerate(tool_rows())]
    first = read(to_dataset(rows))[0]
    assert list(first) == ["messages", "tools", "id"]
    assert first["id"] is None


@pytest.mark.parametrize("make", [to_dataset, Dataset.from_list])
def test_equal_tools_are_one_object_in_all_batches(make: Any) -> None:
    rows = read(make(ROWS))
    tools = {id(tool): tool["function"]["name"] for row in rows for tool in row["tools"]}
    assert sorted(tools.values()) == sorted(tool["function"]["name"] for tool in make_tools(12))
    same = make_rows(6, catalogue=make_tools(4), tools_per_row=4)
    assert len({id(row["tools"]) for row in read(make(same))}) == 1


def test_columns_of_python_values_share_their_tools_too() -> None:
    columns = {name: [copy.deepcopy(row[name]) for row in ROWS] for name in ("messages", "tools")}
    rows = list(RowReader().rows(columns))
    assert rows == ROWS
    assert len({id(tool) for row in rows for tool in row["tools"]}) == 12


def test_types_count_where_values_are_compared() -> None:
    tools: list[Any] = [[{"default": value}] for value in (1, 1.0, True, "1")]
    rows = list(RowReader().rows({"tools": tools}))
    assert [repr(row["tools"]) for row in rows] == [repr(tool) for tool in tools]


def test_who_made_the_values_may_change_them_later() -> None:
    reader, tool = RowReader(), copy.deepcopy(TOOLS[0])
    for number in range(4):
        tool["function"]["description"] = f"Version {number}."
        (row,) = reader.rows({"tools": [[tool]]})
        assert row["tools"] == [tool]
        assert row["tools"][0] is not tool


def test_arrays_are_not_compared_by_their_bytes() -> None:
    values: list[Any] = [
        np.int64(1),
        np.float64(5e-324),
        np.array([1, 0], np.int32),
        np.array([1], np.int64),
        np.str_("a"),
    ]
    rows = list(RowReader().rows({"tools": [[{"default": value}] for value in values]}))
    assert [repr(row["tools"]) for row in rows] == [repr([{"default": value}]) for value in values]


def test_a_dataset_of_no_columns_that_we_know_gives_empty_rows() -> None:
    assert read(Dataset.from_dict({"text": ["a", "b"]})) == [{"text": None}, {"text": None}]
