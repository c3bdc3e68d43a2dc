"""Faults put into short real runs: what is found, where, and what is done about it."""

import copy
import logging
import math
import pickle
import platform
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from deepfabric_trainer.callbacks import TrainingHealthCallback
from deepfabric_trainer.callbacks._health import run
from deepfabric_trainer.callbacks._health.monitor import StepNumbers
from deepfabric_trainer.callbacks._health.probe import StepProbe
from deepfabric_trainer.callbacks._health.resources import memory_in_use
from deepfabric_trainer.callbacks._journal import RunEvent, journal_of
from deepfabric_trainer.collators import PackingCollator, SharedPrefixCollator, ToolCallCollator
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.label_scores import FUSED_HEAD
from tests.fixtures.tiny import CHECKPOINTING, QUIET

POISON = 250
"""A token whose embedding is NaN, in models that `poisoned` has had in hand."""
PAD = 255


def encoded(count: int) -> list[dict[str, list[int]]]:
    """Rows of twelve tokens, of which the last eight are soon learned; up to 323 of them are told apart."""
    rows = [[7, 7, 100 + number % 17, 120 + number % 19, *range(10, 18)] for number in range(count)]
    return [{"input_ids": ids, "labels": [-100, -100, -100, -100, *ids[4:]]} for ids in rows]


def with_poison(rows: list[dict[str, list[int]]], *numbers: int) -> list[dict[str, list[int]]]:
    for number in numbers:
        rows[number]["input_ids"][5] = POISON
    return rows


def garbled(rows: list[dict[str, list[int]]], *numbers: int) -> list[dict[str, list[int]]]:
    for number in numbers:
        rows[number]["labels"][4:] = range(200, 208)
    return rows


def untrained(rows: list[dict[str, list[int]]], *numbers: int) -> list[dict[str, list[int]]]:
    for number in numbers:
        rows[number]["labels"] = [-100] * len(rows[number]["labels"])
    return rows


@pytest.fixture
def make_poisoned(make_tiny_model):
    """Makes models in which a token's embedding is NaN."""

    def make() -> Any:
        model = make_tiny_model()
        with torch.no_grad():
            model.get_input_embeddings().weight[POISON] = math.nan
        model.get_input_embeddings().requires_grad_(False)
        return model

    return make


@pytest.fixture
def poisoned(make_poisoned):
    return make_poisoned()


@pytest.fixture
def make_trainer(make_tiny_model, tmp_path):
    def make(rows: Any, callback: Any, *more: Any, model: Any = None, collator: Any = None, **args: Any) -> Trainer:
        options = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 2,
            "num_train_epochs": 1,
            "learning_rate": 3e-3,
            "train_sampling_strategy": "sequential",
            **{name: value for name, value in QUIET.items() if name != CHECKPOINTING},
        }
        evaluation = {"eval_dataset": args.pop("eval_dataset")} if "eval_dataset" in args else {}
        return Trainer(
            model=make_tiny_model() if model is None else model,
            args=TrainingArguments(**(options | args)),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            data_collator=ToolCallCollator(PAD) if collator is None else collator,
            callbacks=[callback, *more],
            **evaluation,
        )

    return make


def events(trainer: Any) -> list[RunEvent]:
    return [entry for entry in journal_of(trainer.control).since(0) if isinstance(entry, RunEvent)]


def seen(trainer: Any) -> list[tuple[str, int, Any, str]]:
    return [(event.kind, event.step, event.evidence.get("rows"), event.action) for event in events(trainer)]


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(first, second, strict=True))


