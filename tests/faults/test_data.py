"""Rows, files of rows and caches of rows that are broken."""

import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pytest

from deepfabric_trainer import ConfigError, ConversationEncoder, DataFormatError, prepare_dataset
from deepfabric_trainer.cli import main
from deepfabric_trainer.prepare import encode_dataset
from deepfabric_trainer.prepare.rows import RowPreparer
from deepfabric_trainer.rows import load_rows, to_dataset
from tests.faults.runs import make_trainer
from tests.fixtures.tiny import tiny_tokenizer, tool_rows


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of `datasets` for this test alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_a_broken_line_is_named_with_its_file_and_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", tool_rows())
    with path.open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "Hi')
    with pytest.raises(DataFormatError, match=r"rows\.jsonl, line 9: not JSON: .*column 43"):
        load_rows(str(path))
    options = ["--dataset_name_or_path", str(path), "--output_dir", str(tmp_path / "run"), "--use_cpu"]
    with mock.patch("deepfabric_trainer.cli.train.AutoConfig"):
        code = main(["train", *options, "--bf16", "false", "--model_name_or_path", "any"])
    assert code == 2
    assert "rows.jsonl, line 9: not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("left", [0, 10, 0.3, 0.6, "first batch", -1])
def test_examples_whose_cache_is_cut_off_are_made_anew(
    cache: Path, caplog: pytest.LogCaptureFixture, left: Any
) -> None:
    rows, encoder = to_dataset(tool_rows() * 40), ConversationEncoder(tiny_tokenizer())
    examples, report = encode_dataset(rows, encoder)
    expected = examples.to_list()
    (file,) = [Path(file["filename"]) for file in examples.cache_files]
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(cut(content, left))
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        again, report_again = encode_dataset(rows, encoder)
    assert again.to_list() == expected
    assert report_again == report
    assert [message for message in caplog.messages if str(file) in message and "is damaged" in message]
    assert file.read_bytes() == content


def cut(content: bytes, left: Any) -> bytes:
    """Return the beginning of a file: so many bytes, or a part of it, or what stands before its second batch."""
    if left == "first batch":
        # Each message of an Arrow stream begins with this mark: the schema, then the batches.
        return b"\xff\xff\xff\xff".join(content.split(b"\xff\xff\xff\xff")[:3])
    return content[: int(left * len(content)) if isinstance(left, float) else left]


def test_a_cache_of_datasets_that_is_cut_off_is_named_with_what_to_delete(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    to_dataset(tool_rows()).to_parquet(str(path))
    (file,) = [Path(file["filename"]) for file in load_rows(str(path)).cache_files]
    content = file.read_bytes()
    for size in (10, len(content) // 2):
        file.unlink()
        file.write_bytes(content[:size])
        with pytest.raises(ConfigError, match=rf"what is cached of .*rows\.parquet' is damaged.*delete.*{cache}"):
            load_rows(str(path))


def test_rows_whose_file_is_no_parquet_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    to_dataset(tool_rows()).to_parquet(str(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataFormatError, match=r"rows\.parquet: not a Parquet file"):
        load_rows(str(path))


@pytest.fixture
def failing_row() -> Iterator[int]:
    """The number of a row for which preparation fails, as a mistake in this library or a full memory makes it."""
    prepare = RowPreparer._prepare

    def fail(self: RowPreparer, number: int, row: Any) -> Any:
        if number == 5:
            raise MemoryError("no room")
        return prepare(self, number, row)

    with mock.patch.object(RowPreparer, "_prepare", fail):
        yield 5


@pytest.mark.usefixtures("cache")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("preparation", ["eager", "lazy"])
def test_a_row_that_raises_in_a_worker_is_named(tmp_path: Path, failing_row: int, preparation: str) -> None:
    workers = {"dataset_num_proc": 2} if preparation == "eager" else {"dataloader_num_workers": 1}
    with pytest.raises(MemoryError) as error:
        make_trainer(tmp_path, preparation=preparation, **workers).train()
    said = [str(error.value), *getattr(error.value, "__notes__", ())]
    assert [words for words in said if f"while row {failing_row} of the dataset was prepared" in words]


@pytest.fixture
def without_dumps() -> Iterator[None]:
    """Keep what dies in a fork of the pool's own thread, beside the process that is killed, from writing its stack."""
    faulthandler.disable()
    yield
    faulthandler.enable(sys.__stderr__)


@pytest.mark.usefixtures("cache", "without_dumps")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_process_that_prepares_rows_ends_the_run_with_its_likely_cause(tmp_path: Path) -> None:
    main_process = os.getpid()

    def die(self: RowPreparer, number: int, row: Any) -> Any:
        assert os.getpid() != main_process
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        mock.patch.object(RowPreparer, "_prepare", die),
        pytest.raises(RuntimeError, match="subprocesses has abruptly died") as error,
    ):
        make_trainer(tmp_path, dataset_num_proc=2)
    assert "when memory runs out: take fewer `dataset_num_proc`" in error.value.__notes__[0]


def test_rejected_rows_that_cannot_be_written_do_not_hide_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = to_dataset([*tool_rows(), {"messages": [{"role": "user", "content": "?"}], "tools": None}])
    encoder, nowhere = ConversationEncoder(tiny_tokenizer()), tmp_path / "file" / "rejected.jsonl"
    nowhere.parent.write_text("no folder")
    with pytest.raises(DataFormatError, match="1 of 9 rows cannot be trained on"):
        prepare_dataset(rows, encoder, rejected_path=nowhere)
    assert len(prepare_dataset(rows, encoder, rejected_path=nowhere, on_invalid="drop")) == 8
    said = [message for message in caplog.messages if "cannot be written" in message]
    assert len(said) == 2
    assert all("the rejected rows are 8" in message for message in said)


def test_rejected_rows_of_a_run_that_encodes_on_demand_are_then_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"messages": [{"role": "user", "content": "?"}], "tools": None}
    trainer = make_trainer(
        tmp_path / "run",
        train_dataset=to_dataset([*tool_rows(), broken, broken]),
        preparation="lazy",
        on_invalid="drop",
        shuffle_dataset=False,
        num_train_epochs=1,
        max_steps=-1,
    )
    (tmp_path / "run" / "rejected.jsonl").mkdir()
    trainer.train()
    assert trainer.state.global_step == 3
    assert len([message for message in caplog.messages if "rejected.jsonl cannot be written" in message]) == 1
    for row in (8, 9):
        assert len([message for message in caplog.messages if f"left out: row {row}" in message]) == 1
