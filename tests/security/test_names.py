from pathlib import Path

import pytest
from datasets import Dataset

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.callbacks._sinks.run_file import RunFile
from deepfabric_trainer.file_names import file_name
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

NAMES = [
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "x" * 5000,
    "é",
    "\ud800",
    "C:x",
    "~/x",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"rejected_{file_name(name)}.jsonl"
    path.write_text("")
    assert path.resolve().parent == tmp_path.resolve()
    assert len(path.name) < 120


def test_different_names_stay_different() -> None:
    assert len({file_name(name) for name in NAMES}) == len(NAMES)
    assert file_name("held_out-2.1") == "held_out-2.1"


def test_the_name_of_an_evaluation_set_makes_no_path(tmp_path: Path) -> None:
    rows = tool_rows()
    broken = {"messages": [{"role": "user", "content": "Hi"}], "tools": None}
    tokenizer = tiny_tokenizer()
    output = tmp_path / "deep" / "run"
    DeepFabricTrainer(
        model=tiny_model(tokenizer),
        processing_class=tokenizer,
        args=DeepFabricSFTConfig(output_dir=str(output), on_invalid="drop", **QUIET),
        train_dataset=Dataset.from_list(rows),
        eval_dataset={"../../escaped": Dataset.from_list([*rows[4:6], broken])},
    )
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name.startswith("rejected_escaped-") and path.parent == output for path in written] == [True]


def test_the_id_of_an_earlier_run_makes_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"run_id": "../../escaped", "step": 1}\n')
    name = RunFile(folder / "metrics.jsonl", "0").set_aside()
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [folder]
    assert name is not None
    assert name.startswith("metrics.escaped-")
