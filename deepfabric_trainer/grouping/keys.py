"""Codes of raw rows: which begin with the same tools and system message, and which nearly so."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from deepfabric_trainer.grouping.hashing import flatten, is_list, is_text, plain_storage
from deepfabric_trainer.grouping.sequences import Numbers, SequenceTable

_MESSAGES = ("messages", "conversations", "prompt")
_TOOLS = ("tools", "functions")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_SYSTEM_ROLES = ("system", "developer")
_ROWS_AT_ONCE = 4096
_DECODER = json.JSONDecoder()


def row_codes(dataset: Dataset, *, tools_first: bool) -> Numbers:
    """Return a code for each raw row: equal codes for equal beginnings, near ones for beginnings that are alike.

    A beginning is the row's tools and its first message, if that is a system or developer message. Codes are ranks in
    the lexicographic order of what the chat template writes, a tool an item (512 bytes an item in tools that are JSON
    text, and in system messages), so that neighbours share long beginnings. Rows are read from Arrow some thousands
    at a time, and never made into Python objects. Tools are compared as they are stored: the same tools as text with
    other white space are other tools.

    Args:
        dataset (`Dataset`): N rows of `messages` (or `conversations`, or `prompt`) and `tools` (or `functions`), any
            of which may be missing, in any type that [`~deepfabric_trainer.schema.normalize_row`] reads.
        tools_first (`bool`): Whether the chat template writes the tools before the system message.

    Returns:
        `np.ndarray`: [N] int64; from 0 on, without gaps.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from deepfabric_trainer.grouping import row_codes

    >>> def row(question, *tools):
    ...     return {"messages": [{"role": "user", "content": question}], "tools": [{"name": tool} for tool in tools]}
    >>> rows = [row("Rain?", "weather", "mail"), row("Hi", "calendar"), row("Sun?", "weather", "mail")]
    >>> first, second, third = row_codes(Dataset.from_list(rows), tools_first=False).tolist()
    >>> (first == third, first == second)
    (True, False)

    ```
    """
    tools_column = next((name for name in _TOOLS if name in dataset.column_names), None)
    messages_column = next((name for name in _MESSAGES if name in dataset.column_names), None)
    columns = [name for name in (tools_column, messages_column) if name is not None]
    if not columns or not len(dataset):
        return np.zeros(len(dataset), np.int64)
    catalogues, systems = SequenceTable(), SequenceTable()
    numbers = {name: np.zeros(len(dataset), np.int64) for name in columns}
    for name, where, chunk in _chunks(dataset, columns):
        numbers[name][where] = catalogues.add(chunk) if name == tools_column else _add_systems(chunk, systems)
    nothing = np.zeros(len(dataset), np.int64)
    tools = catalogues.ranks()[numbers[tools_column]] if tools_column else nothing
    system = systems.ranks()[numbers[messages_column]] if messages_column else nothing
    first, second = (tools, system) if tools_first else (system, tools)
    codes: Numbers = np.unique(first * (int(second.max()) + 1) + second, return_inverse=True)[1].astype(np.int64)
    return codes


def _chunks(dataset: Dataset, columns: list[str]) -> Iterator[tuple[str, Numbers, pa.Array]]:
    """Give some thousand values at a time, in the order in which they are stored, with their column and row numbers.

    Through the mapping of a shuffled dataset `datasets` would copy whole columns for every batch.
    """
    table = dataset.data.table.select(columns)
    mapping = dataset._indices  # `None` while rows are in the order in which they are stored
    stored = np.arange(len(dataset)) if mapping is None else mapping.column(0).to_numpy().astype(np.int64)
    order = np.argsort(stored, kind="stable")
    stored = stored[order]
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        first, end = np.searchsorted(stored, (start, start + _ROWS_AT_ONCE))
        if first == end:
            continue
        wanted = stored[first:end] - start
        window = table.slice(start, _ROWS_AT_ONCE)
        for name in columns:
            begin = 0
            for chunk in window.column(name).chunks:
                here = slice(*np.searchsorted(wanted, (begin, begin + len(chunk))))
                within = wanted[here] - begin
                is_whole = len(within) == len(chunk) and np.array_equal(within, np.arange(len(chunk)))
                yield name, order[first:end][here], chunk if is_whole else chunk.take(pa.array(within))
                begin += len(chunk)


def _add_systems(array: pa.Array, systems: SequenceTable) -> Numbers:
    """Return the numbers of the rows' system messages; that of rows without one is 0."""
    array = plain_storage(array)
    numbers = np.zeros(len(array), np.int64)
    if is_text(array.type):
        where, contents = _from_json(array, _first_of_list)
    elif is_list(array.type):
        messages, offsets = flatten(array)
        filled = np.flatnonzero(np.diff(offsets))
        first = plain_storage(messages.take(pa.array(offsets[filled])))
        where, contents = _from_json(first, _decoded) if is_text(first.type) else _from_structs(first)
        where = filled[where]
    else:
        return numbers
    numbers[where] = systems.add(contents)
    return numbers


def _from_structs(messages: pa.Array) -> tuple[Numbers, pa.Array]:
    """Return which messages are system messages, and their contents."""
    names = [field.name for field in messages.type] if pa.types.is_struct(messages.type) else []
    is_system = np.zeros(len(messages), bool)
    contents = pa.nulls(len(messages))
    for role_key, content_key in zip(_ROLE_KEYS, _CONTENT_KEYS, strict=True):
        roles = plain_storage(messages.field(role_key)) if role_key in names else None
        if roles is not None and content_key in names and is_text(roles.type):
            # A role in a column of JSON is a JSON string.
            words = pc.utf8_lower(pc.utf8_trim(roles, '" '))
            is_system = pc.is_in(words, pa.array(_SYSTEM_ROLES, words.type)).to_numpy(zero_copy_only=False)
            contents = messages.field(content_key)
            break
    return np.flatnonzero(is_system), contents.filter(pa.array(is_system))


def _from_json(texts: pa.Array, first_message: Any) -> tuple[Numbers, pa.Array]:
    """Return which JSON texts begin with a system message, and their contents, as JSON text.

    Only texts that hold the word are decoded.
    """
    maybe = pc.match_substring_regex(texts.cast(pa.large_string()), r'(?i)"(?:system|developer)"')
    where, contents = [], []
    for row in np.flatnonzero(pc.fill_null(maybe, False).to_numpy(zero_copy_only=False)).tolist():
        try:
            message = first_message(texts[row].as_py())
        except ValueError:
            continue  # not for us to say: the row is named when it is encoded
        if isinstance(message, dict):
            role = next((message[key] for key in _ROLE_KEYS if key in message), None)
            if isinstance(role, str) and role.strip().lower() in _SYSTEM_ROLES:
                where.append(row)
                contents.append(json.dumps(next((message[key] for key in _CONTENT_KEYS if key in message), None)))
    return np.asarray(where, np.int64), pa.array(contents, pa.large_string())


def _first_of_list(text: str) -> Any:
    """Decode the first item of a JSON list, and nothing behind it."""
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] != "[":
        return None
    start += 1
    while text[start : start + 1].isspace():
        start += 1
    return _DECODER.raw_decode(text, start)[0]


def _decoded(text: str) -> Any:
    return json.loads(text)