def hooks_of(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class Recorder(TrainerCallback):
    """Keeps weights, optimizer and rate after each step."""

    def __init__(self) -> None:
        self.weights: list[list[torch.Tensor]] = []
        self.moments: list[dict[Any, Any]] = []
        self.rates: list[float] = []
        self.hooks: list[int] = []

    def on_step_end(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **kwargs):
        self.weights.append(weights(model))
        self.moments.append(copy.deepcopy(optimizer.state_dict()["state"]))
        self.rates.append(lr_scheduler.get_last_lr()[0])
        self.hooks.append(hooks_of(model))


class TestNan:
    def test_stops_before_the_weights_are_ruined(self, make_trainer, poisoned, caplog):
        trainer = make_trainer(with_poison(encoded(12), 5), TrainingHealthCallback(), model=poisoned)
        trainer.train()
        assert seen(trainer) == [("nan", 3, [4, 5], "stop")]
        assert trainer.state.global_step == 3
        assert all(torch.isfinite(weight).all() for weight in weights(poisoned)[1:])
        (record,) = caplog.records
        assert record.message.startswith(
            "step 3, nan: the loss is nan; the run stops (rows 4, 5 of the training dataset). Likely cause: "
        )
        (event,) = events(trainer)
        assert event.severity == "critical"
        assert event.evidence["batch_losses"] == ["nan"]
        assert "lower the learning rate" in event.advice

    def test_is_hidden_from_the_log(self, make_trainer, poisoned):
        """What makes this worth watching: with the filter on the logged losses look healthy."""
        callback = TrainingHealthCallback({"nan": "log"})
        trainer = make_trainer(with_poison(encoded(8), 2), callback, model=poisoned)
        trainer.train()
        assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
        assert seen(trainer)[0] == ("nan", 2, [2, 3], "log")
        assert [event.step for event in events(trainer)] == [2, 3, 4]

    def test_only_in_the_gradients(self, make_trainer, make_tiny_model):
        model = make_tiny_model()

        class Overflow(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 2:
                    weight = model.model.norm.weight
                    self.handle = weight.register_hook(lambda gradient: gradient * math.inf)

        trainer = make_trainer(encoded(8), TrainingHealthCallback(), Overflow(), model=model)
        trainer.train()
        assert seen(trainer) == [("nan", 3, [4, 5], "stop")]
        assert "gradients are not finite" in events(trainer)[0].message

    def test_rows_of_a_loss_that_is_computed_outside_of_the_model(self, make_trainer, poisoned):
        rows = with_poison(encoded(12), 5)
        trainer = make_trainer(rows, TrainingHealthCallback(), model=poisoned, label_smoothing_factor=0.1)
        trainer.train()
        assert seen(trainer) == [("nan", 3, [4, 5], "stop")]

    def test_scaled_gradients_may_overflow(self, make_trainer, make_tiny_model):
        """A scaler begins with a scale that is too high, and leaves out the steps in which it is."""
        model = make_tiny_model()
        model.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
        trainer = make_trainer(encoded(8), TrainingHealthCallback(), model=model)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        trainer.train()
        assert seen(trainer) == []
        assert trainer.state.global_step == 4

    def test_loss_with_scaled_gradients(self, make_trainer, poisoned):
        trainer = make_trainer(with_poison(encoded(12), 5), TrainingHealthCallback(), model=poisoned)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        trainer.train()
        assert seen(trainer) == [("nan", 3, [4, 5], "stop")]

    def test_a_step_that_is_over_is_not_skipped(self, make_trainer):
        """What only the logs show has already changed the weights."""
        trainer = make_trainer(encoded(8), callback := TrainingHealthCallback({"nan": "skip_step"}))
        arguments = (trainer.args, trainer.state, trainer.control)
        callback.on_train_begin(*arguments, model=trainer.model, optimizer=trainer.create_optimizer())
        callback.on_log(*arguments, logs={"loss": math.nan})
        assert seen(trainer) == [("nan", 0, None, "log")]
        assert "only the logs have shown it" in events(trainer)[0].message

    @pytest.mark.parametrize("clip", [0.0, 1.0])
    def test_skipped_to_the_bit(self, make_trainer, poisoned, clip):
        recorder = Recorder()
        callback = TrainingHealthCallback({"nan": "skip_step"})
        trainer = make_trainer(
            with_poison(encoded(12), 5), callback, recorder, model=poisoned, max_grad_norm=clip, weight_decay=0.1
        )
        trainer.train()
        assert seen(trainer) == [("nan", 3, [4, 5], "skip_step")]
        assert trainer.state.global_step == 6
        assert same(recorder.weights[1], recorder.weights[2])
        for number, moments in recorder.moments[1].items():
            assert all(torch.equal(value, recorder.moments[2][number][name]) for name, value in moments.items())
        assert not same(recorder.weights[2], recorder.weights[3])

    def test_skipping_without_end_stops(self, make_trainer, poisoned):
        callback = TrainingHealthCallback({"nan": "skip_step"})
        trainer = make_trainer(with_poison(encoded(40), *range(10, 40)), callback, model=poisoned)
        trainer.train()
        assert [event.action for event in events(trainer)] == ["skip_step"] * 10 + ["stop"]
        assert trainer.state.global_step == 16
        assert "10 steps have been skipped in a row" in events(trainer)[-1].message

    def test_all_micro_batches_of_a_step_count(self, make_trainer, poisoned):
        trainer = make_trainer(
            with_poison(encoded(24), 15),
            TrainingHealthCallback(),
            model=poisoned,
            gradient_accumulation_steps=4,
        )
        trainer.train()
        assert seen(trainer) == [("nan", 2, [14, 15], "stop")]

    def test_in_sft_trainer(self, make_sft_trainer, poisoned):
        trainer = make_sft_trainer(
            with_poison(encoded(12), 5),
            callbacks=[TrainingHealthCallback()],
            model=poisoned,
            max_steps=6,
            train_sampling_strategy="sequential",
        )
        trainer.train()
        assert seen(trainer) == [("nan", 3, [4, 5], "stop")]


class TestLayouts:
    @pytest.mark.parametrize(
        "collator",
        [
            ToolCallCollator(PAD, pad_to_multiple_of=16),
            SharedPrefixCollator(PAD, min_shared=2),
            PackingCollator(PAD, max_length=64),
        ],
        ids=lambda collator: type(collator).__name__,
    )
    def test_rows_are_found_in(self, make_trainer, poisoned, collator):
        rows = with_poison(encoded(12), 5)
        trainer = make_trainer(rows, TrainingHealthCallback(), model=poisoned, collator=collator)
        trainer.train()
        assert seen(trainer) == [("nan", 3, [4, 5], "stop")]

    def test_a_stream_says_that_it_has_no_rows(self, make_trainer, poisoned):
        stream = Dataset.from_list(with_poison(encoded(12), 5)).to_iterable_dataset()
        trainer = make_trainer(stream, TrainingHealthCallback(), model=poisoned, max_steps=6)
        trainer.train()
        assert seen(trainer) == [("nan", 3, [], "stop")]
        assert events(trainer)[0].evidence["rows_note"].startswith("not searched")


class TestSpikes:
    def test_loss(self, make_trainer):
        trainer = make_trainer(garbled(encoded(160), 141), TrainingHealthCallback(), learning_rate=1e-2)
        trainer.train()
        assert ("loss_spike", 71, [140, 141], "log") in seen(trainer)
        assert {event.step for event in events(trainer)} == {71}

    def test_gradient_is_seen_although_it_is_clipped(self, make_trainer):
        trainer = make_trainer(
            garbled(encoded(240), 221), TrainingHealthCallback(), learning_rate=1e-2, max_grad_norm=0.5
        )
        trainer.train()
        spikes = [event for event in events(trainer) if event.kind == "gradient_spike"]
        assert [(event.step, event.evidence["rows"]) for event in spikes] == [(111, [220, 221])]
        logged = next(entry["grad_norm"] for entry in trainer.state.log_history if entry.get("step") == 111)
        assert spikes[0].evidence["gradient_norm"] == pytest.approx(logged, rel=1e-3)
        assert logged > 0.5

    def test_skipped(self, make_trainer):
        recorder = Recorder()
        callback = TrainingHealthCallback({"loss_spike": "skip_step"})
        trainer = make_trainer(garbled(encoded(160), 141), callback, recorder, learning_rate=1e-2)
        trainer.train()
        assert same(recorder.weights[69], recorder.weights[70])
        assert not same(recorder.weights[70], recorder.weights[71])


class TestNothingToTrain:
    @pytest.mark.skipif(not FUSED_HEAD, reason="before 1.15 TRL's loss of no labels is NaN, which is said too")
    def test_a_whole_step(self, make_sft_trainer):
        trainer = make_sft_trainer(
            encoded(12), callbacks=[TrainingHealthCallback()], max_steps=6, train_sampling_strategy="sequential"
        )
        collator = trainer.data_collator

        def mask_rows_4_and_5(examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collator(examples)
            batch["labels"][batch["input_ids"][:, 2] // 2 == 104 // 2] = -100
            return batch

        trainer.data_collator = mask_rows_4_and_5
        trainer.train()
        assert seen(trainer) == [("nothing_to_train", 3, [4, 5], "log")]

    def test_one_row_of_a_batch_is_nothing_to_say(self, make_trainer):
        trainer = make_trainer(untrained(encoded(12), 4), TrainingHealthCallback())
        trainer.train()
        assert seen(trainer) == []

    def test_a_micro_batch(self, make_trainer):
        trainer = make_trainer(untrained(encoded(12), 4, 5), TrainingHealthCallback(), gradient_accumulation_steps=3)
        trainer.train()
        assert seen(trainer) == [("nothing_to_train", 1, [4, 5], "log")]
        assert "1 of the step's 3 micro-batches" in events(trainer)[0].message


class TestTrends:
    def test_divergence_and_its_rollback(self, make_trainer):
        """From step 60 on the signs of all gradients are turned round."""

        class Uphill(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
                if 60 <= state.global_step < 100:
                    for parameter in model.parameters():
                        parameter.grad.neg_()

        callback = TrainingHealthCallback({"divergence": "rollback"}, rollback_every=20)
        trainer = make_trainer(encoded(300), Uphill(), callback, learning_rate=1e-2, lr_scheduler_type="constant")
        trainer.train()
        (event,) = [event for event in events(trainer) if event.kind == "divergence"]
        assert 90 <= event.step <= 125
        assert (event.action, event.severity) == ("rollback", "critical")
        assert "after step 60 again" in event.message
        losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
        assert losses[event.step] > 1 > losses[event.step + 1]

    def test_memorizing(self, make_trainer):
        options = {"eval_strategy": "steps", "eval_steps": 20, "learning_rate": 1e-2}
        other = Dataset.from_list(garbled(encoded(4), 0, 1, 2, 3))
        trainer = make_trainer(encoded(160), TrainingHealthCallback(), eval_dataset=other, **options)
        trainer.train()
        assert [(event.kind, event.step) for event in events(trainer)] == [("memorizing", 60), ("overfitting", 80)]

    def test_slow_input(self, make_trainer):
        def slow(examples: list[dict[str, Any]]) -> dict[str, Any]:
            time.sleep(0.1)
            return ToolCallCollator(PAD)(examples)

        trainer = make_trainer(encoded(120), TrainingHealthCallback({"slow_input": "stop"}), collator=slow)
        trainer.train()
        (event,) = events(trainer)
        assert (event.kind, event.step, event.action) == ("slow_input", 51, "stop")
        assert trainer.state.global_step == 51

    @pytest.mark.slow
    def test_plateau(self, make_trainer):
        """A rate at which nothing moves, as of weights that are all frozen but for a few."""
        callback = TrainingHealthCallback({"plateau": "stop"})
        trainer = make_trainer(encoded(20), callback, learning_rate=1e-12, max_steps=450)
        trainer.train()
        (event,) = events(trainer)
        assert (event.kind, event.step, event.action, event.severity) == ("plateau", 400, "stop", "info")
        assert event.evidence["now"] == pytest.approx(event.evidence["before"], rel=1e-3)
        assert trainer.state.global_step == 400

    def test_a_loss_that_is_computed_outside_of_the_model(self, make_trainer):
        """Only the logs show the training loss then; evaluations are compared with those."""

        def loss_of(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

        options = {"eval_strategy": "steps", "eval_steps": 20, "learning_rate": 1e-2}
        other = Dataset.from_list(garbled(encoded(4), 0, 1, 2, 3))
        trainer = make_trainer(encoded(160), TrainingHealthCallback(), eval_dataset=other, **options)
        trainer.compute_loss_func = loss_of
        trainer.train()
        assert {event.kind for event in events(trainer)} == {"memorizing", "overfitting"}


class TestMemory:
    def test_of_the_machine(self, make_trainer, monkeypatch):
        """A machine with little more memory than the run takes."""
        total = int(psutil.Process().memory_info().rss / 0.97)
        memory = SimpleNamespace(total=total, available=int(0.02 * total))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        trainer = make_trainer(encoded(8), TrainingHealthCallback({"memory": "stop"}))
        trainer.train()
        (event,) = events(trainer)
        assert (event.kind, event.action) == ("memory", "stop")
        assert event.message.startswith("the memory of the host is 98% full")
        assert "dataloader_num_workers" in event.advice
        assert trainer.state.global_step == 2, "what is seen at the end of a step is said in the next one"

    def test_of_a_device(self, make_trainer, monkeypatch):
        """A device that has had to make room, as PyTorch tells of it."""
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 70 * 2**30)
        monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": 3})
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30)
        )
        monkeypatch.setattr(run, "memory_in_use", lambda device: memory_in_use("cuda:0"))
        trainer = make_trainer(encoded(8), TrainingHealthCallback())
        trainer.train()
        (event,) = events(trainer)
        assert (event.kind, event.step, event.evidence["retries"]) == ("memory", 2, 3)
        assert "70 of 80 GiB" in event.message
        assert "gradient checkpointing" in event.advice


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("seed", range(10))
def test_healthy_runs_raise_no_alarm(make_trainer, make_tiny_model, seed):
    draw = random.Random(seed)
    model = make_tiny_model(seed=seed)
    if seed % 3 == 0:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    rows = encoded(16 if seed % 4 == 0 else 200)
    trainer = make_trainer(
        rows,
        TrainingHealthCallback(),
        model=model,
        collator=SharedPrefixCollator(PAD, min_shared=2) if seed % 2 else ToolCallCollator(PAD),
        eval_dataset=Dataset.from_list(encoded(8)),
        eval_strategy="steps",
        eval_steps=20,
        seed=seed,
        max_steps=120,
        train_sampling_strategy="random",
        learning_rate=draw.choice([1e-3, 3e-3]),
        lr_scheduler_type=draw.choice(["linear", "cosine", "constant_with_warmup"]),
        warmup_steps=draw.choice([0, 10]),
        gradient_accumulation_steps=draw.choice([1, 2]),
    )
    trainer.train()
    assert trainer.state.global_step == 120
    assert seen(trainer) == []


class TestRollback:
    def run(self, make_trainer, poisoned, **options):
        recorder = Recorder()
        callback = TrainingHealthCallback({"nan": "rollback"}, **options)
        rows = with_poison(encoded(40), 25, 31, 35)
        trainer = make_trainer(rows, callback, recorder, model=poisoned, lr_scheduler_type="constant")
        trainer.train()
        return trainer, recorder, callback

    def test_goes_back_to_the_start_at_a_lower_rate(self, make_trainer, poisoned):
        before = weights(poisoned)
        trainer, recorder, _ = self.run(make_trainer, poisoned, max_rollbacks=5)
        assert seen(trainer) == [("nan", 13, [24, 25], "rollback")] + [
            ("nan", step, [2 * step - 2, 2 * step - 1], "rollback") for step in (16, 18)
        ]
        assert trainer.state.global_step == 20
        assert same(recorder.weights[12], before)
        assert recorder.moments[12] == {}
        assert not same(recorder.weights[13], before)
        assert recorder.rates[11:14] == pytest.approx([3e-3, 1.5e-3, 1.5e-3])
        assert recorder.rates[-1] == pytest.approx(3e-3 / 8)

    def test_no_more_than_so_often(self, make_trainer, poisoned, tmp_path):
        trainer, _, callback = self.run(make_trainer, poisoned, max_rollbacks=1)
        assert [event.action for event in events(trainer)] == ["rollback", "stop"]
        assert "gone back 1 times" in events(trainer)[-1].message
        assert trainer.state.global_step == 16
        assert callback.state()["attributes"]["last_state"]["rollbacks"] == 1
        assert list((tmp_path / "run").glob("health-rollback-*")) == []

    def test_goes_back_to_a_later_healthy_step(self, make_trainer, poisoned):
        recorder = Recorder()
        callback = TrainingHealthCallback({"nan": "rollback"}, rollback_every=15)
        rows = with_poison(encoded(90), 80)
        trainer = make_trainer(rows, callback, recorder, model=poisoned, warmup_steps=4)
        trainer.train()
        assert [event.step for event in events(trainer)] == [41]
        assert "after step 30 again" in events(trainer)[0].message
        assert same(recorder.weights[40], recorder.weights[29])
        for number, moments in recorder.moments[29].items():
            assert all(torch.equal(value, recorder.moments[40][number][name]) for name, value in moments.items())
        # The schedule goes on from step 30, too: one step on it, at half the rate.
        assert recorder.rates[40] == pytest.approx(recorder.rates[30] / 2)

    def test_goes_back_to_a_later_step_where_losses_are_not_seen(self, make_trainer, make_tiny_model):
        model = make_tiny_model()

        class Overflow(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 24:
                    model.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)

        callback = TrainingHealthCallback({"nan": "rollback"}, rollback_every=10, max_rollbacks=1)
        trainer = make_trainer(encoded(52), callback, Overflow(), model=model, label_smoothing_factor=0.1)
        trainer.train()
        assert [(event.step, event.action) for event in events(trainer)] == [(25, "rollback"), (26, "stop")]
        assert "after step 20 again" in events(trainer)[0].message

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*")
    def test_adapters(self, make_trainer, poisoned):
        from peft import LoraConfig, get_peft_model

        poisoned.get_input_embeddings().requires_grad_(False)
        model = get_peft_model(poisoned, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        recorder = Recorder()
        before = weights(model)
        trainer = make_trainer(
            with_poison(encoded(12), 7), TrainingHealthCallback({"nan": "rollback"}), recorder, model=model
        )
        trainer.train()
        assert seen(trainer) == [("nan", 4, [6, 7], "rollback")]
        assert not same(recorder.weights[2], before)
        assert same(recorder.weights[3], before)


class TestHooks:
    def test_only_while_a_step_computes(self, make_trainer, make_tiny_model):
        model, recorder = make_tiny_model(), Recorder()

        class Inside(TrainerCallback):
            copies: list[Any] = []  # noqa: RUF012

            def on_substep_end(self, args, state, control, model=None, **kwargs):
                assert hooks_of(model) == 1
                self.copies += [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]

        inside = Inside()
        callback = TrainingHealthCallback()
        trainer = make_trainer(encoded(8), callback, recorder, inside, model=model, gradient_accumulation_steps=2)
        trainer.train()
        assert recorder.hooks == [0, 0]
        assert hooks_of(model) == 0
        batch = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([[1, 2]])}
        for copied in inside.copies:
            copied.train()
            assert torch.isfinite(copied(**batch).loss)

    def test_gone_after_an_error_in_the_model(self, make_trainer, make_tiny_model):
        model = make_tiny_model()

        def fail(*_: Any) -> None:
            raise RuntimeError("out of something")

        model.model.norm.register_forward_pre_hook(fail)
        trainer = make_trainer(encoded(8), TrainingHealthCallback(), model=model)
        with pytest.raises(RuntimeError, match="out of something"):
            trainer.train()
        assert len(model._forward_hooks) == 0

    def test_gone_when_the_model_is_used_after_an_error_elsewhere(self, make_trainer, make_tiny_model):
        model = make_tiny_model()

        class Fail(TrainerCallback):
            def on_substep_end(self, args, state, control, **kwargs):
                raise RuntimeError("no reason")

        trainer = make_trainer(
            encoded(8), TrainingHealthCallback(), Fail(), model=model, gradient_accumulation_steps=2
        )
        with pytest.raises(RuntimeError, match="no reason"):
            trainer.train()
        model.eval()
        model(input_ids=torch.tensor([[1, 2]]))
        assert len(model._forward_hooks) == 0


class TestProbe:
    def test_a_step_that_is_done_anew_is_counted_once(self, make_tiny_model):
        model = make_tiny_model().train()
        probe = StepProbe(model, sees_forward=True, sees_gradients=True, sees_norm=True)
        batch = {name: torch.tensor([[1, 2, 3]]) for name in ("input_ids", "labels")}
        probe.open()
        model(**batch).loss.backward()
        with pytest.raises(ValueError, match="out of memory"):
            out_of_memory(model, batch)
        model.zero_grad()
        (2 * model(**batch).loss).backward()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
        assert probe.read() == StepNumbers((), (), pytest.approx(float(norm)), True)

    @pytest.mark.parametrize(("labels", "count"), [([[1, 2, -100]], 1), ([[1, 2]], 2), ([[-100]], 0), ([[1]], 1)])
    def test_labels(self, make_tiny_model, labels, count):
        """Only those that stand beside the tokens are shifted: the first is predicted from nothing."""
        probe = StepProbe(make_tiny_model(), sees_forward=True, sees_gradients=True, sees_norm=True)
        given = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor(labels)}
        probe.note_forward(torch.nn.Identity(), given, SimpleNamespace(loss=torch.tensor(2.0)))
        assert probe.read().labels == (count,)


def out_of_memory(model: Any, batch: Any) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("out of memory")

    handle = model.model.norm.register_forward_pre_hook(fail)
    try:
        model(**batch)
    finally:
        handle.remove()


class TestHarmless:
    def test_its_own_failure_does_not_stop_the_run(self, make_trainer, caplog, monkeypatch):
        from deepfabric_trainer.callbacks._health.monitor import Monitor

        def fail(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("a mistake")

        monkeypatch.setattr(Monitor, "step", fail)
        trainer = make_trainer(encoded(8), TrainingHealthCallback())
        trainer.train()
        assert trainer.state.global_step == 4
        assert len(caplog.records) == 1
        assert "a mistake" in caplog.text

    def test_outputs_that_it_cannot_read_do_not_stop_the_model(self, make_trainer, make_tiny_model, caplog):
        model = make_tiny_model()

        def hide_labels(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            kwargs["labels"] = [{"boxes": kwargs["labels"]}]

        model.register_forward_hook(hide_labels, with_kwargs=True)
        trainer = make_trainer(encoded(8), TrainingHealthCallback(), model=model)
        trainer.train()
        assert trainer.state.global_step == 4
        assert seen(trainer) == []
        assert [record.message.split("\n")[0] for record in caplog.records] == [
            "losses are not watched, since they cannot be read"
        ]

    def test_log_history_is_the_trainers(self, make_trainer, poisoned):
        trainer = make_trainer(with_poison(encoded(12), 5), TrainingHealthCallback({"nan": "skip_step"}))
        trainer.train()
        assert set().union(*trainer.state.log_history) <= {
            *("loss", "grad_norm", "learning_rate", "epoch", "step", "total_flos"),
            *("train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"),
        }

    @pytest.mark.parametrize("policy", ["skip_step", "rollback"])
    def test_refused_with_scaled_gradients(self, make_trainer, policy):
        trainer = make_trainer(encoded(8), callback := TrainingHealthCallback({"nan": policy}))
        trainer.create_optimizer()
        trainer.optimizer.scaler = object()
        with pytest.raises(ConfigError, match="fp16 gradients are scaled"):
            callback.on_train_begin(trainer.args, trainer.state, trainer.control, optimizer=trainer.optimizer)


def test_repeated_findings_are_logged_ever_more_rarely(make_trainer, caplog):
    rows = untrained(encoded(40), *range(40))
    callback = TrainingHealthCallback({"nan": "log"})
    with caplog.at_level(logging.WARNING, logger="deepfabric_trainer"):
        trainer = make_trainer(rows, callback, TrainerCallback())
        trainer.train()
    logged = [record.message for record in caplog.records if "nothing_to_train" in record.message]
    assert [message.split(":")[0] for message in logged[:-1]] == [
        "step 1, nothing_to_train",
        "step 2, nothing_to_train (time 2)",
        "step 4, nothing_to_train (time 4)",
        "step 8, nothing_to_train (time 8)",
        "step 16, nothing_to_train (time 16)",
    ]
    assert logged[-1].startswith("nothing_to_train was found 20 times; not said until now: steps 3, 5, 6, 7, 9")
    assert len([event for event in events(trainer) if event.kind == "nothing_to_train"]) == 20


@pytest.mark.slow
def test_goes_on_from_a_checkpoint_of_a_run_without_it(make_trainer, make_tiny_model):
    options = {"save_strategy": "steps", "save_steps": 2}
    first = make_trainer(encoded(16), TrainerCallback(), model=make_tiny_model(), **options)
    first.args.max_steps = 2
    first.train()
    callback = TrainingHealthCallback()
    second = make_trainer(encoded(16), callback, model=make_tiny_model(), **options)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 8
    assert callback.state()["attributes"]["last_state"]["monitor"]["loss_spikes"]["seen"] == 6


@pytest.mark.slow
def test_survives_a_resume(make_trainer, make_poisoned):
    rows = with_poison(encoded(60), 9, 49)
    policies = {"nan": "rollback"}
    options = {"save_strategy": "steps", "save_steps": 20, "lr_scheduler_type": "constant"}
    first = make_trainer(rows, TrainingHealthCallback(policies, max_rollbacks=1), model=make_poisoned(), **options)
    first.args.max_steps = 20
    first.train()
    assert [event.action for event in events(first)] == ["rollback"]
    recorder = Recorder()
    callback = TrainingHealthCallback(policies, max_rollbacks=1)
    second = make_trainer(rows, callback, recorder, model=make_poisoned(), **options)
    second.train(resume_from_checkpoint=True)
    assert recorder.rates[0] == pytest.approx(1.5e-3)
    assert seen(second) == [("nan", 25, [48, 49], "stop")]
    kept = callback.state()["attributes"]["last_state"]
    assert (kept["rollbacks"], kept["lr_factor"]) == (1, 0.5)
    assert kept["monitor"]["loss_spikes"]["seen"] == 23


@pytest.mark.slow
@pytest.mark.parametrize("restore", [False, True])
def test_of_two_each_goes_on_from_its_newest_state(make_trainer, make_tiny_model, restore):
    options = {"save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": restore}
    policies: list[dict[str, str]] = [{}, {"nan": "skip_step"}]
    first = make_trainer(encoded(16), *map(TrainingHealthCallback, policies), model=make_tiny_model(), **options)
    first.args.max_steps = 6
    first.train()
    second = make_trainer(encoded(16), *map(TrainingHealthCallback, policies), model=make_tiny_model(), **options)
    second.train(resume_from_checkpoint=True)
    watching = [each for each in second.callback_handler.callbacks if isinstance(each, TrainingHealthCallback)]
    seen_steps = [each.state()["attributes"]["last_state"]["monitor"]["loss_spikes"]["seen"] for each in watching]
    assert seen_steps == [8, 8]


@pytest.mark.slow
def test_goes_back_to_the_weights_that_were_kept_before_the_resume(make_trainer, make_poisoned, tmp_path):
    """The state to go back to is older than the checkpoint: it is in its file, not in the weights of the resume."""

    def train(folder: Path, steps: int, *more: TrainerCallback, resume: bool = False) -> Trainer:
        callback = TrainingHealthCallback({"nan": "rollback"})
        options = {"save_strategy": "steps", "save_steps": 15, "output_dir": str(folder)}
        rows = with_poison(encoded(40), 35)
        trainer = make_trainer(rows, callback, *more, model=make_poisoned(), lr_scheduler_type="constant", **options)
        trainer.args.max_steps = steps
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = train(tmp_path / "whole", 20)
    point = tmp_path / "killed" / f"health-rollback-{platform.node()}.pt"
    train(tmp_path / "killed", 15, KeepsFile(point, tmp_path / "kept"))
    (tmp_path / "kept").rename(point)  # a kill leaves it there
    resumed = train(tmp_path / "killed", 20, resume=True)
    for trainer in (whole, resumed):
        assert [event.message.partition(" again")[0] for event in events(trainer)] == [
            "the loss is nan; the weights are those after step 0"
        ]
    assert same(weights(resumed.model), weights(whole.model))
    assert not point.exists()


class KeepsFile(TrainerCallback):
    def __init__(self, path: Path, copy: Path) -> None:
        self.path, self.copy = path, copy

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shutil.copy(self.path, self.copy)
