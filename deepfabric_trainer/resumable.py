"""`ResumableTrainer`: an `SFTTrainer` whose runs can be killed at any step, and go on as if they had not been."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy, has_length
from trl import SFTTrainer

from deepfabric_trainer.between_logs import forget_sums, is_behind_epoch, restore_sums, save_sums
from deepfabric_trainer.callbacks._journal import RunEvent, journal_of
from deepfabric_trainer.checkpoints import (
    begin_checkpoint,
    choose_checkpoint,
    delete_older,
    find_best,
    finish_checkpoint,
    warn_of_lacks,
)
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.interruption import Interruption
from deepfabric_trainer.loader_seeds import draw_apart
from deepfabric_trainer.loader_signals import outlast
from deepfabric_trainer.run_callbacks import put_readers_last
from deepfabric_trainer.save_errors import CHECKPOINT, explaining_failed_saves

logger = logging.getLogger(__name__)


class ResumableTrainer(SFTTrainer):
    """Marks whole checkpoints, goes on from the newest of them, and ends with one when a signal asks for the end."""

    _interruption = Interruption()
    _is_in_step = False
    """Whether the last that was done is a step, and not an epoch's end."""
    _is_followed = False
    """Whether an epoch's end follows what is done now."""
    _is_saving = False
    _owes_save = False
    _saved_step: int | None = None
    _limit: int | None = None
    """What `save_total_limit` is, also while the parent saves without one."""
    _sums_from = 0
    """The step from which the sum of the losses goes."""

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the parent does, from a whole checkpoint; SIGINT and SIGTERM end it after a step, with one.

        Raises:
            ConfigError: If the checkpoint that is asked for is not whole, or none is.
            KeyboardInterrupt: After SIGINT.
            TrainingTerminated: After SIGTERM; a `SystemExit` with code 143.
        """
        checkpoint = self._agree_on(resume_from_checkpoint)
        # transformers' own saving on SIGTERM goes first, where it is asked for.
        is_just_in_time = getattr(self.args, "enable_jit_checkpoint", False)
        signals = (signal.SIGINT,) if is_just_in_time else (signal.SIGINT, signal.SIGTERM)
        self._interruption = Interruption(signals, waits=self._saves)
        with self._interruption.watching(), self._followed(checkpoint):
            output = super().train(checkpoint, *args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent does; the training loss at the end is that of the whole run, also after a resume."""
        if {"train_loss", "train_runtime"} <= logs.keys():
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self._sums_from, 0.001)
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as the parent does; a full disk gives an error that says what to do."""
        if not self._is_saving:
            with explaining_failed_saves(Path(output_dir or self.args.output_dir), "the model"):
                super().save_model(output_dir, _internal_call)
            return
        super().save_model(output_dir, _internal_call)
        # The arguments are in the checkpoint; what follows would only delete older ones before this one is whole.
        self.args.save_total_limit = None

    def save_state(self) -> None:
        """Save the state of the run as the parent does; a full disk gives an error that says what to do."""
        with explaining_failed_saves(Path(self.args.output_dir), "the state of the run"):
            super().save_state()

    def get_train_dataloader(self) -> Any:
        """Return the parent's loader; its processes leave signals to the main one, and no trace in dropout."""
        return self._for_a_run(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the parent's loader, likewise."""
        return self._for_a_run(super().get_eval_dataloader(eval_dataset))

    def _for_a_run(self, loader: Any) -> Any:
        outlast(loader, self._interruption.watched)
        draw_apart(loader, self.args.seed)
        return loader

    @property
    def _saves(self) -> bool:
        return str(getattr(self.args.save_strategy, "value", self.args.save_strategy)) != "no"

    def _agree_on(self, wanted: Any) -> Any:
        """Return the checkpoint that the main process finds, for all processes."""
        answer: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                answer = [choose_checkpoint(wanted, Path(self.args.output_dir))]
                warn_of_lacks(answer[0])
            except ConfigError as error:
                answer = [error]
        broadcast_object_list(answer)
        if isinstance(answer[0], ConfigError):
            raise answer[0]
        return answer[0]

    @contextmanager
    def _followed(self, checkpoint: Any) -> Iterator[None]:
        """Follow the parent's loop; let it begin with what the checkpoint keeps beside transformers' own."""

        def begin() -> None:
            forget_sums(self)
            self._is_in_step = self._owes_save = False
            self._saved_step = None
            self._sums_from = self.state.global_step
            if checkpoint is not None:
                self._sums_from = restore_sums(self, Path(checkpoint))

        def be_in_step(is_in_step: bool) -> None:
            self._is_in_step = is_in_step

        follower = _Follower(begin, be_in_step)
        self.callback_handler.callbacks.insert(0, follower)
        try:
            yield
        finally:
            self.callback_handler.callbacks.remove(follower)
            # The parent leaves its noise in a model whose training breaks off, and adds it anew in the next.
            if (noise := getattr(self, "neftune_hook_handle", None)) is not None:
                noise.remove()

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        """Return epochs and batches done, as the parent does; of a stream, whose length it does not know, also."""
        epochs, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        if checkpoint is None:
            return epochs, batches
        self.state.best_model_checkpoint = find_best(self.state, Path(checkpoint))
        if has_length(self.train_dataset) or self.args.ignore_data_skip:
            return epochs, batches
        epochs, share = divmod(self.state.epoch, 1)
        if is_behind_epoch(self, Path(checkpoint)):
            return int(epochs) + 1, 0
        return int(epochs), round(share * num_update_steps_per_epoch * self.args.gradient_accumulation_steps)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run the parent's epoch, unless the run that goes on was at its end, where the parent makes one step more."""
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        """Evaluate as the parent does, but not at the start of a run that goes on (`eval_on_start`)."""
        if skip_scheduler and self.state.global_step > 0:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        put_readers_last(self.callback_handler.callbacks)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Do as the parent does after a step or an epoch; end here if a signal asks for it."""
        # What is done at an epoch's end belongs into the checkpoint of its last step: nobody does it after a resume.
        is_at_end = self.control.should_training_stop or float(self.state.epoch).is_integer()
        self._is_followed = self._is_in_step and is_at_end
        self.control.should_save |= self._owes_save
        if self._is_followed:
            self._owes_save, self.control.should_save = self.control.should_save, False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._is_followed:
            return
        self._owes_save = False
        if not self._saves:
            return
        number = self._interruption.agreed(self.accelerator)
        if number is None:
            return
        step = self.state.global_step
        message = f"{number.name} ended the training after step {step:,} of {self.state.max_steps:,}"
        advice = "Go on with `trainer.train(resume_from_checkpoint=True)`."
        journal_of(self.control).add(RunEvent("interrupted", step, f"{message}.", advice=advice, action="stop"))
        if self._saved_step != step:
            self.control.should_save = True
            super()._maybe_log_save_evaluate(*args, **kwargs)
        self._interruption.end(f"{message}; checkpoint-{step} is saved; {advice[0].lower()}{advice[1:-1]}")

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Compare as the parent does, whose `save_strategy="best"` saves by the answer: at an epoch's end."""
        is_best: bool = super()._determine_best_metric(metrics, trial)
        if self.args.save_strategy != SaveStrategy.BEST:
            return is_best
        self._owes_save |= is_best
        return self._owes_save and not self._is_followed

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as the parent does, mark what is whole, and delete older ones only then.

        Raises:
            CheckpointError: If it cannot be written; the checkpoints before are as they were.
        """
        folder, limit = self._checkpoint_folder(trial), self.args.save_total_limit
        with explaining_failed_saves(folder, CHECKPOINT, removes=self.args.should_save):
            if self.args.should_save:
                begin_checkpoint(folder)
            self._is_saving, self._limit = True, limit
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._is_saving, self.args.save_total_limit = False, limit
            self._finish(folder)
        self._saved_step = self.state.global_step
        if self.args.should_save:
            delete_older(folder, limit, self.state.best_model_checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        save_sums(self, Path(output_dir))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._finish(Path(checkpoint_folder))
        self.args.save_total_limit = self._limit  # The parent writes the arguments once more.
        try:
            with explaining_failed_saves(Path(self.args.output_dir), "what is pushed"):
                super()._push_from_checkpoint(checkpoint_folder)
        finally:
            self.args.save_total_limit = None

    def _finish(self, folder: Path) -> None:
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            finish_checkpoint(folder)

    def _checkpoint_folder(self, trial: Any) -> Path:
        return Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"


class _Follower(TrainerCallback):
    """Tells a trainer when its loop begins, and whether it is in a step."""

    def __init__(self, begin: Callable[[], None], be_in_step: Callable[[bool], None]) -> None:
        self._begin = begin
        self._be_in_step = be_in_step

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begin()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._be_in_step(True)

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self._be_in_step(False)
