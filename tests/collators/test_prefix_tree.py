from hypothesis import given
from hypothesis import strategies as st

from deepfabric_trainer.collators.prefix_tree import Segment, build_forest

IGNORED = -100


def paths(segments: list[Segment], before: tuple[Segment, ...] = ()) -> list[tuple[Segment, ...]]:
    """Return the path from a root to each leaf."""
    found = []
    for segment in segments:
        path = (*before, segment)
        found += paths(segment.children, path) if segment.children else [path]
    return found


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Examples over three tokens, so that they often begin alike, some the beginning of another."""
    ids = draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=7))
    labels = [[token if draw(st.booleans()) else IGNORED for token in row] for row in ids]
    return ids, labels


@given(batches(), st.integers(1, 4))
def test_every_example_is_one_path_and_keeps_its_trained_tokens(
    batch: tuple[list[list[int]], list[list[int]]], min_shared: int
) -> None:
    ids, labels = batch
    found = []
    for path in paths(build_forest(ids, labels, min_shared)):
        leaf = path[-1]
        assert [segment.start for segment in path] == [0, *(segment.end for segment in path[:-1])]
        assert [token for part in path for token in ids[part.example][part.start : part.end]] == ids[leaf.example]
        for segment in path[:-1]:
            assert segment.end - segment.start >= min_shared
            assert set(labels[leaf.example][segment.start : segment.end]) == {IGNORED}
        if len(path) > 1:
            assert labels[leaf.example][leaf.start] == IGNORED, "a branch begins with an untrained token of its own"
        found.append(leaf.example)
    assert sorted(found) == list(range(len(ids)))


def test_a_trunk_above_two_trunks() -> None:
    system, weather, stock = [1] * 20, [2] * 30, [3] * 40
    ids = [[*system, *tools, number, 9] for tools in (weather, stock) for number in (5, 6)]
    labels = [[IGNORED] * (len(row) - 1) + [9] for row in ids]
    (root,) = build_forest(ids, labels, min_shared=8)
    assert (root.start, root.end) == (0, 19)
    assert [(child.start, child.end, len(child.children)) for child in root.children] == [(19, 49, 2), (19, 59, 2)]
    assert root.tokens() == 19 + 30 + 2 * 3 + 40 + 2 * 3


def test_examples_without_a_common_beginning_are_roots() -> None:
    ids = [[1, 2, 3, 4], [2, 3, 4, 5]]
    assert len(build_forest(ids, [[IGNORED] * 4] * 2, min_shared=1)) == 2
