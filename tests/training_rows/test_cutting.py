from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from datasets import Dataset

from deepfabric_trainer import ConversationEncoder
from deepfabric_trainer.encode import Region, TrainOn
from deepfabric_trainer.prepare import prepare_dataset
from deepfabric_trainer.training_rows.cut_calls import call_at
from deepfabric_trainer.training_rows.cutting import cut_examples, cut_stream
from tests.fixtures.tiny import tiny_tokenizer, tool_rows

C, F, N, A, S = Region.CONTEXT, Region.FORMAT, Region.TOOL_NAME, Region.TOOL_ARGUMENTS, Region.STOP
ONE = [C, C, F, N, N, F, A, A, F, S]
TWO = [C, F, N, F, A, F, F, F, N, F, A, F, F, S]
"""Two calls: the format between them closes the one with two tokens and opens the other with one."""
Examples = Callable[[TrainOn], Dataset]


@pytest.mark.parametrize("cut", range(len(ONE) + 1))
def test_a_call_is_cut_between_its_first_and_last_token(cut: int) -> None:
    assert call_at(ONE, cut) == (range(2, 9) if 2 < cut < 9 else None)


@pytest.mark.parametrize("cut", range(len(TWO) + 1))
def test_of_two_calls_the_one_that_is_whole_stays(cut: int) -> None:
    first, second = range(1, 7), range(7, 13)
    assert call_at(TWO, cut) == (first if 1 < cut < 7 else second if 7 < cut < 13 else None)


def test_arguments_in_several_pieces_are_of_one_call() -> None:
    assert call_at([F, N, F, A, F, A, F, S], 5) == range(7)


def test_a_long_text_before_a_call_is_not_of_it() -> None:
    """Where everything is trained, what others say is format, too."""
    regions = [*[F] * 100, N, F, A, F, S]
    assert call_at(regions, 50) is None
    assert call_at(regions, 102) == range(76, 104)


def test_no_call_is_cut_where_there_is_none() -> None:
    assert call_at([C, F, Region.CONTENT, F, S], 2) is None
    assert call_at([], 0) is None


@pytest.fixture(scope="module")
def examples() -> Examples:
    @cache
    def encoded(train_on: TrainOn) -> Dataset:
        row = next(row for row in tool_rows() if any(len(m.get("tool_calls") or []) > 1 for m in row["messages"]))
        return prepare_dataset(Dataset.from_list([row]), ConversationEncoder(tiny_tokenizer(), train_on=train_on))

    return encoded


@pytest.mark.parametrize("train_on", [TrainOn.ASSISTANT, TrainOn.ALL])
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_wherever_the_cut_is_only_whole_calls_are_trained(examples: Examples, train_on: TrainOn, mode: str) -> None:
    tokenizer, whole = tiny_tokenizer(), examples(train_on)[0]
    of_calls = [place for place, region in enumerate(whole["regions"]) if region in (N, A)]
    cuts = range(of_calls[0] - 2, of_calls[-1] + 3)
    untrained = 0
    for cut in cuts:
        part = slice(None, cut) if mode == "keep_start" else slice(cut, None)
        length = len(whole["input_ids"][part])
        for example in cut_stream(examples(train_on).to_iterable_dataset(), length, mode, "train"):
            assert example["input_ids"] == whole["input_ids"][part]
            untrained += example["labels"] != whole["labels"][part]
            pairs = list(zip(example["labels"], example["regions"], strict=True))
            names, arguments = ([label for label, region in pairs if region == kind] for kind in (N, A))
            calls = tokenizer.decode(names).count("get_weather")
            assert tokenizer.decode(names) == "get_weather" * calls
            cities = ["Rome", "Oslo"][slice(calls) if mode == "keep_start" else slice(2 - calls, None)]
            assert tokenizer.decode(arguments) == "".join(f'{{"city": "{city}"}}' for city in cities)
    assert untrained > len(cuts) / 4


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_the_calls_that_are_cut_are_counted(examples: Examples, mode: str) -> None:
    dataset = examples(TrainOn.ALL)
    regions = dataset[0]["regions"]
    place = regions.index(A) + 2
    cut = cut_examples(dataset, place if mode == "keep_start" else len(regions) - place, mode, "train")
    assert cut.remarks[1] == "train dataset: 1 call that the cut goes through is not trained"
    whole = cut_examples(dataset, regions.index(N) - 60, "keep_start", "train")
    assert len(whole.remarks) == 1


def test_streams_are_cut_alike(examples: Examples, caplog: pytest.LogCaptureFixture) -> None:
    dataset = examples(TrainOn.ASSISTANT)
    regions = dataset[0]["regions"]
    inside = next(place for place, region in enumerate(regions) if region == A) + 1
    second = max(place for place, region in enumerate(regions) if region == A)
    assert list(cut_stream(dataset.to_iterable_dataset(), inside, "keep_start", "train")) == []
    streamed: list[Any] = list(cut_stream(dataset.to_iterable_dataset(), second, "keep_start", "train"))
    cut = cut_examples(dataset, second, "keep_start", "train")
    assert streamed == list(cut.dataset)
    assert "1 call that the cut goes through is not trained" in cut.remarks[1]
    assert "calls that the cut goes through are not trained" in caplog.text
