import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.prepare import encode_dataset, prepare_dataset, write_rejected
from deepfabric_trainer.rows import to_dataset
from deepfabric_trainer.schema import Repair
from tests.fixtures.templates import tokenizer_with
from tests.fixtures.tiny import tiny_tokenizer, tool_rows

BROKEN: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": "no answer"}], "tools": None}]


@pytest.mark.parametrize("num_proc", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_every_row_is_encoded_in_the_order_given(num_proc: int | None) -> None:
    encoder = ConversationEncoder(tiny_tokenizer())
    prepared = prepare_dataset(to_dataset(tool_rows()), encoder, num_proc=num_proc)
    expected = [encoder.encode(row)[0] for row in tool_rows()]
    assert prepared.column_names == ["input_ids", "labels", "regions"]
    assert [row["input_ids"] for row in prepared] == [example.input_ids for example in expected]
    assert [row["labels"] for row in prepared] == [example.labels for example in expected]
    assert [row["regions"] for row in prepared] == [example.regions for example in expected]


def test_a_row_that_is_split_gives_all_its_examples() -> None:
    turns = [
        message
        for text in ("one", "two")
        for message in (
            {"role": "user", "content": text},
            {"role": "assistant", "content": text, "reasoning_content": f"because {text}"},
        )
    ]
    prepared, report = encode_dataset(
        Dataset.from_list([{"messages": turns}]), ConversationEncoder(tokenizer_with("qwen3"))
    )
    assert len(prepared) == report.examples == 2
    assert report.rows == 1


def test_broken_rows_are_counted_and_named_before_anything_is_trained() -> None:
    rows = to_dataset([*tool_rows()[:2], *BROKEN, {"messages": [], "tools": None}])
    with pytest.raises(DataFormatError) as caught:
        prepare_dataset(rows, ConversationEncoder(tiny_tokenizer()))
    message = str(caught.value)
    assert "2 of 4 rows cannot be trained on (2 DataFormatError)" in message
    assert "row 2, `messages`: the conversation has no assistant turn" in message
    assert "row 3, `messages`: the conversation is empty" in message
    assert '`on_invalid="drop"` in `DeepFabricSFTConfig`' in message


def test_broken_rows_are_left_out_by_choice_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    rows = to_dataset([*BROKEN, *tool_rows()[:2]])
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        prepared = prepare_dataset(rows, ConversationEncoder(tiny_tokenizer()), on_invalid="drop")
    assert len(prepared) == 2
    assert "1 of 3 rows cannot be trained on" in caplog.text


def test_nothing_left_to_train_is_an_error_whatever_the_choice() -> None:
    with pytest.raises(DataFormatError, match="1 of 1 rows"):
        prepare_dataset(to_dataset(BROKEN), ConversationEncoder(tiny_tokenizer()), on_invalid="drop")


def test_rejected_rows_are_written_with_their_findings(tmp_path: Path) -> None:
    rows = to_dataset([*tool_rows()[:1], *BROKEN])
    _, report = encode_dataset(rows, ConversationEncoder(tiny_tokenizer()))
    write_rejected(tmp_path / "new" / "rejected.jsonl", rows, report.rejected)
    (line,) = (tmp_path / "new" / "rejected.jsonl").read_text().splitlines()
    finding = json.loads(line)
    assert (finding["row"], finding["error"], finding["path"]) == (1, "DataFormatError", "messages")
    assert finding["data"] == BROKEN[0]


def test_repairs_are_counted_by_row_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    rows = tool_rows()[:3]
    for row in rows[:2]:
        function = row["messages"][1]["tool_calls"][0]["function"]
        function["arguments"] = json.dumps(function["arguments"])
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        prepare_dataset(to_dataset(rows), ConversationEncoder(tiny_tokenizer()))
    assert caplog.messages == [f"train dataset: 2 of 3 rows: {Repair.ARGUMENTS_JSON}"]


def test_shortened_rows_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    row = tool_rows()[0]
    long = {**row, "messages": row["messages"] * 3}
    limit = len(ConversationEncoder(tiny_tokenizer()).encode(row)[0].input_ids)
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        prepared = prepare_dataset(to_dataset([row, long]), ConversationEncoder(tiny_tokenizer(), max_length=limit))
    assert prepared[0] == prepared[1]
    assert "1 of 2 rows are longer than `max_length`" in caplog.text
    assert "4 messages in all" in caplog.text


def stream(rows: list[dict[str, Any]]) -> IterableDataset:
    return to_dataset(rows).to_iterable_dataset()


def test_streams_give_the_same_examples() -> None:
    encoder = ConversationEncoder(tiny_tokenizer())
    prepared = prepare_dataset(stream(tool_rows()), encoder)
    assert [row["input_ids"] for row in prepared] == [encoder.encode(row)[0].input_ids for row in tool_rows()]
    assert set(next(iter(prepared))) == {"input_ids", "labels", "regions"}


def test_a_broken_row_ends_a_stream_or_is_left_out_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    rows = [*tool_rows()[:1], *BROKEN]
    with pytest.raises(DataFormatError, match="row 1, `messages`"):
        list(prepare_dataset(stream(rows), ConversationEncoder(tiny_tokenizer())))
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        assert len(list(prepare_dataset(stream(rows), ConversationEncoder(tiny_tokenizer()), on_invalid="drop"))) == 1
    assert "row 1" in caplog.text


def test_a_policy_that_does_not_exist_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="on_invalid is 'ignore'"):
        prepare_dataset(to_dataset(BROKEN), ConversationEncoder(tiny_tokenizer()), on_invalid="ignore")
