import json
import socket
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_see_each_row_once_an_epoch_and_log_once(run_folder: Path, processes: int) -> None:
    launch = [Path(sys.executable).with_name("accelerate"), "launch", "--cpu", "--num_processes", str(processes)]
    run = subprocess.run(
        [
            *launch,
            "--main_process_port",
            str(free_port()),
            "examples/train_tool_calling.py",
            "--config",
            "examples/train_tool_calling.yaml",
            "--dataset_name_or_path",
            str(run_folder / "rows.jsonl"),
            "--eval_dataset_name_or_path",
            str(run_folder / "rows.jsonl"),
            "--eval_strategy",
            "epoch",
            "--eval_generations",
            "4",
            "--max_new_tokens",
            "2",
            "--model_name_or_path",
            str(run_folder / "model"),
            "--output_dir",
            str(run_folder / "out"),
            "--per_device_train_batch_size",
            str(4 // processes),
            "--logging_steps",
            "1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    output = run.stdout + run.stderr
    assert output.count("call arguments came as JSON text") == 2, "once for each of the two datasets"
    assert output.count("'eval_tool_call_exact_match'") == 1
    assert output.count("{'loss'") == 4, "four steps of four rows, whatever the number of processes"
    encoder = ConversationEncoder(tiny_tokenizer())
    tokens = sum(len(encoder.encode(row)[0].input_ids) for row in ROWS)
    state = json.loads((run_folder / "out" / "trainer_state.json").read_text())
    counted = [entry["num_tokens"] for entry in state["log_history"] if "num_tokens" in entry]
    assert max(counted) == tokens, "each row once"
    assert (run_folder / "out" / "model.safetensors").is_file()
