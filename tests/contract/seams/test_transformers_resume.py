"""What we rely on in the loop and the checkpoints of transformers' `Trainer`, to end a run and to go on with it."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from tests.contract.seams import test_transformers_trainer
from tests.contract.seams.seam import Seam
from tests.contract.seams.test_transformers_trainer import Make

RESUMABLE, SUMS, HUB = (f"deepfabric_trainer/{name}.py" for name in ("resumable", "between_logs", "hub"))
SAVING = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}

make = test_transformers_trainer.make


class Noted(Trainer):  # type: ignore[misc]
    """Notes the calls of what is overridden in `deepfabric_trainer/resumable.py`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.notes: list[Any] = []
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.notes.clear()
        return super().train(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.notes.append(("save_model", Path(output_dir or "").name, _internal_call))
        super().save_model(output_dir, _internal_call)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        found: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        self.notes.append(("_init_training_state", max_steps, num_update_steps_per_epoch, found))
        return found

    def _load_callback_state(self) -> None:
        self.notes.append("_load_callback_state")
        super()._load_callback_state()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self.notes.append("_run_epoch")
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.notes.append(("_maybe_log_save_evaluate", self.control.should_save))
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        self.notes.append(("_evaluate", skip_scheduler))
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.notes.append(("_save_checkpoint", Path(self._get_output_dir(trial)) == Path(self.args.output_dir)))
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.notes.append(("_save_rng_state", (Path(output_dir) / "rng_state.pth").is_file()))


@Seam(
    "transformers",
    "the private methods of Trainer around a step, an epoch and a checkpoint: their names and their order",
    RESUMABLE,
    private=(
        *("_run_epoch", "_maybe_log_save_evaluate", "_evaluate"),
        *("_save_checkpoint", "_get_output_dir", "_save_rng_state"),
    ),
)
def test_the_order_of_a_run(make: Make) -> None:
    trainer = make(Noted, **SAVING, max_steps=1, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    trainer.train()
    assert trainer.notes == [
        ("_init_training_state", 1, 2, (0, 0)),
        ("_evaluate", True),
        "_run_epoch",
        ("_maybe_log_save_evaluate", True),
        ("_evaluate", False),
        ("_save_checkpoint", True),
        ("save_model", "checkpoint-1", True),
        ("_save_rng_state", True),
        ("_maybe_log_save_evaluate", False),
    ]


@Seam(
    "transformers",
    "Trainer._init_training_state, which tells how far a checkpoint is, and loads the states of callbacks",
    RESUMABLE,
    private=("_init_training_state", "_load_callback_state"),
)
def test_the_order_of_a_run_that_goes_on(make: Make, tmp_path: Path) -> None:
    given = list(inspect.signature(Trainer._init_training_state).parameters)[1:]
    assert given[:3] == ["max_steps", "num_update_steps_per_epoch", "num_train_epochs"]
    assert given[3:] == ["resume_from_checkpoint", "trial"]
    make(Noted, **SAVING, max_steps=1).train()
    trainer = make(Noted, **SAVING, max_steps=3, gradient_accumulation_steps=2, per_device_train_batch_size=1)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert trainer.notes[:3] == ["_load_callback_state", ("_init_training_state", 3, 2, (0, 2)), "_run_epoch"]
    assert trainer.state.global_step == 3


@Seam("transformers", "control.should_training_stop, after which no epoch is begun", RESUMABLE)
def test_an_epoch_that_is_not_run(make: Make) -> None:
    class Stopped(Trainer):  # type: ignore[misc]
        def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
            self.control.should_training_stop = True

    trainer = make(Stopped)
    assert trainer.train().metrics["epoch"] == trainer.state.global_step == 0


@Seam(
    "transformers",
    "the sums of a Trainer, set before on_train_begin and read by the next log",
    SUMS,
    RESUMABLE,
    private=("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"),
)
def test_sums(make: Make, tmp_path: Path) -> None:
    make(**SAVING, max_steps=2).train()

    class Given(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found = (trainer._tr_loss.item(), trainer._total_loss_scalar, trainer._globalstep_last_logged)
            assert (found, state.global_step) == ((0, 0, 2), 2)
            trainer._tr_loss.fill_(5.0)
            trainer._total_loss_scalar = 100.0
            trainer._globalstep_last_logged = 1

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            losses.append(trainer._tr_loss.item())

    losses: list[float] = []
    trainer = make(callbacks=[Given()], max_steps=3, logging_steps=1)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses[0] > 5
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] == pytest.approx(losses[0] / 2)
    assert trainer._total_loss_scalar == pytest.approx(100 + losses[0])


@Seam("transformers", "Trainer.log, given the metrics of the end that train() returns", RESUMABLE)
def test_the_metrics_of_the_end(make: Make) -> None:
    class Own(Trainer):  # type: ignore[misc]
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "train_loss" in logs:
                logs["train_loss"] = 7.0
            super().log(logs, start_time)

    output = make(Own).train()
    assert output.metrics["train_loss"] == 7
    assert output._replace(training_loss=7.0).training_loss == 7


@Seam(
    "transformers",
    "Trainer._determine_best_metric, by whose answer save_strategy='best' saves, and best_global_step",
    RESUMABLE,
    "deepfabric_trainer/checkpoints.py",
    private=("_determine_best_metric",),
)
def test_the_best_checkpoint(make: Make, tmp_path: Path) -> None:
    class Unsaved(Trainer):  # type: ignore[misc]
        def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
            return not super()._determine_best_metric(metrics, trial)

    options = {"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 1}
    for kind, folders in ((Unsaved, []), (Trainer, ["checkpoint-1"])):
        trainer = make(kind, **options, max_steps=1)
        trainer.train()
        assert trainer.state.best_global_step == 1
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == folders


@Seam("transformers", "save_total_limit, read after the model is saved, and rotate_checkpoints", RESUMABLE)
def test_older_checkpoints(make: Make, tmp_path: Path) -> None:
    class Keeping(Trainer):  # type: ignore[misc]
        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            super().save_model(output_dir, _internal_call)
            self.args.save_total_limit = None

    make(Keeping, **SAVING, save_total_limit=1).train()
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")
    assert (tmp_path / "checkpoint-1").is_dir()
    rotate_checkpoints(output_dir=str(tmp_path), save_total_limit=1, best_model_checkpoint=None, use_mtime=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


@Seam(
    "transformers",
    "Trainer._push_from_checkpoint(checkpoint_folder) at each save, and _finish_current_push",
    HUB,
    RESUMABLE,
    private=("_push_from_checkpoint", "_finish_current_push"),
)
def test_pushes(make: Make, tmp_path: Path) -> None:
    class Pushing(Noted):
        def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
            self.hub_model_id = "some/model"

        def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
            assert (Path(checkpoint_folder) / "trainer_state.json").is_file()
            self.notes.append("_push_from_checkpoint")

        def _finish_current_push(self) -> None:
            self.notes.append("_finish_current_push")

    trainer = make(Pushing, **SAVING, max_steps=1, push_to_hub=True)
    trainer.train()
    assert [note for note in trainer.notes if "push" in str(note)] == ["_push_from_checkpoint", "_finish_current_push"]
    jobs = [SimpleNamespace(done=lambda: True)]
    trainer.push_in_progress = SimpleNamespace(jobs=jobs, is_done=lambda: True)
    assert Trainer._finish_current_push(trainer) is None


@Seam("transformers", "enable_jit_checkpoint of TrainingArguments", RESUMABLE)
def test_saving_just_in_time() -> None:
    assert TrainingArguments("x").enable_jit_checkpoint is False


@Seam(
    "transformers",
    "the files of a checkpoint, of which trainer_state.json is the last",
    "deepfabric_trainer/checkpoints.py",
)
def test_the_files_of_a_checkpoint(make: Make, tmp_path: Path) -> None:
    make(**SAVING, max_steps=1).train()
    files = sorted((tmp_path / "checkpoint-1").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert files[-1].name == "trainer_state.json"
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {path.name for path in files}
