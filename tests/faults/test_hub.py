"""The Hub is not reached."""

import errno
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
import torch
from datasets import Dataset

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer, HubError
from deepfabric_trainer.checkpoints import find_defect
from deepfabric_trainer.cli import main
from deepfabric_trainer.cli.load import load_tokenizer
from deepfabric_trainer.errors import CheckpointError
from deepfabric_trainer.rows import load_rows, to_dataset
from tests.faults.runs import make_trainer
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

ADVICE = "give the path of a local copy, or fetch it where there is a connection"


def test_a_model_that_is_not_here_is_named(tmp_path: Path) -> None:
    args = DeepFabricSFTConfig(str(tmp_path), **QUIET)
    with pytest.raises(HubError) as error:
        DeepFabricTrainer("some/model", args=args, train_dataset=to_dataset(tool_rows()))
    words = str(error.value)
    assert words.startswith("the model 'some/model' is not on this machine, and the Hub was not reached (HF_HUB_OFF")
    assert ADVICE in words


def test_a_tokenizer_that_is_not_beside_its_model_is_named(tmp_path: Path) -> None:
    tiny_model(tiny_tokenizer()).save_pretrained(tmp_path / "model")

    def from_pretrained(*args: Any, **options: Any) -> None:
        raise OSError("We couldn't connect to the Hub") from httpx.ConnectError("refused")

    args = DeepFabricSFTConfig(str(tmp_path / "run"), **QUIET)
    with (
        mock.patch("trl.trainer.sft_trainer.AutoProcessor.from_pretrained", from_pretrained),
        pytest.raises(HubError, match=r"the model or its tokenizer '.*model' is not on this machine"),
    ):
        DeepFabricTrainer(str(tmp_path / "model"), args=args, train_dataset=to_dataset(tool_rows()))


def test_a_dataset_or_tokenizer_that_is_not_here_is_named() -> None:
    with pytest.raises(HubError, match=f"the dataset 'some/rows' is not on this machine.*{ADVICE}"):
        load_rows("some/rows")
    with pytest.raises(HubError, match=f"the tokenizer 'some/model' is not on this machine.*{ADVICE}"):
        load_tokenizer("some/model")


def test_commands_say_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "some/rows"]) == 2
    options = ["--model_name_or_path", "some/model", "--dataset_name_or_path", str(tmp_path / "rows.jsonl")]
    assert main(["train", *options, "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" is not")[0] for line in lines] == [
        "deepfabric-trainer: the dataset 'some/rows'",
        "deepfabric-trainer: the model 'some/model'",
    ]


def test_other_errors_of_loading_are_not_taken_for_it(tmp_path: Path) -> None:
    with (
        mock.patch(
            "deepfabric_trainer.training_rows.encoder.AutoConfig.from_pretrained", side_effect=OSError("gated")
        ),
        pytest.raises(OSError, match="gated") as error,
    ):
        DeepFabricTrainer("some/model", args=DeepFabricSFTConfig(str(tmp_path), **QUIET), train_dataset=None)
    assert not isinstance(error.value, HubError)


def test_a_stream_that_breaks_off_is_not_taken_for_the_model(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")

    def rows() -> Iterator[Any]:
        yield from tool_rows()[:1]
        raise httpx.ConnectError("refused")

    with pytest.raises(httpx.ConnectError):
        DeepFabricTrainer(
            str(tmp_path / "model"),
            args=DeepFabricSFTConfig(str(tmp_path / "run"), max_steps=1, packing=True, **QUIET),
            processing_class=tokenizer,
            train_dataset=Dataset.from_generator(rows, streaming=True),
        ).train()


@pytest.fixture
def hub() -> Any:
    """The Hub as `transformers.Trainer` talks to it; what it does is up to the test."""
    api = mock.Mock()
    api.create_repo.return_value = mock.Mock(repo_id="me/run")
    with mock.patch("transformers.trainer.hf_api", return_value=api):
        yield api


def test_a_run_that_will_push_does_not_start_without_the_hub(tmp_path: Path, hub: Any) -> None:
    hub.create_repo.side_effect = httpx.ConnectError("refused")
    with pytest.raises(HubError, match=r"no pushing to 'me/run': the Hub was not reached.*push_to_hub=False"):
        make_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="me/run")


def test_a_push_that_fails_at_the_end_leaves_the_model_on_disk(tmp_path: Path, hub: Any) -> None:
    trainer = make_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="me/run", hub_strategy="end")
    trainer.train()
    hub.upload_folder.side_effect = httpx.ConnectTimeout("no answer")
    with pytest.raises(HubError) as error:
        trainer.save_model()
    folder = tmp_path / "run"
    assert f"nothing was pushed; the model is saved in {folder}" in str(error.value)
    assert f"`hf upload me/run {folder}`" in str(error.value)
    assert (folder / "model.safetensors").is_file()
    hub.upload_folder.side_effect = PermissionError("read-only token")
    with pytest.raises(PermissionError) as refused:
        trainer.push_to_hub()
    assert refused.value.__notes__ == [f"the model is saved in {folder}"]


def test_a_push_that_fails_in_the_background_is_said_and_the_run_goes_on(
    tmp_path: Path, hub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    failed: Future[None] = Future()
    failed.set_exception(httpx.ConnectError("refused"))
    hub.upload_folder.return_value = failed
    trainer = make_trainer(
        tmp_path / "run", push_to_hub=True, hub_model_id="me/run", save_strategy="steps", save_steps=1
    )
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer.train()
    assert trainer.state.global_step == 2
    said = [
        message for message in caplog.messages if "a checkpoint was not pushed to the Hub (ConnectError" in message
    ]
    assert len(said) == 2


def test_a_full_disk_while_a_checkpoint_is_copied_for_its_push_leaves_it_whole(tmp_path: Path, hub: Any) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    trainer = make_trainer(tmp_path, push_to_hub=True, hub_model_id="me/run", save_strategy="steps", save_steps=1)
    with (
        mock.patch("transformers.trainer.shutil.copy", side_effect=full),
        pytest.raises(CheckpointError, match="what is pushed cannot be written: No space left"),
    ):
        trainer.train()
    assert find_defect(tmp_path / "checkpoint-1") is None


def test_the_arguments_that_are_pushed_are_those_of_the_run(tmp_path: Path, hub: Any) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "hub_always_push": True}
    trainer = make_trainer(tmp_path, push_to_hub=True, hub_model_id="me/run", **options)
    trainer.train()
    kept = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert kept.save_total_limit == trainer.args.save_total_limit == 1
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
