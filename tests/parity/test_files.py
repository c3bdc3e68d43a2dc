import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from deepfabric_trainer import DeepFabricTrainer
from tests.parity.features import Feature, lora, rows, saved_llama
from tests.parity.runs import TRAINERS, Run, assert_same_weights, make_trainer, train
from tests.parity.samples import CHATS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # TRL warns of many of its own features, in both runs
]

SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_only_model": False}
OWN_FILES = {"report.html", "report.md", "metrics.json"} | {
    f"checkpoint-{step}/{name}" for step in (2, 4) for name in ("checkpoint_files.json", "between_logs_0.json")
}


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in run.history if "loss" in entry]


@pytest.mark.parametrize(
    ("saving", "resuming", "peft"),
    [
        (SFTTrainer, DeepFabricTrainer, False),
        (DeepFabricTrainer, SFTTrainer, False),
        (DeepFabricTrainer, DeepFabricTrainer, False),
        (DeepFabricTrainer, DeepFabricTrainer, True),
    ],
)
def test_either_trainer_resumes_the_run_of_either(saving: Any, resuming: Any, peft: bool, tmp_path: Path) -> None:
    feature = Feature("resume", rows(CHATS), SAVED, lora() if peft else dict)
    uninterrupted = train(make_trainer(SFTTrainer, feature, tmp_path / "whole"))
    train(make_trainer(saving, feature, tmp_path / "first"))
    checkpoint = tmp_path / "first" / "run" / "checkpoint-2"
    resumed = train(make_trainer(resuming, feature, tmp_path / "second"), resume_from_checkpoint=str(checkpoint))
    assert losses(resumed) == pytest.approx(losses(uninterrupted), rel=1e-5)
    assert_same_weights(resumed.weights, uninterrupted.weights)


@pytest.mark.parametrize("peft", [False, True], ids=["all weights", "LoRA"])
def test_the_files_of_a_run_are_those_of_sft_trainer(peft: bool, tmp_path: Path) -> None:
    feature = Feature("files", rows(CHATS), SAVED, lora() if peft else dict, saved_llama)
    written = {}
    for trainer_class in TRAINERS:
        folder = tmp_path / trainer_class.__name__
        trainer = make_trainer(trainer_class, feature, folder)
        trainer.train()
        trainer.save_model()
        trainer.save_state()
        trainer.create_model_card(model_name="mine", dataset_name="theirs", tags=["tools"])
        run = folder / "run"
        written[trainer_class] = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    expected, found = (written[trainer_class] for trainer_class in TRAINERS)
    assert found - expected == OWN_FILES
    assert expected <= found
    cards = [(tmp_path / trainer_class.__name__ / "run" / "README.md").read_text() for trainer_class in TRAINERS]
    assert cards[1].replace("DeepFabricTrainer", "SFTTrainer") == cards[0]


def test_a_saved_model_is_loaded_again(tmp_path: Path) -> None:
    trainer = make_trainer(DeepFabricTrainer, Feature("saved", rows(CHATS)), tmp_path)
    trained = train(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_same_weights(dict(loaded.state_dict()), trained.weights)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == trainer.processing_class.chat_template


def test_the_callbacks_of_ours_change_no_state_that_scripts_read(tmp_path: Path) -> None:
    feature = Feature("state", rows(CHATS), SAVED)
    states = []
    for trainer_class in TRAINERS:
        make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__).train()
        saved = tmp_path / trainer_class.__name__ / "run" / "checkpoint-4" / "trainer_state.json"
        states.append(json.loads(saved.read_text()))
    left_out = {"log_history", "stateful_callbacks", "total_flos"}
    theirs, ours = ({name: state[name] for name in state if name not in left_out} for state in states)
    assert ours == theirs
    assert states[1]["total_flos"] == states[0]["total_flos"]
    assert states[0]["stateful_callbacks"].items() <= states[1]["stateful_callbacks"].items()
