"""What SIGINT and SIGTERM do to a training."""

import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import SFTConfig

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer, interruption
from deepfabric_trainer.callbacks import MetricsLoggerCallback
from deepfabric_trainer.checkpoints import find_defect
from deepfabric_trainer.interruption import Interruption, TrainingTerminated
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

GO_ON = "`trainer.train(resume_from_checkpoint=True)`"


class Sends(TrainerCallback):
    """Sends this process signals in a step."""

    def __init__(self, step: int, *signals: signal.Signals) -> None:
        self.step = step
        self.signals = signals

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            signals, self.signals = self.signals, ()
            for number in signals:
                os.kill(os.getpid(), number)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def make(*signals: signal.Signals, step: int = 2, kind: type = DeepFabricSFTConfig, **options: Any) -> Any:
        tokenizer = tiny_tokenizer()
        settings = {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "save_strategy": "steps",
            "logging_steps": 3,
        }
        return DeepFabricTrainer(
            model=tiny_model(tokenizer),
            processing_class=tokenizer,
            args=kind(str(tmp_path / "run"), **{**QUIET, **settings, **options}),
            train_dataset=to_dataset(tool_rows()),
            eval_dataset=to_dataset(tool_rows()[:2]),
            callbacks=[Sends(step, *signals), MetricsLoggerCallback()],
        )

    return make


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def logged(trainer: Any) -> list[dict[str, Any]]:
    clock = ("runtime", "per_second")
    return [
        {key: value for key, value in entry.items() if not key.endswith(clock)} for entry in trainer.state.log_history
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DeepFabricSFTConfig, SFTConfig])
@pytest.mark.parametrize(
    ("number", "kind_of_error", "code"),
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, TrainingTerminated, 143)],
)
def test_the_step_is_finished_and_saved_and_the_run_can_go_on(
    make: Any, tmp_path: Path, number: Any, kind_of_error: Any, code: Any, kind: type
) -> None:
    with pytest.raises(kind_of_error) as caught:
        make(number, kind=kind).train()
    expected = f"{number.name} ended the training after step 2 of 4; checkpoint-2 is saved; go on with {GO_ON}"
    assert str(caught.value) == expected
    assert getattr(caught.value, "code", None) == code
    assert isinstance(caught.value, KeyboardInterrupt | SystemExit)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert find_defect(checkpoint) is None
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["status"] == "interrupted"
    assert f"The run was interrupted at step 2 of 4 ({number.name}" in report["verdict"]["sentence"]
    assert GO_ON in report["verdict"]["sentence"]
    assert [event["kind"] for event in report["events"]] == ["interrupted"]
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert ("interrupted", 2) in [(event["kind"], event["step"]) for event in events]

    resumed = make(kind=kind)
    resumed.train(resume_from_checkpoint=True)
    undisturbed = make(kind=kind)
    undisturbed.train()
    assert logged(resumed) == logged(undisturbed)
    pairs = zip(resumed.model.parameters(), undisturbed.model.parameters(), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)


@pytest.mark.slow
def test_an_evaluation_that_is_due_comes_first(make: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(signal.SIGINT, eval_strategy="epoch").train()
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert "eval_loss" in state["log_history"][-1]


@pytest.mark.slow
def test_a_checkpoint_of_the_step_is_not_written_twice(make: Any, tmp_path: Path) -> None:
    trainer = make(signal.SIGINT, save_steps=2)
    saved = []
    save = trainer._save_checkpoint

    def counted(*args: Any) -> None:
        saved.append(trainer.state.global_step)
        save(*args)

    trainer._save_checkpoint = counted
    with pytest.raises(KeyboardInterrupt, match="checkpoint-2 is saved"):
        trainer.train()
    assert saved == [2]


@pytest.mark.slow
def test_a_signal_that_is_repeated_at_once_is_one(make: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="after step 2"):
        make(signal.SIGINT, signal.SIGINT).train()
    assert find_defect(tmp_path / "run" / "checkpoint-2") is None


def test_a_second_signal_ends_the_run_at_once(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_REPEATED", 0.0)
    with pytest.raises(TrainingTerminated, match="SIGTERM ended the training at once"):
        make(signal.SIGINT, signal.SIGTERM).train()
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("number", "kind_of_error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TrainingTerminated)]
)
def test_where_nothing_is_saved_the_run_ends_at_once(
    make: Any, tmp_path: Path, number: Any, kind_of_error: Any
) -> None:
    with pytest.raises(kind_of_error):
        make(number, step=1, save_strategy="no").train()
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (report["status"], report["step"]) == ("interrupted", 0)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_handler_of_somebody_else_stays_in_charge(make: Any) -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    try:
        trainer = make(signal.SIGTERM)
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["theirs"]
    assert trainer.state.global_step == 4


def test_in_another_thread_nothing_is_watched() -> None:
    found: list[Any] = []

    def watch() -> None:
        with Interruption((signal.SIGINT, signal.SIGTERM)).watching():
            found.extend(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]


def test_a_signal_after_the_last_step_is_not_lost() -> None:
    with (
        pytest.raises(KeyboardInterrupt, match="when the training was over"),
        Interruption((signal.SIGINT,)).watching(),
    ):
        os.kill(os.getpid(), signal.SIGINT)


def sleep(begun: Any) -> None:
    begun.set()
    time.sleep(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_forked_process_ends_when_it_is_told_to() -> None:
    """A pool that a metric makes is ended by SIGTERM, for which its maker waits."""
    with Interruption((signal.SIGTERM,)).watching():
        context = multiprocessing.get_context("fork")
        begun = context.Event()
        process = context.Process(target=sleep, args=(begun,))
        process.start()
        begun.wait(20)
        process.terminate()
        process.join(20)
        try:
            assert process.exitcode == -signal.SIGTERM
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("noise", [None, 5.0])
def test_the_same_trainer_goes_on_after_an_end_at_once(
    make: Any, monkeypatch: pytest.MonkeyPatch, noise: float | None
) -> None:
    """What the step that was broken off has left in the trainer is no part of the next training."""
    monkeypatch.setattr(interruption, "_REPEATED", 0.0)
    options = {"neftune_noise_alpha": noise, "save_steps": 2, "logging_steps": 2}
    interrupted = make(signal.SIGINT, signal.SIGINT, step=3, **options)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    interrupted.train(resume_from_checkpoint=True)
    undisturbed = make(**options)
    undisturbed.train()
    assert logged(interrupted) == logged(undisturbed)
    pairs = zip(interrupted.model.parameters(), undisturbed.model.parameters(), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not say whom a signal is from")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_lets_those_that_load_data_finish_the_step(
    make: Any, tmp_path: Path, number: signal.Signals
) -> None:
    """As terminals, systemd and Slurm send it."""
    trainer = make(dataloader_num_workers=2, per_device_train_batch_size=1)
    trainer.add_callback(SendsToAll(number))
    with pytest.raises((KeyboardInterrupt, TrainingTerminated), match="ended the training after step 2"):
        trainer.train()
    assert find_defect(tmp_path / "run" / "checkpoint-2") is None


class SendsToAll(TrainerCallback):
    """Sends this process and those that it has begun a signal in the second step, from yet another process."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            loading = [child.pid for child in multiprocessing.active_children()]
            assert len(loading) == 2
            subprocess.run(["kill", f"-{int(self.number)}", *map(str, [*loading, os.getpid()])], check=True)
            time.sleep(0.5)
