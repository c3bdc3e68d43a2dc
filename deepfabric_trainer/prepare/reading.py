"""From Arrow tables to the rows that are encoded, in which equal tools are one object."""

import marshal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from datasets import Features

from deepfabric_trainer.prepare.content import content_of
from deepfabric_trainer.schema.strict_json import NOT_PLAIN, survey

_READ = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "tools",
    "functions",
    "reasoning",
    "chat_template_kwargs",
)
"""The columns that mean something to us; of all others only the name is known."""
_SHARED = ("tools", "functions")
_MOST_LISTS = 256
_MOST_ITEMS = 4096

Columns = Mapping[str, list[Any]]


class RowReader:
    """Makes rows of the batches of a dataset, one after another.

    Nobody may change the tools of a row: equal lists are one object in all rows, and so are equal tools.

    Args:
        features (`Features`, *optional*): Of the dataset: how the values of Arrow tables are read. Batches may also be
            columns of values as they are.
    """

    def __init__(self, features: Features | None = None) -> None:
        self._features = features
        self._pools = {name: _Pool() for name in _SHARED}

    def rows(self, batch: "pa.Table | Columns") -> Iterator[dict[str, Any]]:
        """Give the rows of a batch in order; columns that mean nothing to us are null."""
        if isinstance(batch, pa.Table):
            count = batch.num_rows
            columns = {name: self._column(batch, name) for name in batch.column_names if name in _READ}
            names = batch.column_names
        else:
            names = list(batch)
            count = len(batch[names[0]]) if names else 0
            columns = {name: list(batch[name]) for name in names if name in _READ}
            for name in columns.keys() & set(_SHARED):
                columns[name] = [self._pools[name].share(value) for value in columns[name]]
        for index in range(count):
            yield {name: columns[name][index] if name in columns else None for name in names}

    def _column(self, table: pa.Table, name: str) -> list[Any]:
        column = table.column(name)
        item = getattr(self._features[name], "feature", None) if self._features is not None else None
        is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if name in _SHARED and item is not None and is_list:
            array = column.combine_chunks()
            array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
            try:
                return self._pools[name].share_array(array, lambda items: _decoded(items, item))
            except TypeError:  # of values that are no JSON; whoever reads the row will say so
                pass
        return _decoded(column, self._features[name] if self._features is not None else None)


class _Pool:
    """Different lists, and their different items, each of which is kept once."""

    def __init__(self) -> None:
        self._items: dict[Any, Any] = {}
        self._lists: dict[Any, list[Any]] = {}

    def share(self, value: Any) -> Any:
        """Return a list of objects as the one that is kept, of copies; anything else as it is."""
        # Whoever made the list may change its items after all. Of arrays and the like, `marshal` knows bytes alone.
        if not isinstance(value, list) or survey(value) & NOT_PLAIN:
            return value
        try:
            keys = [marshal.dumps(item, 2) for item in value]  # version 2 knows content only, no identity
        except ValueError:  # nested too deeply
            return value
        return self._list(keys, lambda missing: [marshal.loads(keys[index]) for index in missing])

    def share_array(self, array: pa.Array, decode: Callable[[pa.Array], list[Any]]) -> list[Any]:
        """Return the lists of an Arrow array; only items that are new are made into Python's values.

        Raises:
            TypeError: If it holds values that cannot be compared.
        """
        items = array.flatten()
        keys = [hashed.tobytes() for hashed in content_of(items)]
        lists: list[list[Any] | None] = []
        start = 0
        for length in array.value_lengths().to_pylist():
            lists.append(
                None
                if length is None
                else self._list(keys[start : start + length], partial(_taken, items, start, decode))
            )
            start += length or 0
        return lists

    def _list(self, keys: list[bytes], make: Callable[[list[int]], list[Any]]) -> list[Any]:
        whole = tuple(keys)
        if whole not in self._lists:
            if len(self._items) >= _MOST_ITEMS:
                self._items.clear()
            if len(self._lists) >= _MOST_LISTS:
                self._lists.clear()
            missing = [index for index, key in enumerate(keys) if key not in self._items]
            for index, item in zip(missing, make(missing) if missing else [], strict=True):
                self._items[keys[index]] = item
            self._lists[whole] = [self._items[key] for key in keys]
        return self._lists[whole]


def _taken(items: pa.Array, start: int, decode: Callable[[pa.Array], list[Any]], places: Sequence[int]) -> list[Any]:
    """Return the items at some places behind a start."""
    return decode(items.take(pa.array([start + place for place in places])))


def _decoded(column: "pa.Array | pa.ChunkedArray", feature: Any) -> list[Any]:
    """Return a column as `datasets` gives it."""
    values: list[Any] = column.to_pylist()
    if feature is None:
        return values
    decoded: list[Any] = Features({"column": feature}).decode_column(values, "column")
    return decoded
