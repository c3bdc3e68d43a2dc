"""What we rely on in the `Trainer` of transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import default_logdir, rewrite_logs
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import has_length
from transformers.utils import is_torch_bf16_gpu_available

from tests.contract.seams.seam import Seam
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer

TRAINER, STEPS, RUN_CALLBACKS = (f"deepfabric_trainer/{name}.py" for name in ("trainer", "steps", "run_callbacks"))
ROWS = [{"input_ids": [40, 41, number], "labels": [-100, 41, number]} for number in range(50, 54)]
EVENTS = (
    *("on_train_begin", "on_epoch_begin", "on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_step_end"),
    *("on_prediction_step", "on_evaluate", "on_predict", "on_log", "on_save", "on_train_end"),
)

Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(trainer_class: Any = Trainer, callbacks: Any = (), **options: Any) -> Any:
        tokenizer = tiny_tokenizer()
        settings = {"output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 2, **QUIET, **options}
        return trainer_class(
            model=tiny_model(tokenizer),
            args=TrainingArguments(**settings),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(ROWS),
            eval_dataset=Dataset.from_list(ROWS),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            callbacks=list(callbacks),
        )

    return make


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Notes the events, and what comes with them."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.given: dict[str, set[str]] = {}

    def __getattribute__(self, name: str) -> Any:
        if name not in EVENTS:
            return super().__getattribute__(name)

        def note(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.events.append(name)
            present = {key for key, value in kwargs.items() if value is not None}
            self.given[name] = self.given.get(name, present) & present

        return note


@Seam(
    "transformers",
    "Trainer._get_num_items_in_batch(batch_samples, device), the number of trained labels",
    TRAINER,
    "deepfabric_trainer/loss.py",
    private=("_get_num_items_in_batch",),
)
def test_the_number_of_labels(make: Make) -> None:
    batches = [{"labels": torch.tensor([[-100, 5, 6]])}, {"labels": torch.tensor([[-100, -100, 6]])}]
    assert int(make()._get_num_items_in_batch(batches, torch.device("cpu"))) == 3


@Seam(
    "transformers",
    "Trainer._track_num_input_tokens(inputs), of input_ids or attention_mask, called in each step",
    TRAINER,
    "deepfabric_trainer/laid_out.py",
    private=("_track_num_input_tokens",),
)
def test_the_number_of_tokens(make: Make) -> None:
    class Doubling(Trainer):  # type: ignore[misc]
        def _track_num_input_tokens(self, inputs: Any) -> None:
            super()._track_num_input_tokens(inputs)
            super()._track_num_input_tokens(inputs)

    for kind in ("all", "non_padding"):
        trainer = make(Doubling, include_num_input_tokens_seen=kind)
        trainer.train()
        assert trainer.state.num_input_tokens_seen == 2 * 2 * 2 * 3


@Seam(
    "transformers",
    "Trainer._get_train_sampler(train_dataset), which orders get_train_dataloader()",
    TRAINER,
    private=("_get_train_sampler",),
)
def test_the_sampler(make: Make) -> None:
    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(train_dataset)

    batches = list(make(InOrder).get_train_dataloader())
    assert torch.cat([batch["input_ids"][:, 2] for batch in batches]).tolist() == [50, 51, 52, 53]
    assert make().args.train_sampling_strategy == "random"


@Seam("transformers", "Trainer.data_collator, read when a loader is asked for", TRAINER)
def test_loaders_take_the_collator_of_the_moment(make: Make) -> None:
    trainer = make()
    loaders = (
        trainer.get_train_dataloader,
        lambda: trainer.get_eval_dataloader(Dataset.from_list(ROWS)),
        lambda: trainer.get_test_dataloader(Dataset.from_list(ROWS)),
    )
    for loader in loaders:
        trainer.data_collator = lambda rows: {"marked": torch.ones(1)}
        assert set(next(iter(loader()))) == {"marked"}


@Seam("transformers", "Trainer.evaluation_loop(dataloader, description, ...), whose metrics everybody reads", TRAINER)
def test_metrics_that_an_evaluation_adds(make: Make) -> None:
    described = []

    class Adding(Trainer):  # type: ignore[misc]
        def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
            output = super().evaluation_loop(dataloader, description, *args, **kwargs)
            described.append((description, kwargs.get("metric_key_prefix")))
            output.metrics["eval_own"] = 0.5
            return output

    class Reading(TrainerCallback):  # type: ignore[misc]
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            described.append(metrics["eval_own"])

    trainer = make(Adding, [Reading()])
    assert trainer.evaluate()["eval_own"] == 0.5
    assert trainer.state.log_history[-1]["eval_own"] == 0.5
    trainer.predict(Dataset.from_list(ROWS))
    assert described == [("Evaluation", "eval"), 0.5, ("Prediction", "test")]


@Seam(
    "transformers",
    "the events of callbacks, and what comes with them",
    "callbacks/training_health.py",
    "callbacks/progress.py",
    "callbacks/sample_generation.py",
    "callbacks/run_report.py",
)
def test_events(make: Make) -> None:
    recorder = Recorder()
    trainer = make(
        callbacks=[recorder],
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        per_device_train_batch_size=1,
    )
    trainer.train()
    trainer.predict(trainer.eval_dataset)
    step = ["on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_step_end"]
    assert recorder.events[:6] == ["on_train_begin", "on_epoch_begin", *step]
    found = [event for event in recorder.events if event != "on_prediction_step"]
    assert found[-4:] == ["on_evaluate", "on_log", "on_train_end", "on_predict"]
    assert {"model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader"} <= recorder.given[
        "on_pre_optimizer_step"
    ]
    assert "metrics" in recorder.given["on_evaluate"]
    assert "logs" in recorder.given["on_log"]
    assert "eval_dataloader" in recorder.given["on_prediction_step"]


@Seam("transformers", "callback_handler.callbacks, a list in the order of calls", RUN_CALLBACKS)
def test_the_order_of_callbacks(make: Make) -> None:
    called = []

    class Named(TrainerCallback):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.name = name

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            called.append(self.name)

    trainer = make(callbacks=[Named("a"), Named("b")])
    trainer.callback_handler.callbacks.sort(key=lambda callback: getattr(callback, "name", "") == "a")
    trainer.add_callback(Named("c"))
    assert trainer.callback_handler.callbacks[-1].name == "c"
    trainer.train()
    assert called == ["b", "a", "c"]
    trainer.remove_callback(PrinterCallback)
    assert not any(isinstance(callback, PrinterCallback) for callback in trainer.callback_handler.callbacks)
    assert issubclass(ProgressCallback, TrainerCallback)


@Seam(
    "transformers",
    "ExportableState, kept in `stateful_callbacks` under the name of its class",
    "callbacks/training_health.py",
    "callbacks/metric_early_stopping.py",
)
def test_states_of_callbacks(make: Make, tmp_path: Path) -> None:
    class Stateful(TrainerCallback, ExportableState):  # type: ignore[misc]
        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {"seen": 7}}

    make(callbacks=[Stateful()], save_strategy="steps", save_steps=2).train()
    state = TrainerState.load_from_json(str(tmp_path / "checkpoint-2" / "trainer_state.json"))
    assert state.stateful_callbacks["Stateful"] == {"args": {}, "attributes": {"seen": 7}}


@Seam(
    "transformers",
    "Trainer.training_step(model, inputs, num_items_in_batch) and the attributes that a step reads",
    TRAINER,
    STEPS,
)
def test_a_step(make: Make) -> None:
    seen = []

    class Recording(Trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            seen.append((self.current_gradient_accumulation_steps, int(num_items_in_batch)))
            return super().training_step(model, inputs, num_items_in_batch)

    trainer = make(Recording, gradient_accumulation_steps=2, per_device_train_batch_size=1)
    assert (trainer.label_smoother, trainer.compute_loss_func) == (None, None)
    assert trainer.model_accepts_loss_kwargs
    trainer.train()
    assert seen == [(2, 4)] * 4


@Seam(
    "transformers",
    "rewrite_logs and default_logdir, has_length, is_torch_bf16_gpu_available",
    "callbacks/_sinks/wandb.py",
    "callbacks/_sinks/trackio.py",
    "callbacks/_sinks/tensorboard.py",
    "callbacks/progress.py",
    "deepfabric_trainer/config.py",
)
def test_small_functions() -> None:
    assert rewrite_logs({"eval_loss": 1, "loss": 2}) == {"eval/loss": 1, "train/loss": 2}
    assert default_logdir().startswith("runs")
    assert has_length([1])
    assert not has_length(iter([1]))
    assert is_torch_bf16_gpu_available() in (True, False)
