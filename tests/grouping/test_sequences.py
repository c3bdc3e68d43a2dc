"""Sequences in lexicographic order, and values as sequences."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from deepfabric_trainer.grouping.sequences import SequenceTable, rank_sequences


@given(st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=12))
def test_ranks_are_places_in_lexicographic_order(sequences: list[list[int]]) -> None:
    offsets = np.cumsum([0, *map(len, sequences)])
    values = np.array([value for sequence in sequences for value in sequence], np.uint64)
    expected = [sum(other < sequence for other in sequences) for sequence in sequences]
    assert rank_sequences(values, offsets).tolist() == expected


def test_equal_values_have_one_number_over_all_arrays() -> None:
    table = SequenceTable()
    first = table.add(pa.array([["a", "b"], ["a"], None, []])).tolist()
    second = table.add(pa.array([["a"], ["c"]])).tolist()
    assert first in ([1, 2, 0, 0], [2, 1, 0, 0])
    assert second[0] == first[1]
    assert second[1] == 3


def test_lists_that_begin_alike_are_neighbours() -> None:
    table = SequenceTable()
    lists = [["a"], ["b"], ["a", "x"], ["b", "x"], ["a", "y"], ["b", "y"], ["c"], ["a", "x", "z"]]
    ranks = _ranks(table, lists)
    first_items = [lists[place][0] for place in np.argsort(ranks)]
    assert sum(left != right for left, right in pairwise(first_items)) == 2
    assert abs(ranks[2] - ranks[7]) == 1


def test_texts_that_begin_alike_are_neighbours() -> None:
    table = SequenceTable()
    beginnings = ["a" * 600, "b" * 600, "c" * 600]
    texts = [beginnings[number % 3] + ending for number in range(9) for ending in ("x" * number, "y" * 700)]
    ranks = _ranks(table, texts)
    ordered = [texts[place][0] for place in np.argsort(ranks, kind="stable")]
    assert sum(left != right for left, right in pairwise(ordered)) == 2
    assert len(set(ranks)) == len(set(texts))


def test_texts_without_a_value_are_no_tools() -> None:
    numbers = SequenceTable().add(pa.array(["", "null", "[]", None, "[1]"])).tolist()
    assert numbers == [0, 0, 0, 0, 1]


def _ranks(table: SequenceTable, values: Sequence[object]) -> list[int]:
    numbers = table.add(pa.array(values))
    return [int(rank) for rank in table.ranks()[numbers]]
