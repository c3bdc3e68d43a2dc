"""Finding the rows of a batch by their tokens."""

import pytest
import torch
from datasets import Dataset

from deepfabric_trainer.callbacks._health import rows as searched
from deepfabric_trainer.callbacks._health.rows import examples_of, find_rows, unroll
from deepfabric_trainer.collators import PackingCollator, SharedPrefixCollator, ToolCallCollator

PAD = 0
ROWS = [
    {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, -100, -100, -100, 5, 6]},
    {"input_ids": [1, 2, 3, 7], "labels": [-100, -100, -100, 7]},
    {"input_ids": [9, 8, 7], "labels": [-100, 8, 7]},
    {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, -100, -100, -100, 5, 6]},
    {"input_ids": [1, 2, 3, 4, 9, 9], "labels": [-100, -100, -100, -100, 9, 9]},
]


@pytest.mark.parametrize(
    "collator",
    [
        ToolCallCollator(PAD),
        SharedPrefixCollator(PAD, min_shared=2),
        SharedPrefixCollator(PAD, min_shared=2, pad_to_multiple_of=32),
        SharedPrefixCollator(PAD, min_shared=1, attn_implementation="prefix_tree"),
        PackingCollator(PAD, max_length=32),
    ],
)
@pytest.mark.parametrize("chosen", [[1, 4], [2], [1, 2, 4]])
def test_any_layout(collator, chosen):
    batch = collator([ROWS[number] for number in chosen])
    assert find_rows(Dataset.from_list(ROWS), [batch]) == {"rows": chosen}


def test_left_padding():
    batch = {"input_ids": torch.tensor([[0, 0, 9, 8, 7]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])}
    assert find_rows(Dataset.from_list(ROWS), [batch]) == {"rows": [2]}


def test_rows_that_are_equal_are_all_named():
    batch = ToolCallCollator(PAD)([ROWS[3]])
    assert find_rows(Dataset.from_list(ROWS), [batch]) == {"rows": [0, 3]}


def test_several_batches():
    batches = [ToolCallCollator(PAD)([ROWS[1]]), ToolCallCollator(PAD)([ROWS[2], ROWS[4]])]
    assert find_rows(ROWS, batches) == {"rows": [1, 2, 4]}


def test_packed_datasets():
    packed = [
        {"input_ids": [1, 2, 3, 9, 8, 7], "seq_lengths": [3, 3]},
        {"input_ids": [4, 5, 6, 7], "seq_lengths": [4]},
    ]
    batch = {"input_ids": torch.tensor([[1, 2, 3, 9, 8, 7]]), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}
    assert find_rows(Dataset.from_list(packed), [batch]) == {"rows": [0]}


def test_a_selection_is_counted_by_its_own_numbers():
    dataset = Dataset.from_list(ROWS).select([4, 2, 1])
    assert find_rows(dataset, [ToolCallCollator(PAD)([ROWS[1]])]) == {"rows": [2]}


@pytest.mark.parametrize(
    ("dataset", "note"),
    [
        (Dataset.from_list(ROWS).to_iterable_dataset(), "not searched: a IterableDataset has no rows"),
        (Dataset.from_list([{"text": "a"}]), "not searched: a Dataset has no rows"),
        (None, "not searched: a NoneType"),
        (Dataset.from_list([{"input_ids": [5]}]), "no row has these tokens"),
    ],
)
def test_says_why_there_is_none(dataset, note):
    found = find_rows(dataset, [ToolCallCollator(PAD)([ROWS[0]])])
    assert found["rows"] == []
    assert found["rows_note"].startswith(note)


def test_bounded(monkeypatch):
    batch = ToolCallCollator(PAD)([ROWS[0]])
    monkeypatch.setattr(searched, "_MOST_ROWS", 4)
    assert find_rows(ROWS, [batch])["rows_note"] == "not searched: 5 rows are more than 4"
    monkeypatch.setattr(searched, "_MOST_ROWS", 5)
    monkeypatch.setattr(searched, "_MOST_SECONDS", 0.0)
    monkeypatch.setattr(searched, "_PAGE", 2)
    assert find_rows(ROWS, [batch]) == {"rows": [0], "rows_note": "searched for 0 seconds, not to the end"}
    monkeypatch.undo()
    monkeypatch.setattr(searched, "_MOST_NAMED", 1)
    assert find_rows(ROWS, [batch]) == {"rows": [0], "rows_note": "2 rows have these tokens"}


def test_unroll():
    assert unroll([1, 2, 3, 4, 2, 5, 6, 9, 9], [0, 1, 2, 3, 1, 2, 3, 0, 1]) == [
        (1, 2, 3, 4),
        (1, 2, 5, 6),
        (9, 9),
    ]


def test_without_tokens():
    assert examples_of({"input_ids": None}) == []
    assert find_rows(ROWS, [{"input_ids": None}])["rows_note"] == "the batch shows no `input_ids`"
