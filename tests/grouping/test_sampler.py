"""The order of an epoch: who stands together, what chance decides, and what processes see of it."""

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.grouping import PrefixGroupSampler

CODES = [0] * 9 + [1] * 20 + [2] * 3 + [3] * 8 + list(range(4, 17))


def batches(sampler: PrefixGroupSampler, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    order = list(sampler)
    return [order[start : start + sampler.batch_size] for start in range(0, len(order), sampler.batch_size)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 9), st.integers(0, 3), st.booleans())
def test_every_example_comes_once(codes: list[int], batch_size: int, epoch: int, has_rows: bool) -> None:
    rows = [number // 3 for number in range(len(codes))] if has_rows else None
    sampler = PrefixGroupSampler(codes, batch_size, seed=1, rows=rows)
    assert len(sampler) == len(codes)
    assert sorted(index for batch in batches(sampler, epoch) for index in batch) == list(range(len(codes)))


def test_full_batches_are_of_one_group_as_far_as_there_are_any() -> None:
    sampler = PrefixGroupSampler(CODES, 4, seed=0)
    for epoch in range(20):
        *full, last = batches(sampler, epoch)
        assert len(last) == len(CODES) % 4
        pure = [CODES[batch[0]] for batch in full if len({CODES[index] for index in batch}) == 1]
        # One group may lose examples to the short batch.
        assert sum(code == 0 for code in pure) >= 1
        assert sum(code == 1 for code in pure) >= 4
        assert sum(code == 3 for code in pure) >= 1


def test_what_is_left_of_the_groups_stands_beside_what_is_like_it() -> None:
    codes = list(range(64))
    sampler = PrefixGroupSampler([0, 0, *codes], 4, seed=0)
    for epoch in range(20):
        spans = sorted(np.ptp([max(index - 2, 0) for index in batch]) for batch in batches(sampler, epoch)[:-1])
        # All but the one batch where the circle closes, and what the short batch cut apart.
        assert spans[-2] <= 4 + 2


def test_a_group_that_fits_into_a_batch_is_seldom_cut() -> None:
    codes = [code for code, size in enumerate([5, 3] * 8) for _ in range(size)]
    sampler = PrefixGroupSampler(codes, 8, seed=0)
    for epoch in range(10):
        assert all(len({codes[index] for index in batch}) <= 3 for batch in batches(sampler, epoch))


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    sampler, twin = PrefixGroupSampler(CODES, 4, seed=3), PrefixGroupSampler(np.array(CODES), 4, seed=3)
    list(twin)
    orders = []
    for epoch in (0, 1, 2):
        assert batches(sampler, epoch) == batches(twin, epoch)
        orders.append(list(sampler))
        assert list(pickle.loads(pickle.dumps(sampler))) == orders[-1] == list(sampler)
    assert all(left != right for left, right in pairwise(orders))
    assert batches(PrefixGroupSampler(CODES, 4, seed=4)) != batches(sampler, 0)


def test_where_the_batches_fall_differs_between_epochs() -> None:
    codes = [number // 3 for number in range(30)]
    sampler = PrefixGroupSampler(codes, 4, seed=0)
    seen = {frozenset(map(frozenset, batches(sampler, epoch))) for epoch in range(10)}
    assert len(seen) == 10


@pytest.mark.parametrize("rows", [None, [number // 2 for number in range(53)]])
def test_no_example_comes_early_or_late_more_often_than_others(rows: list[int] | None) -> None:
    epochs, batch_size = 2000, 5
    codes = CODES if rows is None else [CODES[2 * row] for row in rows]
    sampler = PrefixGroupSampler(codes, batch_size, seed=0, rows=rows)
    places = np.zeros(len(codes))
    last = np.zeros(len(codes))
    for epoch in range(epochs):
        order = np.concatenate(batches(sampler, epoch))
        places[order] += np.arange(len(codes))
        last[order[len(codes) - len(codes) % batch_size :]] += 1
    # A place is uniform over the epoch: its mean over so many epochs strays by less than 5 standard errors.
    error = len(codes) / np.sqrt(12 * epochs)
    assert np.abs(places / epochs - (len(codes) - 1) / 2).max() < 5 * error
    share = len(codes) % batch_size / len(codes)
    slack = 5 * np.sqrt(share * (1 - share) / epochs)
    # Rows of several examples fill the short batch less evenly: a row is never cut for it if another fits.
    assert np.abs(last / epochs - share).max() < (slack if rows is None else share)


def test_the_examples_of_a_row_stay_together_in_their_order() -> None:
    sizes = [1, 3, 2, 1, 4, 2, 3, 1, 1, 2] * 6
    rows = np.repeat(np.arange(len(sizes)), sizes)
    codes = np.repeat(np.arange(len(sizes)) % 5, sizes)
    sampler = PrefixGroupSampler(codes, 8, seed=0, rows=rows)
    cut = 0
    for epoch in range(20):
        for batch in batches(sampler, epoch):
            for row in set(rows[batch].tolist()):
                places = [place for place, index in enumerate(batch) if rows[index] == row]
                examples = [batch[place] for place in places]
                assert places == list(range(places[0], places[0] + len(places)))
                assert examples == list(range(examples[0], examples[0] + len(examples)))
                cut += len(places) < sizes[row]
    # What is left at the very end need not fill batches without a cut, which makes two pieces of a row.
    assert cut <= 2 * 2 * 20


def test_rows_are_cut_only_where_no_other_fills_the_batch() -> None:
    rows = [number // 3 for number in range(24)]
    sampler = PrefixGroupSampler([0] * 24, 8, seed=0, rows=rows)
    first, second, third = batches(sampler)
    counts = [sorted(np.unique(np.array(rows)[batch], return_counts=True)[1].tolist()) for batch in (first, second)]
    assert [len(batch) for batch in (first, second, third)] == [8, 8, 8]
    assert all(count.count(3) >= 2 for count in counts)


def test_rows_larger_than_a_batch_are_spread_over_batches() -> None:
    sampler = PrefixGroupSampler([0] * 13, 4, seed=0, rows=[0] * 11 + [1, 1])
    assert sorted(index for batch in batches(sampler) for index in batch) == list(range(13))
    assert sum(batch in ([0, 1, 2, 3], [4, 5, 6, 7]) for batch in batches(sampler)) == 2


def test_the_examples_of_a_row_may_stand_anywhere_in_the_dataset() -> None:
    rows = [0, 1, 2, 3, 0, 1, 2, 3]
    sampler = PrefixGroupSampler([0, 1, 2, 3] * 2, 2, seed=0, rows=rows)
    assert sorted(map(tuple, batches(sampler))) == [(0, 4), (1, 5), (2, 6), (3, 7)]


@pytest.mark.parametrize(
    ("codes", "rows", "groups"),
    [
        ([0, 0, 0], None, False),
        ([0, 1, 2], None, False),
        ([0, 1, 2], [4, 5, 6], False),
        ([0, 1, 1], None, True),
        ([0, 1, 2], [4, 4, 6], True),
        ([0, 0, 0], [4, 4, 6], True),
        ([], None, False),
    ],
)
def test_it_says_whether_there_is_anything_to_group(codes: list[int], rows: list[int] | None, groups: bool) -> None:
    assert PrefixGroupSampler(codes, 2, seed=0, rows=rows).groups is groups


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("count", [53, 48, 44, 3])
def test_two_processes_see_every_example_in_equally_many_steps(count: int, drop_last: bool) -> None:
    codes = CODES[:count]
    shards = []
    for rank in (0, 1):
        sampler = PrefixGroupSampler(codes, 4, seed=0)
        sampler.set_epoch(1)
        shards.append(list(BatchSamplerShard(BatchSampler(sampler, 4, drop_last), 2, rank)))
    assert len(shards[0]) == len(shards[1])
    seen = [index for pair in zip(*shards, strict=True) for batch in pair for index in batch]
    order = list(sampler)
    if drop_last:
        assert seen == order[: count - count % 8]
    else:
        assert seen[:count] == order
        assert len(seen) - count < 8
        assert all(len(batch) == 4 for shard in shards for batch in shard)


def given_to(loader: Any) -> list[list[int]]:
    return [[int(index) for index in batch] for batch in loader]


@pytest.mark.parametrize("processes", [1, 2])
def test_epochs_reach_it_through_accelerate_also_when_batches_are_skipped(processes: int) -> None:
    for rank in range(processes):
        sampler = PrefixGroupSampler(CODES, 4, seed=0)
        loader = prepare_data_loader(
            DataLoader(list(range(len(CODES))), 4, sampler=sampler, collate_fn=list),
            num_processes=processes,
            process_index=rank,
            put_on_device=False,
            use_seedable_sampler=True,
        )
        loader.set_sampler(sampler)
        epochs = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            epochs.append(given_to(loader))
        whole = BatchSampler(sampler, 4, False)
        assert epochs[1] == list(whole if processes == 1 else BatchSamplerShard(whole, processes, rank))
        sampler.set_epoch(0)
        resumed = skip_first_batches(loader, 3)
        resumed.set_epoch(1)
        assert given_to(resumed) == epochs[1][3:]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        PrefixGroupSampler([0], 0, seed=0)
    with pytest.raises(ConfigError, match="2 codes and 1 row numbers"):
        PrefixGroupSampler([0, 1], 1, seed=0, rows=[0])
