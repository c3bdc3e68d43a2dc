import random

import pytest
import torch

from deepfabric_trainer.collators.layout import (
    PlacedSegment,
    PrefixTree,
    Row,
    fill_rows,
    last_seen_by,
    times_held,
    unroll,
)
from deepfabric_trainer.collators.prefix_tree import Segment, build_forest, cut_trees
from tests.collators.batches import KINDS, make_examples

TREE = PrefixTree(
    (
        (PlacedSegment(2, -1), PlacedSegment(1, 0), PlacedSegment(2, 0), PlacedSegment(1, 2)),
        (PlacedSegment(1, -1), PlacedSegment(2, -1)),
    )
)


def test_what_is_seen_ends_where_the_branch_ends() -> None:
    assert last_seen_by(TREE, 7).tolist() == [[6, 6, 3, 6, 6, 6, 7], [1, 3, 3, 4, 5, 6, 7]]


def test_how_many_examples_hold_a_token() -> None:
    assert times_held(TREE, 7).tolist() == [[2, 2, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0]]


def test_examples_are_read_back_from_a_row() -> None:
    assert unroll(TREE, 0, [1, 2, 3, 4, 5, 6]) == [[1, 2, 3], [1, 2, 4, 5, 6]]
    assert unroll(TREE, 1, [7, 8, 9]) == [[7], [8, 9]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capacity", [1, 45, 70, 10_000])
def test_rows_hold_every_example_once_however_trees_are_cut(kind: str, capacity: int) -> None:
    examples = make_examples(kind)
    ids, labels = ([example[name] for example in examples] for name in ("input_ids", "labels"))
    trees = cut_trees(build_forest(ids, labels, 16), capacity)
    rows = [Row(roots, ids, labels) for roots in fill_rows(trees, capacity)]
    tree = PrefixTree(tuple(tuple(row.placed) for row in rows))
    found = [example for number, row in enumerate(rows) for example in unroll(tree, number, row.input_ids)]
    assert sorted(found) == sorted(ids)
    trained = sorted(label for row in rows for label in row.labels if label != -100)
    assert trained == sorted(label for row in labels for label in row[1:] if label != -100)
    longest = max(map(len, ids))
    assert all(len(row.input_ids) <= max(capacity, longest) for row in rows)


def test_cut_trees_repeat_no_more_than_they_must() -> None:
    trunk = Segment(0, 0, 100, [Segment(index, 100, 110) for index in range(6)])
    assert [tree.tokens() for tree in cut_trees([trunk], 130)] == [130, 130]
    assert [tree.tokens() for tree in cut_trees([trunk], 160)] == [160]
    assert [tree.tokens() for tree in cut_trees([trunk], 5)] == [110] * 6


def test_a_mask_from_ends_is_the_mask_from_paths() -> None:
    generator = random.Random(0)
    segments = [PlacedSegment(3, -1)]
    # In the order of a walk down the tree, as rows are written.
    stack = [0]
    for number in range(1, 12):
        stack = stack[: generator.randrange(len(stack) + 1)]
        segments.append(PlacedSegment(generator.randrange(1, 4), stack[-1] if stack else -1))
        stack.append(number)
    tree = PrefixTree((tuple(segments),))
    length = sum(segment.length for segment in segments)
    of_token = [number for number, segment in enumerate(segments) for _ in range(segment.length)]
    paths, ends = tree.paths(0), last_seen_by(tree, length)[0]
    for query in range(length):
        for key in range(length):
            sees = key <= query and of_token[key] in paths[of_token[query]]
            assert sees == bool(key <= query < ends[key])
    assert isinstance(ends, torch.Tensor)
