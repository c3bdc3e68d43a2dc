import copy
import json
from typing import Any

import pytest
from datasets import Dataset

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.prepare.reading import RowReader
from deepfabric_trainer.schema import Repair
from deepfabric_trainer.schema.shared_tools import SharedTools
from deepfabric_trainer.schema.tools import normalize_tools
from tests.schema.rows import OTHER_TOOL, TOOL, tool_with


def with_default(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return tool_with({"type": "object", "properties": {"x": schema}}, name)


NULLS = with_default("a", {"type": "string", "default": None})
MEANT = with_default("b", {"type": ["string", "null"], "default": None})
PADDED = with_default("c", {"type": "string", "description": None})
BARE = {"name": "bare", "parameters": {"type": "object"}}
LISTS: list[Any] = [
    [TOOL, OTHER_TOOL],
    [OTHER_TOOL],
    [NULLS],
    [NULLS, TOOL],
    [NULLS, with_default("c", {"type": "string", "default": None, "description": None})],
    [NULLS, PADDED],
    [PADDED, NULLS],
    [MEANT, PADDED],
    [NULLS],
    [BARE, TOOL],
    [json.dumps(TOOL), OTHER_TOOL],
    [],
    None,
    float("nan"),
    TOOL,
    {"a": BARE},
    json.dumps([TOOL]),
    "",
]


def test_they_are_normalized_as_alone_whatever_stood_beside_them_before() -> None:
    shared = SharedTools()
    for _ in range(2):
        for value in LISTS:
            expected, repairs = set[Repair](), set[Repair]()
            assert shared.read(value, repairs) == normalize_tools(copy.deepcopy(value), expected)
            assert repairs == expected


def test_rows_of_arrow_structs_are_normalized_as_alone() -> None:
    lists = [value for value in LISTS if isinstance(value, list) and all(isinstance(tool, dict) for tool in value)]
    # Arrow cannot hold `MEANT`, whose `type` is a list, beside the others.
    dataset = Dataset.from_list([{"tools": value} for value in lists if BARE not in value and MEANT not in value])
    reader, shared = RowReader(dataset.features), SharedTools()
    for _ in range(2):
        for table in dataset.with_format("arrow").iter(3):
            for row in reader.rows(table):
                expected, repairs = set[Repair](), set[Repair]()
                assert shared.read(row["tools"], repairs) == normalize_tools(copy.deepcopy(row["tools"]), expected)
                assert repairs == expected


def test_equal_lists_are_one_object_and_so_are_tools() -> None:
    shared = SharedTools()
    both, one = [NULLS, TOOL], [TOOL]
    first = shared.read(both, set())
    assert first is not None
    assert shared.read(both, set()) is first
    assert (shared.read(one, set()) or [])[0] is first[1]
    text = json.dumps([TOOL])
    assert shared.read(text, set()) is shared.read(f"{text} "[:-1], set())


def test_errors_name_the_place_in_this_row() -> None:
    shared, broken = SharedTools(), {"type": "function", "function": {"name": ""}}
    for value, path in (([broken], "tools[0].function.name"), ([TOOL, broken], "tools[1].function.name")):
        for _ in range(2):
            with pytest.raises(DataFormatError) as caught:
                shared.read(value, set())
            assert caught.value.path == path
