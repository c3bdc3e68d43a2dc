import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepfabric_trainer.encode import ConversationEncoder
from tests.fixtures.tiny import tiny_model, tiny_tokenizer, tool_rows

ROOT = Path(__file__).parents[2]
ROWS = tool_rows() * 2


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder with a model, its tokenizer, and rows whose arguments are JSON text."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = json.loads(json.dumps(ROWS))
    for row in rows:
        for message in row["messages"]:
            for call in message.get("tool_calls", []):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def launch(run_folder: Path, processes: int, *options: str) -> str:
    """Run the example in `run_folder/out` with these processes; return what it printed."""
    accelerate = Path(sys.executable).with_name("accelerate")
    run = subprocess.run(
        [
            *(accelerate, "launch", "--cpu", "--num_processes", str(processes)),
            *("--main_process_port", str(free_port())),
            "examples/train_tool_calling.py",
            *("--config", "examples/train_tool_calling.yaml"),
            *("--dataset_name_or_path", str(run_folder / "rows.jsonl")),
            *("--model_name_or_path", str(run_folder / "model")),
            *("--output_dir", str(run_folder / "out")),
            *("--logging_steps", "1"),
            *options,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout + run.stderr


def counted_tokens(run_folder: Path) -> int:
    """Return the tokens that the run counted."""
    state = json.loads((run_folder / "out" / "trainer_state.json").read_text())
    return max(int(entry["num_tokens"]) for entry in state["log_history"] if "num_tokens" in entry)


def tokens_of(row: dict[str, Any]) -> int:
    return len(ConversationEncoder(tiny_tokenizer()).encode(row)[0].input_ids)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_see_each_row_once_an_epoch_and_log_once(run_folder: Path, processes: int) -> None:
    output = launch(
        run_folder,
        processes,
        *("--per_device_train_batch_size", str(4 // processes)),
        *("--eval_dataset_name_or_path", str(run_folder / "rows.jsonl")),
        *("--eval_strategy", "epoch", "--eval_generations", "4", "--max_new_tokens", "2"),
    )
    assert output.count("call arguments came as JSON text") == 2, "once for each of the two datasets"
    assert output.count("'eval_tool_call_exact_match'") == 1
    assert output.count("{'loss'") == 4, "four steps of four rows, whatever the number of processes"
    assert counted_tokens(run_folder) == sum(map(tokens_of, ROWS)), "each row once"
    assert (run_folder / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_tokens_of_every_process_are_counted_when_rows_do_not_divide(run_folder: Path) -> None:
    (run_folder / "rows.jsonl").write_text("\n".join([json.dumps(ROWS[0])] * 17))
    launch(run_folder, 2, "--per_device_train_batch_size", "2")
    assert counted_tokens(run_folder) == 20 * tokens_of(ROWS[0]), "accelerate fills the last batch from the beginning"
