import logging
import math
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import TrainerCallback

from deepfabric_trainer.callbacks._generated_turns import generate_turns, summarize_samples
from deepfabric_trainer.callbacks._measurements import GenerationResult, TurnSample
from deepfabric_trainer.callbacks._sampled_turns import Turn, choose_turns, encode_prompt
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.toolcalls import parse_tool_calls

__all__ = ["GenerationResult", "SampleGenerationCallback", "TurnSample"]

logger = logging.getLogger(__name__)


class SampleGenerationCallback(TrainerCallback):
    """Measure tool calling by generation: before training, every N steps, and at each evaluation.

    A fixed sample of recorded assistant turns is generated greedily from the recorded history, parsed and scored.
    The metrics (`eval_tool_call_exact_match`, `_exact_match_low`, `_exact_match_high`, `_name`, `_arguments`,
    `_schema_valid`, `_decision`, `_parsed`, `_false_call`, `_missed_call`, `_turns`, `_turns_with_call`) are means
    over the sampled turns; `_false_call` is over the turns that expect no call and `_missed_call` over those that
    expect one, 0.0 where there are none. A malformed call counts as a call that is wrong. The metrics are part of
    `evaluate()`'s, so that `metric_for_best_model` and early stopping work on them, and of `state.log_history`; a
    measurement outside an evaluation is in `log_history` only.

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
    ) -> None:
        counts = {"num_samples": num_samples, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        if every_n_steps is not None:
            counts["every_n_steps"] = every_n_steps
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"`{name}` is {value}", expected="at least 1", fix=f"pass a larger `{name}`")
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
        self.results: list[GenerationResult] = []
        self._turns: list[Turn] = []
        self._turns_dataset: Any = None
        self._measured: tuple[Any, ...] | None = None
        self._last: GenerationResult | None = None
        self._warned: set[str] = set()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **kwargs: Any
    ) -> None:
        """Check that there is something to generate, and measure the model as it is."""
        self._measured = None
        self._encode_turns(model, processing_class)
        if self.at_start and state.global_step == 0:
            self._measure_between_evaluations(model, processing_class, state)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **kwargs: Any
    ) -> None:
        """Measure every `every_n_steps` steps."""
        if self.every_n_steps is not None and state.global_step % self.every_n_steps == 0:
            self._measure_between_evaluations(model, processing_class, state)

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

    def _measure_between_evaluations(self, model: Any, processing_class: Any, state: Any) -> None:
        result = self._measure(model, processing_class, state)
        if result is not None:
            state.log_history.append({**result.metrics, "epoch": state.epoch, "step": state.global_step})
            self._show(result)

    def _measure(self, model: Any, processing_class: Any, state: Any) -> GenerationResult | None:
        """Return the result for the model as it is now, `None` if generation failed."""
        turns = self._encode_turns(model, processing_class)
        setting = (state.global_step, id(self._rows()), self.max_new_tokens, self.batch_size, _fingerprint(model))
        if all(gather_object([self._measured == setting])):
            return self._last
        self._measured, self._last = setting, None
        try:
            samples = generate_turns(
                model, processing_class, turns, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size
            )
        except Exception:
            if self.raise_on_error:
                raise
            self._warn_once(
                "failed", f"generation failed, and the run goes on without its metrics\n{traceback.format_exc()}"
            )
            return None
        summary = summarize_samples(samples)
        metrics = {f"{self.metric_prefix}_tool_call_{name}": value for name, value in summary.items()}
        self._last = GenerationResult(state.global_step, metrics, samples)
        self.results.append(self._last)
        return self._last

    def _encode_turns(self, model: Any, processing_class: Any) -> list[tuple[Turn, list[int]]]:
        """Return the sampled turns that can be generated, each with the token ids of its prompt."""
        if processing_class is None:
            raise ConfigError(
                "the trainer has no processing_class",
                expected="a tokenizer with a chat template",
                fix="pass `processing_class=tokenizer` to the trainer",
            )
        rows = self._rows()
        if rows is None:
            raise ConfigError(
                "`SampleGenerationCallback` has no dataset",
                expected="rows of `messages` and `tools`",
                fix="pass `SampleGenerationCallback(dataset=rows)`, or use `DeepFabricTrainer` with an `eval_dataset`",
            )
        parse_tool_calls(processing_class, "")  # raises for a template whose calls nobody could read
        if self._turns_dataset is not rows:
            self._turns = choose_turns(rows, self.num_samples, self.seed)
            self._turns_dataset = rows
        config = getattr(model, "config", None)
        context = getattr(config, "max_position_embeddings", None) or math.inf
        turns, left_out = [], []
        for turn in self._turns:
            try:
                ids = encode_prompt(processing_class, turn)
            except Exception as error:  # templates raise what they like
                left_out.append(f"row {turn.row} cannot be rendered ({error})")
                continue
            if len(ids) + self.max_new_tokens > context:
                left_out.append(f"row {turn.row} takes {len(ids)} + {self.max_new_tokens} of {context} tokens")
            else:
                turns.append((turn, ids))
        if not turns:
            raise ConfigError(
                f"none of the {len(self._turns)} sampled turns can be generated: {left_out[0]}",
                expected="prompts that the chat template renders and the model's context holds",
                fix="pass other rows, or a smaller `max_new_tokens`",
            )
        if left_out:
            self._warn_once(
                "left out", f"{len(left_out)} of {len(self._turns)} sampled turns are not generated: {left_out[0]}"
            )
        return turns

    def _rows(self) -> Sequence[Any] | None:
        """Return the rows to choose turns from: those given, or those that the trainer evaluates on."""
        return self.trainer_rows if self.dataset is None else self.dataset

    def _warn_once(self, cause: str, message: str) -> None:
        if cause not in self._warned and PartialState().is_main_process:
            logger.warning(message)
        self._warned.add(cause)

    def _show(self, result: GenerationResult) -> None:
        if self.print_samples == 0 or not PartialState().is_main_process:
            return
        tqdm.write(f"step {result.step}: " + ", ".join(f"{key} {value:.4g}" for key, value in result.metrics.items()))
        for sample in result.samples[: self.print_samples]:
            expected = [call["function"] for call in sample.expected_calls] or sample.expected_text
            tqdm.write(f"  row {sample.row}\n    expected  {expected!r}\n    generated {sample.predicted_text!r}")


def _fingerprint(model: Any) -> tuple[float, ...]:
    """Return sums that change with the weights, so that a reloaded checkpoint is not taken for the model before it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad] or list(model.parameters())
    sums = [parameter.detach().sum(dtype=torch.float64) for parameter in parameters]
    return tuple(torch.stack([value.cpu() for value in sums]).tolist())
