import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerState

from deepfabric_trainer.callbacks import SampleGenerationCallback
from tests.fixtures.generation_run import found, make_callbacks
from tests.fixtures.processes import run_processes
from tests.fixtures.tiny import enable_checkpointing, tool_rows


@pytest.mark.slow
def test_two_processes_find_together_what_one_finds(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    """With DDP, LoRA and gradient checkpointing, and with a process that has nothing to generate."""
    run_processes("tests.fixtures.generation_run", str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    several, single = first["results"]
    assert [result["step"] for result in several] == [0, 1, 2]
    assert [result["step"] for result in single] == [0]
    assert first["told"] == [0, 0, 1, 2]
    alone = make_callbacks()
    alone[0].max_seconds = None
    for callback in alone:
        state = TrainerState(global_step=0)
        options = {"metric_key_prefix": callback.metric_prefix}
        callback.compute_metrics(model=tiny_model, processing_class=tiny_tokenizer, state=state, **options)
    everything, one = (found(callback)[0] for callback in alone)
    assert single[0]["samples"] == one["samples"]
    # A batch of 2 in each process, then the time is over.
    assert len(several[0]["samples"]) == 4
    assert all(sample in everything["samples"] for sample in several[0]["samples"])
    assert several[0]["metrics"]["eval_tool_call_turns_left_out"] == 6
    assert several[0]["replays"] == everything["replays"]
    assert several[2]["samples"] != several[0]["samples"], "it must have learned for this test to say something"


@pytest.mark.parametrize("wrap", ["lora", "checkpointing", "compiled", "wrapped"])
def test_models_as_trainers_have_them(tiny_model: Any, tiny_tokenizer: Any, wrap: str) -> None:
    def measure(model: Any) -> dict[str, float]:
        callback = SampleGenerationCallback(tool_rows(), max_new_tokens=6, replay=True)
        state = TrainerState(global_step=0)
        metrics = callback.compute_metrics(model=model, processing_class=tiny_tokenizer, state=state)
        return {**metrics, "said": str([sample.predicted_text for sample in callback.results[0].samples])}  # type: ignore[dict-item]

    expected = measure(tiny_model)
    if wrap == "lora":
        model = get_peft_model(tiny_model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    elif wrap == "checkpointing":
        enable_checkpointing(tiny_model)
        model = tiny_model
    elif wrap == "compiled":
        model = torch.compile(tiny_model, backend="eager")
    else:
        model = torch.nn.DataParallel(tiny_model)
    assert measure(model.train()) == expected
    assert model.training
