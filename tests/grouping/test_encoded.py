"""Codes of encoded rows."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from deepfabric_trainer.grouping import encoded_codes

A, B = list(range(1000, 1200)), list(range(2000, 2200))


def example(beginning: list[int], question: int, answer: int = 5) -> dict[str, list[int]]:
    context = [*beginning, *range(question, question + 70)]
    return {"input_ids": context + [7] * answer, "labels": [-100] * len(context) + [7] * answer}


def classes(codes: Any) -> list[int]:
    seen: dict[int, int] = {}
    return [seen.setdefault(code, len(seen)) for code in codes.tolist()]


def test_rows_have_one_code_when_what_they_share_is_the_same() -> None:
    beginnings = [A, B, A, [], B, A, [], A[:64] + B]
    rows = [example(beginning, 100 * number) for number, beginning in enumerate(beginnings)]
    codes = encoded_codes(Dataset.from_list(rows))
    assert classes(codes) == [0, 1, 0, 2, 1, 0, 2, 3]
    # What shares a block with the first stands beside it.
    assert abs(int(codes[7]) - int(codes[0])) == 1
    assert set(codes.tolist()) == {0, 1, 2, 3}


def test_trained_tokens_are_not_shared() -> None:
    trained_from_the_start = {"input_ids": A, "labels": A}
    untrained = {"input_ids": A, "labels": [-100] * len(A)}
    codes = encoded_codes(Dataset.from_list([example(A, 1), trained_from_the_start, untrained]))
    assert classes(codes) == [0, 1, 0]


def test_the_examples_of_a_row_have_the_code_of_its_first() -> None:
    rows = [0, 0, 1, 2, 2]
    examples = [
        example(A, 1),
        example(A + list(range(1, 80)), 300),
        example(A, 500),
        example(B, 700),
        example(B + list(range(700, 780)), 900),
    ]
    assert classes(encoded_codes(Dataset.from_list(examples), rows)) == [0, 0, 0, 1, 1]
    assert classes(encoded_codes(Dataset.from_list(examples))) == [0, 0, 1, 2, 2]
    alone = Dataset.from_list(examples).select([3, 4, 0])
    assert classes(encoded_codes(alone)) == [0, 0, 1]
    assert classes(encoded_codes(alone, [2, 2, 0])) == [0, 0, 0]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_batches_mappings_and_chunks_do_not_matter(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [example((A, B, [])[number % 3], 100 * number) for number in range(9)]
    dataset = Dataset.from_list(rows)
    whole = encoded_codes(dataset)
    monkeypatch.setattr("deepfabric_trainer.grouping.encoded._ROWS_AT_ONCE", at_once)
    assert encoded_codes(dataset).tolist() == whole.tolist()
    order = np.random.default_rng(0).permutation(9)
    assert encoded_codes(dataset.select(order)).tolist() == whole[order].tolist()


def test_nothing_gives_nothing() -> None:
    assert encoded_codes(Dataset.from_dict({"input_ids": [], "labels": []})).tolist() == []
    short = Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [], "labels": []}])
    assert encoded_codes(short).tolist() == [0, 0]
