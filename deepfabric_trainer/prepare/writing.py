"""From encoded examples to Arrow tables, which also carry an account of the rows."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import List, Value

from deepfabric_trainer.encode.examples import IGNORED, EncodedExample, PackedExample
from deepfabric_trainer.prepare.accounts import account_of_example, account_of_row
from deepfabric_trainer.prepare.rows import PreparedRow

EXAMPLE_FEATURES = {
    "input_ids": List(Value("int32")),
    "labels": List(Value("int32")),
    "regions": List(Value("int8")),
    "weights": List(Value("float32")),
}
"""What training needs. `weights` is empty in examples whose tokens all weigh 1."""
ACCOUNT_FEATURES = {"row": Value("int64"), "account": Value("string")}
"""The row that an example is of, and the JSON text of what there is to say about it; mostly nothing."""
_NUMPY_TYPES: dict[str, Any] = {"input_ids": np.int32, "labels": np.int32, "regions": np.int8, "weights": np.float32}

_Array = npt.NDArray[Any]


def table_of(rows: Iterable[tuple[int, PreparedRow]]) -> pa.Table:
    """Return the table of examples and accounts; a rejected row has one entry, with an example of no tokens."""
    arrays: dict[str, list[_Array]] = {name: [] for name in EXAMPLE_FEATURES}
    numbers: list[int] = []
    accounts: list[str | None] = []
    for number, prepared in rows:
        for example, account in _entries(prepared):
            for name, values in _arrays(example).items():
                arrays[name].append(values)
            numbers.append(number)
            accounts.append(json.dumps(account) if account else None)
    lists = {name: _list_array(arrays[name], _NUMPY_TYPES[name]) for name in EXAMPLE_FEATURES}
    return pa.table({**lists, "row": pa.array(numbers, pa.int64()), "account": pa.array(accounts, pa.string())})


def example_columns(examples: Sequence[EncodedExample]) -> dict[str, list[Any]]:
    """Return the columns of examples alone, as lists: streams give them out as they are."""
    return {name: [getattr(example, name) or [] for example in examples] for name in EXAMPLE_FEATURES}


def _arrays(example: PackedExample | None) -> dict[str, _Array]:
    if example is None:
        return {name: np.empty(0, kind) for name, kind in _NUMPY_TYPES.items()}
    input_ids = np.frombuffer(example.input_ids, np.int32)
    regions = np.frombuffer(bytes(example.first) + bytes(example.regions), np.int8)
    labels = np.where(regions, input_ids, np.int32(IGNORED))
    weights = np.array(example.weights or (), np.float32)
    return {"input_ids": input_ids, "labels": labels, "regions": regions, "weights": weights}


def _entries(prepared: PreparedRow) -> Iterator[tuple[PackedExample | None, dict[str, Any]]]:
    """Give each example with its account; what concerns the row as a whole stands in the first."""
    whole = account_of_row(prepared)
    examples: Sequence[PackedExample | None] = prepared.examples or [None]
    for example in examples:
        yield example, {**whole, **account_of_example(example)}
        whole = {}


def _list_array(values: Sequence[_Array], kind: Any) -> pa.ListArray:
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(each) for each in values], out=offsets[1:])
    flat = np.concatenate(values) if values else np.empty(0, kind)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
