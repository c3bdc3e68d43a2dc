"""Which rows of the training dataset are in a batch, found by their tokens."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from datasets import Dataset

_MOST_ROWS = 200_000
_MOST_SECONDS = 10.0
_MOST_NAMED = 64
_PAGE = 1000
Tokens = tuple[int, ...]


def find_rows(dataset: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return which rows of a dataset are in batches.

    Rows are told by their tokens, so it does not matter how they got into the batch: padded, packed, or laid out with
    a shared beginning. Rows that are equal are all named.

    Args:
        dataset (`Any`): What the data loader reads: a `Dataset`, or a sequence of mappings, with `input_ids`.
        batches (`Iterable[Mapping[str, torch.Tensor]]`): `input_ids` [R, T], and perhaps `attention_mask` and
            `position_ids`.

    Returns:
        `dict[str, Any]`: `rows`, their numbers in the dataset; with `rows_note`, a sentence, where it is not all.
    """
    wanted = {example for batch in batches for example in examples_of(batch)}
    if not wanted:
        return {"rows": [], "rows_note": "the batch shows no `input_ids`"}
    pages = _pages(dataset, {len(example) for example in wanted})
    if pages is None:
        return {"rows": [], "rows_note": f"not searched: a {type(dataset).__name__} has no rows with `input_ids`"}
    if len(dataset) > _MOST_ROWS:
        return {"rows": [], "rows_note": f"not searched: {len(dataset):,} rows are more than {_MOST_ROWS:,}"}
    deadline, rows = time.monotonic() + _MOST_SECONDS, []
    for page in pages:
        rows += [number for number, ids in page if ids in wanted]
        if time.monotonic() > deadline:
            return {"rows": rows[:_MOST_NAMED], "rows_note": f"searched for {_MOST_SECONDS:g} seconds, not to the end"}
    if not rows:
        return {"rows": [], "rows_note": "no row has these tokens: the collator has changed them"}
    if len(rows) > _MOST_NAMED:
        return {"rows": rows[:_MOST_NAMED], "rows_note": f"{len(rows)} rows have these tokens"}
    return {"rows": rows}


def examples_of(batch: Mapping[str, Any]) -> list[Tokens]:
    """Return the tokens of the examples of a batch, as a row of the dataset may hold them.

    Args:
        batch (`Mapping[str, torch.Tensor]`): `input_ids` [R, T], and perhaps `attention_mask` and `position_ids`.
    """
    ids, mask, positions = (batch.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
        return []
    examples: list[Tokens] = []
    for number, row in enumerate(ids.tolist()):
        kept = [True] * len(row)
        if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
            kept = mask[number].ne(0).tolist()
        tokens = [token for token, keep in zip(row, kept, strict=True) if keep]
        examples.append(tuple(tokens))
        if isinstance(positions, torch.Tensor) and positions.shape == ids.shape:
            places = [place for place, keep in zip(positions[number].tolist(), kept, strict=True) if keep]
            examples += unroll(tokens, places)
    return examples


def unroll(tokens: Sequence[int], positions: Sequence[int]) -> list[Tokens]:
    """Return the examples of a row in which several stand, one behind the other or with their beginnings shared.

    A token continues what stands at the positions before its own; where positions go back, an example has ended.

    Args:
        tokens (`Sequence[int]`): The tokens of the row.
        positions (`Sequence[int]`): The position of each in its example.
    """
    examples: list[Tokens] = []
    path: list[int] = []
    for token, position in zip(tokens, positions, strict=True):
        if position < len(path):
            examples.append(tuple(path))
            del path[position:]
        path.append(token)
    return [*examples, tuple(path)]


def _pages(dataset: Any, lengths: set[int]) -> Iterator[list[tuple[int, Tokens]]] | None:
    """Return the rows that have one of these lengths with their numbers, page by page; `None` without such rows."""
    if isinstance(dataset, Dataset):
        if "input_ids" not in dataset.column_names:
            return None
        columns = [name for name in ("input_ids", "seq_lengths") if name in dataset.column_names]
        return _pages_of_tables(dataset.with_format("arrow", columns=columns), lengths)
    is_readable = isinstance(dataset, list | tuple) and len(dataset) > 0
    if is_readable and isinstance(dataset[0], Mapping) and "input_ids" in dataset[0]:
        return _pages_of_rows(iter(enumerate(dataset)))
    return None


def _pages_of_tables(dataset: Any, lengths: set[int]) -> Iterator[list[tuple[int, Tokens]]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    for begin in range(0, len(dataset), _PAGE):
        table = dataset[begin : begin + _PAGE]
        column = table.column("input_ids")
        if "seq_lengths" in table.column_names:  # packed: known by the first of the examples in it
            firsts = [row[0] if row else 0 for row in table.column("seq_lengths").to_pylist()]
            rows = column.to_pylist()
            yield [
                (begin + offset, tuple(row[:first]))
                for offset, (row, first) in enumerate(zip(rows, firsts, strict=True))
            ]
            continue
        fits = pc.is_in(pc.list_value_length(column), value_set=pa.array(sorted(lengths), pa.int32()))
        offsets = pc.indices_nonzero(fits).to_pylist()
        rows = column.take(pa.array(offsets, pa.int64())).to_pylist()
        yield [(begin + offset, tuple(row)) for offset, row in zip(offsets, rows, strict=True)]


def _pages_of_rows(rows: Iterator[tuple[int, Mapping[str, Any]]]) -> Iterator[list[tuple[int, Tokens]]]:
    while page := list(islice(rows, _PAGE)):
        yield [(number, tuple(row["input_ids"])) for number, row in page]
