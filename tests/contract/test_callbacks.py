"""What every exported callback keeps to."""

import copy
import pickle
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from deepfabric_trainer import callbacks
from tests.fixtures.tiny import CHECKPOINTING, enable_checkpointing

EXPORTED = [
    value
    for name in callbacks.__all__
    if isinstance(value := getattr(callbacks, name), type) and issubclass(value, TrainerCallback)
]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "SampleGenerationCallback": {"max_new_tokens": 4, "num_samples": 4, "every_n_steps": 1},
    "MetricEarlyStoppingCallback": {"metric": "eval_loss", "mode": "min"},
    "RunReportCallback": {"every_seconds": 0},
    "TrainingHealthCallback": {},
}

pytestmark = pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)


@pytest.fixture
def make(tool_rows):
    def make(kind: type) -> TrainerCallback:
        callback = kind(**ARGUMENTS.get(kind.__name__, {}))
        if hasattr(callback, "dataset"):
            callback.dataset = tool_rows
        return callback

    return make


def snapshot(trainer: Any) -> dict[str, Any]:
    model, tokenizer = trainer.model, trainer.processing_class
    return {
        "training": [module.training for module in model.modules()],
        "checkpointing": [getattr(module, "gradient_checkpointing", None) for module in model.modules()],
        "config": model.config.to_dict(),
        "generation_config": model.generation_config.to_dict(),
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "tokenizer": {
            name: copy.deepcopy(getattr(tokenizer, name))
            for name in ("padding_side", "truncation_side", "chat_template", "pad_token", "eos_token", "init_kwargs")
        },
    }


def weights(trainer: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def train_options(rows: Any) -> dict[str, Any]:
    return {"eval_dataset": Dataset.from_list(rows), "eval_strategy": "steps", "eval_steps": 1}


@pytest.mark.slow
def test_takes_part_in_two_runs(kind, make, make_sft_trainer, tool_rows):
    callback = make(kind)
    trainer = make_sft_trainer(tool_rows, callbacks=[callback], **train_options(tool_rows))
    trainer.train()
    first = [set(entry) for entry in trainer.state.log_history]
    trainer.train()
    assert [set(entry) for entry in trainer.state.log_history] == first
    assert trainer.state.global_step == 2


@pytest.mark.slow
def test_does_not_change_what_is_learned(kind, make, make_sft_trainer, make_tiny_model, tool_rows):
    """Weights after training with dropout are equal to the bit, so random state and modes are as without it."""
    learned = []
    for attached in ([], [make(kind)]):
        model = make_tiny_model()
        model.config.attention_dropout = 0.5
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        trainer = make_sft_trainer(
            tool_rows, callbacks=attached, model=model, **{CHECKPOINTING: True}, **train_options(tool_rows)
        )
        trainer.train()
        learned.append(weights(trainer))
    assert all(torch.equal(without, with_it) for without, with_it in zip(*learned, strict=True))


def test_restores_model_and_tokenizer(kind, make, make_sft_trainer, tool_rows):
    callback = make(kind)
    trainer = make_sft_trainer(tool_rows)
    trainer.model.train()
    trainer.model.config.use_cache = False
    enable_checkpointing(trainer.model)
    trainer.processing_class.padding_side = "right"
    before = snapshot(trainer)
    random_state = torch.get_rng_state()
    given = {"model": trainer.model, "processing_class": trainer.processing_class}
    arguments = (trainer.args, trainer.state, trainer.control)
    callback.on_train_begin(*arguments, **given)
    trainer.state.global_step = 1
    callback.on_step_end(*arguments, **given)
    callback.on_evaluate(*arguments, metrics={"eval_loss": 1.0}, **given)
    assert snapshot(trainer) == before
    assert torch.equal(torch.get_rng_state(), random_state)


def test_leaves_its_rows_alone(kind, make, make_sft_trainer, tool_rows):
    before = copy.deepcopy(tool_rows)
    make_sft_trainer(tool_rows, callbacks=[make(kind)], **train_options(tool_rows)).train()
    assert tool_rows == before


@pytest.mark.slow
def test_picklable_before_and_after_a_run(kind, make, make_sft_trainer, tool_rows):
    callback = make(kind)
    pickle.loads(pickle.dumps(callback))
    make_sft_trainer(tool_rows, callbacks=[callback], **train_options(tool_rows)).train()
    again = pickle.loads(pickle.dumps(callback))
    trainer = make_sft_trainer(tool_rows, callbacks=[again], **train_options(tool_rows))
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.slow
def test_a_checkpoint_written_without_it_is_resumed_and_saved_again(kind, make, make_sft_trainer, tool_rows):
    saves = {"save_strategy": "steps", "save_steps": 1, **train_options(tool_rows)}
    make_sft_trainer(tool_rows, max_steps=1, **saves).train()
    trainer = make_sft_trainer(tool_rows, callbacks=[make(kind)], max_steps=2, **saves)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2
