"""`SampleGenerationCallback`: is the right tool called with the right arguments, measured while it trains."""

import logging
import math
import traceback
from collections.abc import Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import TrainerCallback

from deepfabric_trainer.callbacks._generation.measuring import fingerprint, measure, require_positive
from deepfabric_trainer.callbacks._generation.prompts import Shown
from deepfabric_trainer.callbacks._generation.sample import Sample, Sampler, SampleSettings
from deepfabric_trainer.callbacks._generation.text import describe
from deepfabric_trainer.callbacks._generation.turns import stop_ids_of
from deepfabric_trainer.callbacks._journal import journal_of
from deepfabric_trainer.callbacks._measurements import GenerationResult, TurnSample
from deepfabric_trainer.errors import DeepFabricTrainerError

__all__ = ["GenerationResult", "SampleGenerationCallback", "TurnSample"]

logger = logging.getLogger(__name__)


class SampleGenerationCallback(TrainerCallback):
    """Measure tool calling by generation: before training, every N steps, and at each evaluation.

    A fixed sample of recorded assistant turns is generated greedily from the recorded history, parsed and scored.
    The metrics (`eval_tool_call_exact_match`, `_exact_match_low`, `_exact_match_high`, `_name`, `_arguments`,
    `_schema_valid`, `_decision`, `_parsed`, `_false_call`, `_missed_call`, `_parameter_types`, `_valid_call`,
    `_overall_score`, `_turns`, `_turns_with_call`) are means over the sampled turns; `_false_call` is over the turns
    that expect no call and `_missed_call` over those that expect one, 0.0 where there are none. A malformed call
    counts as a call that is wrong. The metrics are part of `evaluate()`'s, so that `metric_for_best_model` and early
    stopping work on them, and of `state.log_history`; a measurement outside an evaluation is in `log_history` only.

    With `replay=True` whole conversations are played too: as long as the model makes the recorded calls the recorded
    results are given and it goes on, otherwise the conversation ends there. `_replay_success` is the share that is
    played to the end, with its interval `_replay_success_low`, `_replay_success_high`; `_replay_turns_right` the
    share of their turns that were made before; `_replay_conversations` how many there are.

    A prompt is what the encoder trains the turn behind, to the token; with a `DeepFabricSFTConfig` its tool strategy
    and `reasoning` hold. Its `max_length` does not: histories are as long as they were recorded. What prompts share
    is computed once, and turns are spread over the processes.

    In a plain `Trainer` give this callback before those that read its metrics. An evaluation with another prefix
    than `metric_prefix` (`predict`, `evaluate(..., metric_key_prefix="test")`) is left alone.

    Model, tokenizer and random state are as before after each measurement. If generation fails inside training, the
    first failure is logged with its traceback and the run goes on.

    Args:
        dataset (`datasets.Dataset` or `list[dict[str, Any]]`, *optional*): Rows of `messages` and `tools`.
            `DeepFabricTrainer` gives its evaluation rows when there is none.
        num_samples (`int`): How many turns, with and without calls in their proportion.
        every_n_steps (`int`, *optional*): Also measure each time this many steps are done.
        at_start (`bool`): Also measure before the first step.
        max_new_tokens (`int`): The most tokens a turn may take.
        batch_size (`int`): Turns generated at a time, in each process.
        seed (`int`): Chooses the sample.
        metric_prefix (`str`): Stands before `_tool_call_...`.
        print_samples (`int`): How many turns to show after each measurement.
        raise_on_error (`bool`): Let a failure of generation end the run.
        max_seconds (`float`, *optional*): Begin no more batches when a measurement has taken this long; each process
            looks at its own clock and finishes a batch at least. What is left out is counted in
            `_turns_left_out`; what was done has calls in the same proportion.
        replay (`bool`): Also play whole conversations.
        num_conversations (`int`): How many, of those that make a call.

    Raises:
        ConfigError: If a number is not positive; when training begins, if there is no dataset, no tokenizer, or no
            turn that can be generated.
        TemplateError: When training begins, if the chat template's tool calls cannot be read.
    """

    def __init__(
        self,
        dataset: Sequence[Any] | None = None,
        *,
        num_samples: int = 32,
        every_n_steps: int | None = None,
        at_start: bool = True,
        max_new_tokens: int = 256,
        batch_size: int = 16,
        seed: int = 0,
        metric_prefix: str = "eval",
        print_samples: int = 0,
        raise_on_error: bool = False,
        max_seconds: float | None = None,
        replay: bool = False,
        num_conversations: int = 16,
    ) -> None:
        counts = {
            "num_samples": num_samples,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "num_conversations": num_conversations,
        }
        if every_n_steps is not None:
            counts["every_n_steps"] = every_n_steps
        require_positive(counts, max_seconds)
        self.dataset = dataset
        self.trainer_rows: Sequence[Any] | None = None
        self.num_samples = num_samples
        self.every_n_steps = every_n_steps
        self.at_start = at_start
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.seed = seed
        self.metric_prefix = metric_prefix
        self.print_samples = print_samples
        self.raise_on_error = raise_on_error
        self.max_seconds = max_seconds
        self.replay = replay
        self.num_conversations = num_conversations
        self.results: list[GenerationResult] = []
        self._shown = Shown()
        self._sampler = Sampler()
        self._measured: tuple[Any, ...] | None = None
        self._last: GenerationResult | None = None
        self._told: GenerationResult | None = None
        self._training = False
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and what was measured, without what belongs to a run."""
        return {**vars(self), "trainer_rows": None, "_measured": None, "_told": self._last, "_training": False}

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over which tools and which reasoning the trainer shows the model."""
        self._shown = Shown.by(args)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **kwargs: Any
    ) -> None:
        """Check that there is something to generate, and measure the model as it is."""
        self._shown = Shown.by(args)
        self._measured = None
        self._make_sample(model, processing_class)
        self._training = True
        if self.at_start and state.global_step == 0:
            self._measure_between_evaluations(model, processing_class, state, control)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **kwargs: Any
    ) -> None:
        """Measure every `every_n_steps` steps."""
        if self.every_n_steps is not None and state.global_step % self.every_n_steps == 0:
            self._measure_between_evaluations(model, processing_class, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on what cannot be measured is an error again, not a line in the log."""
        self._training = False

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        processing_class: Any = None,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the metrics into the evaluation's, if the trainer has not done it through `compute_metrics`."""
        ours = f"{self.metric_prefix}_tool_call_"
        if metrics is None or not any(key.startswith(f"{self.metric_prefix}_") for key in metrics):
            return
        if not any(key.startswith(ours) for key in metrics):
            result = self._measure(model, processing_class, state)
            if result is not None:
                metrics.update(result.metrics)
                if state.log_history and state.log_history[-1].get("step") == state.global_step:
                    state.log_history[-1].update(result.metrics)
                self._show(result)
        self._tell(control)
        best = args.metric_for_best_model or ""
        for key in (best, f"eval_{best}"):
            if key.startswith(ours):
                # After a failed generation the trainer would end the run on the missing key; NaN is never the best.
                metrics.setdefault(key, math.nan)

    def compute_metrics(
        self, *, model: Any, processing_class: Any, state: Any, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the metrics to put into an evaluation's own before it logs them.

        Evaluations at one step of one model (several datasets) share one measurement.

        Args:
            model (`PreTrainedModel`): The model as it is now.
            processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Renders the prompts.
            state (`TrainerState`): Gives the step.
            metric_key_prefix (`str`): The evaluation's prefix.

        Returns:
            `dict[str, float]`: Named `{metric_prefix}_tool_call_...`; empty when the evaluation is of another kind
            (`metric_key_prefix` is neither `metric_prefix` nor begins with it and `_`) or when generation failed.
        """
        if not f"{metric_key_prefix}_".startswith(f"{self.metric_prefix}_"):
            return {}
        result = self._measure(model, processing_class, state)
        if result is None:
            return {}
        self._show(result)
        return dict(result.metrics)

    def _measure_between_evaluations(self, model: Any, processing_class: Any, state: Any, control: Any) -> None:
        result = self._measure(model, processing_class, state)
        if result is not None:
            state.log_history.append({**result.metrics, "epoch": state.epoch, "step": state.global_step})
            self._show(result)
        self._tell(control)

    def _measure(self, model: Any, processing_class: Any, state: Any) -> GenerationResult | None:
        """Return the result for the model as it is now, `None` if generation failed."""
        try:
            sample = self._make_sample(model, processing_class)
        except DeepFabricTrainerError:
            if self.raise_on_error or not self._training:
                raise
            self._warn_of_failure()
            return None
        setting = (state.global_step, id(self._rows()), self.max_new_tokens, self.batch_size, fingerprint(model))
        if all(gather_object([self._measured == setting])):
            return self._last
        self._measured, self._last = setting, None
        try:
            self._last = self._generate(model, processing_class, sample, state)
        except Exception:
            if self.raise_on_error:
                raise
            self._warn_of_failure()
            return None
        self.results.append(self._last)
        return self._last

    def _generate(self, model: Any, processing_class: Any, sample: Sample, state: Any) -> GenerationResult:
        measured = measure(
            model,
            processing_class,
            sample,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            max_seconds=self.max_seconds,
            plays=self.replay,
        )
        if measured.left_out:
            wanted = len(sample.turns) + len(sample.conversations)
            self._warn_once(
                "time",
                f"`max_seconds` ({self.max_seconds:g}) left {measured.left_out} of {wanted} sampled turns and "
                "conversations out; the metrics count those that were done",
            )
        return measured.result(self.metric_prefix, state.global_step, state.epoch)

    def _make_sample(self, model: Any, processing_class: Any) -> Sample:
        settings = SampleSettings(
            num_turns=self.num_samples,
            num_conversations=self.num_conversations if self.replay else 0,
            seed=self.seed,
            shown=self._shown,
            stop_token_ids=tuple(stop_ids_of(model)),
            max_new_tokens=self.max_new_tokens,
            context_length=getattr(getattr(model, "config", None), "max_position_embeddings", None),
        )
        sample = self._sampler.sample(self._rows(), processing_class, settings)
        for cause, remark in sample.remarks.items():
            self._warn_once(cause, remark)
        return sample

    def _rows(self) -> Sequence[Any] | None:
        """Return the rows to choose turns from: those given, or those that the trainer evaluates on."""
        return self.trainer_rows if self.dataset is None else self.dataset

    def _tell(self, control: Any) -> None:
        """Add the last result to the run's journal: `compute_metrics` has no control, the event behind it has."""
        if self._last is not None and self._last is not self._told:
            self._told = self._last
            journal_of(control).add(self._last)

    def _warn_of_failure(self) -> None:
        self._warn_once(
            "failed", f"generation failed, and the run goes on without its metrics\n{traceback.format_exc()}"
        )

    def _warn_once(self, cause: str, message: str) -> None:
        if cause not in self._warned and PartialState().is_main_process:
            logger.warning(message)
        self._warned.add(cause)

    def _show(self, result: GenerationResult) -> None:
        if self.print_samples and PartialState().is_main_process:
            tqdm.write(describe(result, self.print_samples))
