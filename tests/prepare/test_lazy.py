"""Rows that are encoded on demand: the batches of the eager way, without its start."""

import copy
import json
import logging
import multiprocessing
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from deepfabric_trainer.collators import ToolCallCollator
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.prepare.dataset import encode_dataset, prepare_dataset
from deepfabric_trainer.prepare.lazy import EncodedOnDemand
from deepfabric_trainer.prepare.reject_log import RejectLog
from deepfabric_trainer.prepare.report import RejectedRow
from deepfabric_trainer.rows import to_dataset
from deepfabric_trainer.validate import Finding, Rule
from tests.fixtures.templates import tokenizer_with
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer, tool_rows

ORDER = [3, 0, 7, 6, 2, 5, 1, 4]
LOGGER = "deepfabric_trainer.prepare.lazy"


def encoder(**options: Any) -> ConversationEncoder:
    return ConversationEncoder(tiny_tokenizer(), **options)


def undeclared() -> dict[str, Any]:
    """Return a row that calls a tool that it does not declare."""
    messages = [
        {"role": "user", "content": "Open the door."},
        {"role": "assistant", "content": "", "tool_calls": [call("open_door", door="front")]},
    ]
    return {"messages": messages, "tools": copy.deepcopy(TOOLS)}


def with_broken(*places: int) -> Dataset:
    """Return the tool rows with broken ones put in at these places."""
    rows = tool_rows()
    for place in places:
        rows.insert(place, undeclared())
    return to_dataset(rows)


def loader(dataset: Any, order: list[int], batch_size: int = 3, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size, sampler=order, collate_fn=ToolCallCollator(pad_token_id=0), **options)


def same(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(left, right, strict=True)
    )


