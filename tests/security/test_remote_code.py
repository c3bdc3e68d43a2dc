"""A model folder whose code would leave a trace if anything ran it."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.cli import main
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

_CODE = "from pathlib import Path\nPath({trace!r}).write_text('ran')\nraise SystemExit('the code of a stranger')\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture
def folder(tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = tmp_path / "model"
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(path)
    tiny_model(tokenizer).save_pretrained(path)
    (path / "strange.py").write_text(_CODE.format(trace=str(trace)))
    _edit(
        path / "config.json",
        model_type="strange",
        auto_map={
            "AutoConfig": "strange.Config",
            "AutoModelForCausalLM": "strange.Model",
            "AutoTokenizer": ["strange.Tokenizer", "strange.Tokenizer"],
        },
    )
    _edit(
        path / "tokenizer_config.json",
        tokenizer_class="StrangeTokenizer",
        auto_map={"AutoTokenizer": ["strange.Tokenizer", "strange.Tokenizer"]},
    )
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tool_rows()))
    return path


def _edit(path: Path, **more: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def test_the_trainer_runs_no_code_of_a_model(folder: Path, trace: Path, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError)):
        DeepFabricTrainer(
            model=str(folder),
            args=DeepFabricSFTConfig(output_dir=str(tmp_path / "run"), **QUIET),
            train_dataset=Dataset.from_list(tool_rows()),
        )
    assert not trace.exists()


@pytest.mark.parametrize("command", ["check", "analyze", "preview"])
def test_commands_run_no_code_of_a_tokenizer(
    command: str, folder: Path, trace: Path, rows: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main([command, str(rows), "--tokenizer", str(folder)])
    assert not trace.exists()
    assert "the code of a stranger" not in "".join(capfd.readouterr())


def test_the_command_train_runs_no_code_of_a_model(folder: Path, trace: Path, rows: Path, tmp_path: Path) -> None:
    settings = ["--model_name_or_path", str(folder), "--dataset_name_or_path", str(rows)]
    assert main(["train", *settings, "--output_dir", str(tmp_path / "run"), "--use_cpu"]) == 2
    assert not trace.exists()


def test_the_code_would_leave_its_trace(folder: Path, trace: Path) -> None:
    from transformers import AutoConfig

    with pytest.raises(SystemExit):
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert trace.exists()
