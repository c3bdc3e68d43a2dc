import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.tiny import tiny_model, tiny_tokenizer, tool_rows

ROOT = Path(__file__).parents[3]


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", "--short", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_the_demo_takes_a_model_and_rows_of_the_users(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, tool_rows() * 2)))
    output = tmp_path / "run"
    options = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "rows.jsonl"), "--output", str(output)]
    run = run_demo(*options)
    assert run.returncode == 0, run.stderr[-3000:]
    for words in ("All 16 rows can be trained on", "Before the training", "step   1", "expected", "95% interval"):
        assert words in run.stdout
    results = json.loads((output / "results.json").read_text())
    assert results["after"]["eval_tool_call_turns"] == 3, "a fifth of the rows, each with one turn"
    assert len(results["samples"]) == 3
    assert (output / "model" / "adapter_model.safetensors").is_file()
    assert len((output / "train.jsonl").read_text().splitlines()) == 13


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [(["--data", "{tmp}/nowhere.jsonl"], "there is no file"), (["--model", "{tmp}/nowhere"], "cannot load the model")],
)
def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path, options: list[str], words: str) -> None:
    given = [option.format(tmp=tmp_path) for option in options]
    run = run_demo(*given, "--output", str(tmp_path / "run"))
    assert run.returncode == 2
    assert words in run.stderr
    assert "Traceback" not in run.stderr
