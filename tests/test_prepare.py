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
from deepfabric_trainer.validate import Rule
from tests.fixtures.templates import tokenizer_with
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer, tool_rows

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
    assert "2 of 4 rows cannot be trained on (1 format, 1 no-assistant)" in message
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
    assert (finding["row"], finding["data"]) == (1, BROKEN[0])
    (found, *_) = [found for found in finding["findings"] if found["severity"] == "error"]
    assert (found["row"], found["rule"], found["path"]) == (1, "no-assistant", "messages")
    assert found["found"]
    assert found["fix"]


UNDECLARED = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call("get_wether", city="Rome")]},
    ],
    "tools": TOOLS,
}


def test_rows_that_break_a_rule_are_rejected_by_its_name() -> None:
    with pytest.raises(DataFormatError, match=r"1 undeclared-tool\):\n  row 1, `messages\[1\].*get_wether"):
        prepare_dataset(to_dataset([*tool_rows()[:1], UNDECLARED]), ConversationEncoder(tiny_tokenizer()))


def test_rows_that_break_a_rule_may_be_trained_on_with_a_count() -> None:
    rows = to_dataset([*tool_rows()[:1], UNDECLARED])
    prepared, report = encode_dataset(rows, ConversationEncoder(tiny_tokenizer()), check=False)
    assert len(prepared) == 2
    assert report.findings == {Rule.UNDECLARED_TOOL: 1}
    assert any("1 of 2 rows have undeclared-tool" in sentence for sentence in report.sentences("train"))


def test_left_out_rows_are_written_where_asked_for(tmp_path: Path) -> None:
    rows = to_dataset([*tool_rows()[:1], UNDECLARED])
    path = tmp_path / "rejected.jsonl"
    prepared = prepare_dataset(rows, ConversationEncoder(tiny_tokenizer()), on_invalid="drop", rejected_path=path)
    assert len(prepared) == 1
    assert json.loads(path.read_text())["data"] == UNDECLARED


def test_weights_are_there_when_a_message_has_one() -> None:
    rows = tool_rows()[:2]
    rows[1]["messages"][1]["weight"] = 0.5
    prepared = prepare_dataset(to_dataset(rows), ConversationEncoder(tiny_tokenizer()))
    assert prepared["weights"][0] == []
    assert set(prepared["weights"][1]) == {0.5, 1.0}
    assert len(prepared["weights"][1]) == len(prepared["input_ids"][1])


def test_rows_that_are_too_long_are_left_out_whatever_the_policy(caplog: pytest.LogCaptureFixture) -> None:
    rows = tool_rows()[4:8]
    lengths = [len(ConversationEncoder(tiny_tokenizer()).encode(row)[0].input_ids) for row in rows]
    encoder = ConversationEncoder(tiny_tokenizer(), max_length=sorted(lengths)[2], truncation="drop")
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        prepared = prepare_dataset(to_dataset(rows), encoder)
    assert len(prepared) == 3
    assert "1 of 4 rows cannot be trained on (1 too-long)" in caplog.text
    assert len(list(prepare_dataset(stream(rows), encoder))) == 3


def test_what_the_template_does_to_turns_is_counted_by_reason(caplog: pytest.LogCaptureFixture) -> None:
    rows = to_dataset([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        prepare_dataset(rows, ConversationEncoder(tokenizer_with("glm4moe")))
    assert "1 trained turns stand behind an empty reasoning block that the template invents" in caplog.text
    assert "1 trained turns end without a stop token" in caplog.text


def test_a_tool_strategy_that_leaves_no_choice_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        prepare_dataset(to_dataset(tool_rows()[:4]), ConversationEncoder(tiny_tokenizer(), tool_strategy="used_only"))
    assert "4 of 4 rows: the tool strategy leaves no tool that would be a wrong one" in caplog.text


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
    assert set(next(iter(prepared))) == {"input_ids", "labels", "regions", "weights"}


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
