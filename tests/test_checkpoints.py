"""Whole and half-written checkpoints."""

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch
import torch
from trl import SFTTrainer

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.checkpoints import (
    FILE_LIST,
    UNFINISHED,
    begin_checkpoint,
    choose_checkpoint,
    delete_older,
    find_defect,
    finish_checkpoint,
    last_checkpoint,
)
from deepfabric_trainer.errors import CheckpointError, ConfigError
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json")


def write_files(folder: Path) -> Path:
    """Write a checkpoint as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({"weight": torch.ones(50, 4)}, folder / "model.safetensors", {"format": "pt"})
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(100)}, folder / name)
    for name in ("config.json", "trainer_state.json"):
        (folder / name).write_text(json.dumps({"global_step": 1}))
    return folder


def write_whole(folder: Path) -> Path:
    begin_checkpoint(folder)
    write_files(folder)
    finish_checkpoint(folder)
    return folder


WRITERS = pytest.mark.parametrize("write", [write_files, write_whole])


@WRITERS
def test_a_whole_checkpoint_is_whole(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    assert find_defect(write(tmp_path / "checkpoint-1")) is None


@WRITERS
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_is_found(tmp_path: Path, write: Callable[[Path], Path], name: str) -> None:
    folder = write(tmp_path / "checkpoint-1")
    size = (folder / name).stat().st_size
    for length in (size - 1, size // 2, 3, 0):
        os.truncate(folder / name, length)
        assert name in (find_defect(folder) or "")


@WRITERS
@pytest.mark.parametrize("name", ["trainer_state.json", "scheduler.pt"])
def test_a_file_that_is_missing_is_found(tmp_path: Path, write: Callable[[Path], Path], name: str) -> None:
    folder = write(tmp_path / "checkpoint-1")
    (folder / name).unlink()
    assert f"`{name}`" in (find_defect(folder) or "")


def test_a_missing_shard_is_found(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "checkpoint-1")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "`model-00002-of-00002.safetensors`, which is missing" in (find_defect(folder) or "")


def test_a_checkpoint_is_not_whole_before_its_end_even_where_one_was_before(tmp_path: Path) -> None:
    folder = write_whole(tmp_path / "checkpoint-1")
    begin_checkpoint(folder)
    assert UNFINISHED in (find_defect(folder) or "")
    finish_checkpoint(folder)
    assert find_defect(folder) is None
    (folder / FILE_LIST).write_text("{")
    assert "cannot be read" in (find_defect(folder) or "")


def test_a_checkpoint_is_not_whole_before_its_files_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint-1"
    begin_checkpoint(folder)
    write_files(folder)
    monkeypatch.setattr(os, "replace", mock.Mock(side_effect=InterruptedError))
    with pytest.raises(InterruptedError):
        finish_checkpoint(folder)
    assert UNFINISHED in (find_defect(folder) or "")


def test_a_run_that_was_killed_in_its_first_save_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert last_checkpoint(tmp_path) is None
    begin_checkpoint(tmp_path / "checkpoint-2")
    assert last_checkpoint(tmp_path) is None
    assert "checkpoint-2 is not whole and is passed over" in caplog.text
    write_whole(tmp_path / "checkpoint-1")
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-1")


def test_older_ones_are_deleted_but_neither_the_new_nor_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        folder = write_whole(tmp_path / f"checkpoint-{step}")
        os.utime(folder, (step, step))
    os.utime(folder, (0, 0))  # the clock was set back
    for limit in (None, 0, 4):
        delete_older(folder, limit, None)
        assert len(list(tmp_path.iterdir())) == 4
    delete_older(folder, 3, str(tmp_path / "checkpoint-1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    delete_older(folder, 1, str(tmp_path / "checkpoint-1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"]
    delete_older(folder, 1, None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_the_newest_whole_one_is_chosen_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (9, 10, 20, 100):
        write_whole(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-100" / "optimizer.pt").unlink()
    begin_checkpoint(tmp_path / "checkpoint-20")
    (tmp_path / "checkpoint-best").mkdir()
    with caplog.at_level(logging.WARNING):
        assert choose_checkpoint(True, tmp_path) == str(tmp_path / "checkpoint-10")
    assert [record.getMessage().split(" is not whole")[0] for record in caplog.records] == [
        str(tmp_path / "checkpoint-100"),
        str(tmp_path / "checkpoint-20"),
    ]
    assert "`optimizer.pt` is missing" in caplog.text


def test_what_cannot_be_gone_on_from_is_an_error(tmp_path: Path) -> None:
    whole, broken = write_whole(tmp_path / "checkpoint-1"), write_whole(tmp_path / "checkpoint-2")
    os.truncate(broken / "optimizer.pt", 10)
    with pytest.raises(ConfigError, match=r"not whole: `optimizer.pt` has 10 bytes of .* go on from '.*checkpoint-1'"):
        choose_checkpoint(str(broken), tmp_path)
    os.truncate(whole / "optimizer.pt", 10)
    with pytest.raises(ConfigError, match="none of the 2 checkpoints"):
        choose_checkpoint(True, tmp_path)


@pytest.mark.parametrize(("wanted", "chosen"), [(None, None), (False, None), (True, True), ("nowhere", "nowhere")])
def test_where_there_is_nothing_to_choose_from_the_parent_decides(tmp_path: Path, wanted: Any, chosen: Any) -> None:
    assert choose_checkpoint(wanted, tmp_path) == chosen


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def make(kind: type = DeepFabricTrainer, **options: Any) -> Any:
        tokenizer = tiny_tokenizer()
        args = DeepFabricSFTConfig(
            str(tmp_path / "run"),
            **{**QUIET, "max_steps": 2, "save_strategy": "steps", "save_steps": 1, **options},
        )
        return kind(
            model=tiny_model(tokenizer),
            processing_class=tokenizer,
            args=args,
            train_dataset=to_dataset(tool_rows()),
        )

    return make


@pytest.mark.slow
def test_a_checkpoint_of_trl_is_gone_on_from_and_the_tokens_go_on_being_counted(make: Any, tmp_path: Path) -> None:
    rows = [{"input_ids": [number, 1, 2, 3], "labels": [-100, 1, 2, 3]} for number in range(8)]
    theirs = make(SFTTrainer, max_length=None)
    theirs.train_dataset = to_dataset(rows)
    theirs.train()
    assert find_defect(tmp_path / "run" / "checkpoint-1") is None
    ours = make(max_steps=3)
    ours.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    counted = [entry["num_tokens"] for entry in ours.state.log_history if "num_tokens" in entry]
    assert counted == sorted(counted)
    assert ours.state.global_step == 3


class _Full:
    """A disk that takes half of a file, and no more."""

    def __init__(self, name: str, step: int) -> None:
        self.name, self.step = name, step
        self.save = torch.save

    def __call__(self, content: Any, file: Any, *args: Any, **options: Any) -> None:
        self.save(content, file, *args, **options)
        if str(file).endswith(f"checkpoint-{self.step}{os.sep}{self.name}"):
            os.truncate(file, Path(file).stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


@pytest.mark.parametrize("limit", [None, 1])
def test_a_full_disk_is_an_error_that_says_so_and_leaves_the_checkpoint_before(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr(torch, "save", _Full("optimizer.pt", 2))
    trainer = make(save_total_limit=limit)
    with pytest.raises(CheckpointError) as caught:
        trainer.train()
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'run' / 'checkpoint-2'}: the checkpoint cannot be written: No space left")
    assert "MB are free" in text
    assert "go on from checkpoint-1 with `trainer.train(resume_from_checkpoint=True)`" in text
    assert isinstance(caught.value, OSError)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert find_defect(tmp_path / "run" / "checkpoint-1") is None
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "No space left on device" in report["error"]
    assert trainer.args.save_total_limit == limit
    monkeypatch.undo()
    resumed = make()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2


@pytest.mark.parametrize("what", ["checkpoint", "model"])
def test_a_limit_of_the_system_is_met_in_the_middle_of_the_weights(make: Any, tmp_path: Path, what: str) -> None:
    resource = pytest.importorskip("resource")
    trainer = make(run_report=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=f"the {what} cannot be written: .*[Ff]ile too large"):
            trainer.train() if what == "checkpoint" else trainer.save_model(str(tmp_path / "model"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_clock_that_is_set_back_does_not_make_the_new_checkpoint_the_oldest(make: Any, tmp_path: Path) -> None:
    before = write_whole(tmp_path / "run" / "checkpoint-9")
    os.utime(before, (2**32, 2**32))
    make(max_steps=1, save_total_limit=1).train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]


def test_the_state_of_a_run_that_cannot_be_written_is_an_error_that_says_so(make: Any) -> None:
    trainer = make()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        mock.patch.object(trainer.state, "save_to_json", side_effect=full),
        pytest.raises(CheckpointError, match="the state of the run cannot be written: No space left"),
    ):
        trainer.save_state()


def test_a_loss_that_a_script_logs_stays_as_it_is(make: Any) -> None:
    trainer = make()
    trainer.log({"train_loss": 7.0})
    assert trainer.state.log_history[-1]["train_loss"] == 7.0


def test_older_checkpoints_are_deleted_when_the_new_one_is_whole(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = []

    def watch(folder: Path) -> None:
        there.append(sorted(path.name for path in folder.parent.glob("checkpoint-*")))
        finish_checkpoint(folder)

    monkeypatch.setattr("deepfabric_trainer.resumable.finish_checkpoint", watch)
    make(save_total_limit=1, max_steps=3).train()
    assert there == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    kept = torch.load(tmp_path / "run" / "checkpoint-3" / "training_args.bin", weights_only=False)
    assert kept.save_total_limit == 1
