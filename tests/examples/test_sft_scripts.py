import difflib
import json
import runpy
import sys
from pathlib import Path

import pytest

from examples.make_tiny_model import make_tiny_model
from tests.fixtures.tiny import tiny_tokenizer
from tests.parity.runs import assert_same_history
from tests.parity.samples import CHATS

ROOT = Path(__file__).parents[2]
SCRIPTS = ("sft_with_trl.py", "sft_with_deepfabric.py")


def test_the_scripts_differ_in_the_import_of_the_trainer() -> None:
    theirs, ours = ((ROOT / "examples" / name).read_text().splitlines() for name in SCRIPTS)
    changed = [line for line in difflib.ndiff(theirs, ours) if line[:1] in "+-" and line[2:]]
    assert changed == [
        "- from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config",
        "+ from trl import ModelConfig, SFTConfig, TrlParser, get_peft_config",
        "+ from deepfabric_trainer import DeepFabricTrainer as SFTTrainer",
    ]


@pytest.mark.slow
def test_the_scripts_log_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    make_tiny_model(str(tmp_path / "tokenizer"), str(tmp_path / "model"))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, CHATS)))
    histories = []
    for script in SCRIPTS:
        output = tmp_path / script
        options = {
            "dataset_path": tmp_path / "rows.jsonl",
            "model_name_or_path": tmp_path / "model",
            "output_dir": output,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "max_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
        histories.append(json.loads((output / "trainer_state.json").read_text())["log_history"])
    assert len(histories[0]) == 3
    assert_same_history(histories[1], histories[0])