def test_its_batches_are_those_of_the_eager_way() -> None:
    dataset = to_dataset(tool_rows())
    eager = prepare_dataset(dataset, encoder())
    lazy = EncodedOnDemand(dataset, encoder())
    assert same(list(loader(lazy, ORDER)), list(loader(eager, ORDER)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_give_the_same_batches(start: str) -> None:
    dataset = to_dataset(tool_rows())
    eager = prepare_dataset(dataset, encoder())
    lazy = EncodedOnDemand(dataset, encoder())
    given = loader(lazy, ORDER, num_workers=2, multiprocessing_context=start)
    assert same(list(given), list(loader(eager, ORDER)))


def test_it_pickles_after_use() -> None:
    dataset = to_dataset(tool_rows())
    lazy = EncodedOnDemand(dataset, encoder())
    before = lazy[6]
    assert pickle.loads(pickle.dumps(lazy))[6] == before


def test_a_row_of_several_examples_gives_them_all_in_order() -> None:
    tokenizer = tokenizer_with("qwen3")
    turns = [
        [
            {"role": "user", "content": f"Question {number}"},
            {"role": "assistant", "content": f"Answer {number}", "reasoning_content": f"Thought {number}"},
        ]
        for number in range(2)
    ]
    rows = [{"messages": turns[0] + turns[1]}, {"messages": turns[0]}]
    dataset = Dataset.from_list(rows)
    eager, _ = encode_dataset(dataset, ConversationEncoder(tokenizer))
    lazy = EncodedOnDemand(dataset, ConversationEncoder(tokenizer))
    assert len(eager) == 3
    assert len(lazy) == 2
    assert lazy.__getitems__([0, 1]) == eager.to_list()
    assert lazy.__getitems__([1, 0]) == [eager[2], eager[0], eager[1]]
    assert lazy[0] == eager[0]


class _Counting(EncodedOnDemand):
    """Counts the rows that are encoded."""

    count = 0

    def _prepare(self, numbers: list[int]) -> Any:
        self.count += len(numbers)
        return super()._prepare(numbers)


def test_nothing_is_read_or_encoded_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = to_dataset(tool_rows())
    reads: list[Any] = []
    original = Dataset._getitem
    monkeypatch.setattr(Dataset, "_getitem", lambda self, key, **_: reads.append(key) or original(self, key))
    lazy = _Counting(dataset, encoder())
    assert len(lazy) == 8
    assert lazy.column_names == ["input_ids", "labels", "regions", "weights"]
    assert list(lazy.features) == lazy.column_names
    assert (reads, lazy.count) == ([], 0)
    next(iter(loader(lazy, ORDER)))
    assert (reads, lazy.count) == ([ORDER[:3]], 3)


def test_rows_are_counted_from_both_ends() -> None:
    lazy = EncodedOnDemand(to_dataset(tool_rows()), encoder())
    assert lazy[-1] == lazy[7]
    assert len(list(iter(lazy))) == 8
    with pytest.raises(IndexError, match="there is no row 8"):
        lazy[8]


def test_a_broken_row_stops_the_run_when_its_turn_comes() -> None:
    lazy = EncodedOnDemand(with_broken(4), encoder())
    assert len(lazy.__getitems__([0, 1, 2])) == 3
    with pytest.raises(DataFormatError, match=r"train dataset, row 4, .*open_door.*To fix it: .*on_invalid="):
        lazy.__getitems__([3, 4])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_broken_row_stops_the_run_from_a_worker() -> None:
    lazy = EncodedOnDemand(with_broken(4), encoder())
    with pytest.raises(DataFormatError, match=r"row 4, .*open_door"):
        list(loader(lazy, list(range(9)), num_workers=2))


def test_dropped_rows_are_named_and_written_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "out" / "rejected.jsonl"
    dataset = with_broken(1, 4)
    lazy = EncodedOnDemand(dataset, encoder(), on_invalid="drop", rejected_path=path)
    eager = prepare_dataset(dataset, encoder(), on_invalid="drop")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        epochs = [lazy.__getitems__([0, 1, 2, 3, 4]) + lazy.__getitems__([5, 6, 7, 8, 9]) for _ in range(2)]
    assert epochs[0] == epochs[1] == eager.to_list()
    assert [record.getMessage()[:32] for record in caplog.records] == [
        "train dataset: left out: row 1, ",
        "train dataset: left out: row 4, ",
    ]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["row"] for line in lines] == [1, 4]
    assert lines[0]["data"] == dataset[1]
    assert lines[0]["findings"][0]["row"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_write_each_row_once(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    dataset = with_broken(0, 1, 5, 6, 9)
    eager = prepare_dataset(dataset, encoder(), on_invalid="drop")
    lazy = EncodedOnDemand(dataset, encoder(), on_invalid="drop", rejected_path=path)
    for _ in range(2):
        batches = list(loader(lazy, list(range(13)), batch_size=13, num_workers=2))
        assert same(batches, list(loader(eager, list(range(8)), batch_size=8)))
        list(loader(lazy, [*range(13), *range(13)], batch_size=3, num_workers=2))
    assert sorted(json.loads(line)["row"] for line in path.read_text().splitlines()) == [0, 1, 5, 6, 9]


def test_a_new_run_keeps_the_file_of_the_last_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    path.write_text('{"row": 3, "findings": [], "data": {}}\n')
    EncodedOnDemand(with_broken(1), encoder(), on_invalid="drop", rejected_path=path, starts_run=False)
    assert path.exists()
    lazy = EncodedOnDemand(with_broken(3), encoder(), on_invalid="drop", rejected_path=path)
    assert not path.exists()
    lazy.__getitems__([2, 3])
    assert json.loads(path.read_text())["data"] != {}
    assert (tmp_path / "rejected.previous.jsonl").exists()


def test_rows_that_are_too_long_are_left_out_where_the_settings_say_so(caplog: pytest.LogCaptureFixture) -> None:
    rows = tool_rows()
    rows[2]["messages"][0]["content"] = "long " * 2000
    lazy = EncodedOnDemand(to_dataset(rows), encoder(max_length=4000, truncation="drop"))
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        assert len(lazy.__getitems__([1, 2, 3])) == 2
    assert "row 2: the row has" in caplog.text


def test_rules_that_are_not_checked_let_a_row_through() -> None:
    assert len(EncodedOnDemand(with_broken(1), encoder(), check=False).__getitems__([0, 1])) == 2


def test_the_next_row_takes_the_place_of_an_empty_batch(caplog: pytest.LogCaptureFixture) -> None:
    dataset = with_broken(3, 4, 5, 10)
    lazy = EncodedOnDemand(dataset, encoder(), on_invalid="drop")
    with caplog.at_level(logging.WARNING, logger=LOGGER):
        assert lazy.__getitems__([3, 4]) == [lazy[6]]
        assert "no row of a batch (3, 4) can be trained on; row 6 takes its place" in caplog.text
        assert lazy.__getitems__([10]) == [lazy[11]]
    lazy = EncodedOnDemand(with_broken(8), encoder(), on_invalid="drop")
    assert lazy.__getitems__([8]) == [lazy[0]]


def test_a_dataset_without_a_row_to_train_on_is_an_error() -> None:
    lazy = EncodedOnDemand(to_dataset([undeclared(), undeclared()]), encoder(), on_invalid="drop")
    with pytest.raises(DataFormatError, match="none of the 2 rows can be trained on"):
        lazy.__getitems__([0])
    with pytest.raises(DataFormatError, match="row 1"):
        lazy[1]


def test_it_reads_through_selections_and_keeps_weights() -> None:
    rows = tool_rows()
    rows[5]["messages"][1]["weight"] = 0.5
    dataset = to_dataset(rows).select([7, 5, 3])
    lazy = EncodedOnDemand(dataset, encoder())
    eager = prepare_dataset(dataset, encoder())
    assert lazy[1] == eager[1]
    assert "weights" not in lazy[0]


def test_examples_are_shown_to_whoever_wants_to_refuse_them() -> None:
    def refuse(example: dict[str, Any]) -> None:
        if "weights" in example:
            raise ConfigError("weights cannot be heeded")

    rows = tool_rows()
    rows[5]["messages"][1]["weight"] = 0.5
    plain = EncodedOnDemand(to_dataset(rows), encoder())
    looked_at = plain.looked_at_by(refuse)
    assert looked_at[4] == plain[4]
    with pytest.raises(ConfigError, match="heeded"):
        looked_at.__getitems__([4, 5])
    assert "weights" in plain[5]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_invalid"):
        EncodedOnDemand(to_dataset(tool_rows()), encoder(), on_invalid="skip")


def _add_all(path: Path, start: int) -> None:
    log = RejectLog(path)
    for number in range(200):
        row = (start + number) % 200
        log.add(RejectedRow(row, [Finding(row, "messages", Rule.FORMAT, "x" * 5000, "y")]), {"messages": []})


@pytest.mark.slow
def test_processes_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rejected.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=partial(_add_all, path, start)) for start in (0, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == list(range(200))
