"""One optimizer step: its micro-batches in passes that fit into memory, and what is counted of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from traceback import clear_frames
from typing import Any

import torch
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache

from deepfabric_trainer.batches import LAID_OUT
from deepfabric_trainer.passes import TokenBudget, fold, is_out_of_memory, trained_weight, without_labels

_MEANS = ("entropy", "mean_token_accuracy")
"""What TRL logs as the mean of its forward passes."""
Pass = Callable[..., torch.Tensor]


class OptimizerStep:
    """Runs the micro-batches of optimizer steps, and does a step anew when memory runs out in it.

    Args:
        trainer (`SFTTrainer`): Whose steps they are.
        max_tokens (`int`, *optional*): How many tokens, with padding, go through the model at a time.
    """

    def __init__(self, trainer: Any, max_tokens: int | None) -> None:
        self.trainer = trainer
        self.budget = TokenBudget(max_tokens)
        self.computed_tokens = 0
        self.passes = 1
        self._done: list[tuple[dict[str, Any], Any]] = []
        self._logged: dict[str, int] = {}
        self._regions: torch.Tensor | None = None

    def run(self, model: Any, batch: dict[str, Any], num_items: Any, run_pass: Pass) -> torch.Tensor:
        """Run a micro-batch.

        Args:
            model (`torch.nn.Module`): The model as it is wrapped for training.
            batch (`dict[str, Any]`): The micro-batch; `num_tokens` and `num_computed` are taken out of it.
            num_items (`torch.Tensor`, *optional*): The labels of the optimizer step, or the sum of their weights.
            run_pass (`Callable`): The parent's `training_step`: forward and backward.

        Returns:
            `torch.Tensor`: The loss, detached, a scalar.

        Raises:
            RuntimeError: If memory runs out, and smaller passes are no way out.
        """
        trainer, tokens = self.trainer, self.trainer._total_train_tokens
        counts = _take_counts(batch)
        if not self._done:
            self._logged = {name: len(values) for name, values in trainer._metrics["train"].items()}
            self._regions = trainer.region_metrics.saved("train")
        self._done.append((batch, num_items))
        try:
            loss = self._try(model, run_pass)
        except BaseException:
            self.forget()
            raise
        if trainer.accelerator.sync_gradients:
            self._done.clear()
        if counts is None:
            self.computed_tokens += trainer._total_train_tokens - tokens
        else:
            # Not `gather_for_metrics`: it takes rows for samples, and drops those beyond the last batch's.
            in_all = trainer.accelerator.gather(counts.to(trainer.args.device)[None]).sum(0)
            trainer._total_train_tokens = tokens + int(in_all[0])
            self.computed_tokens += int(in_all[1])
        return loss

    def forget(self) -> None:
        """Begin with a new step, whatever became of the last one."""
        self._done.clear()

    def _try(self, model: Any, run_pass: Pass) -> torch.Tensor:
        """Run the last micro-batch; when memory runs out all of the step, in ever smaller passes, until it fits."""
        wanted = self._done[-1:]
        while True:
            try:
                return [self._run_passes(model, batch, num_items, run_pass) for batch, num_items in wanted][-1]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._make_smaller(model, error)
                # The frames that the error names hold what the failed pass had computed.
                clear_frames(error.__traceback__)
            clear_device_cache(garbage_collection=True)
            wanted = self._done

    def _run_passes(self, model: Any, batch: dict[str, Any], num_items: Any, run_pass: Pass) -> torch.Tensor:
        trainer = self.trainer
        passes = self.budget.split(batch, trainer.data_collator)
        count = self._most(len(passes))
        if count == 1:
            return run_pass(model, dict(batch), num_items)
        is_scaled = num_items is not None
        if num_items is None:
            num_items = self._items_of(batch)
        # Those that train nothing come first: the last pass is the one in which processes join their gradients.
        passes = [*[without_labels(passes[0])] * (count - len(passes)), *passes]
        losses = []
        with self._folded(passes), self._mean_over(len(passes) if is_scaled else 1):
            for number, part in enumerate(passes, start=1):
                with nullcontext() if number == count else self._alone(model):
                    losses.append(run_pass(model, dict(part), num_items))
        return torch.stack(losses).sum()

    def _make_smaller(self, model: Any, error: Exception) -> None:
        """Halve the budget, and take back what the optimizer step has done so far; raise the error if it cannot be."""
        trainer = self.trainer
        if trainer.accelerator.distributed_type != DistributedType.NO:
            error.add_note("set `max_tokens_per_batch`: over several processes a step cannot be done anew")
            raise error
        if not self.budget.halve([batch for batch, _ in self._done], trainer.data_collator):
            error.add_note("a single example does not fit into memory: lower `max_length`")
            raise error
        if isinstance(trainer.data_collator, LAID_OUT) and self.budget.max_tokens is not None:
            trainer.data_collator = trainer.data_collator.with_rows_of(self.budget.max_tokens)
        model.zero_grad()
        for name, values in trainer._metrics["train"].items():
            del values[self._logged.get(name, 0) :]
        trainer.region_metrics.restore("train", self._regions)

    def _most(self, count: int) -> int:
        """Return the number of passes of the process that has most: each joins in what is gathered in every pass."""
        accelerator = self.trainer.accelerator
        if self.budget.max_tokens is None or accelerator.num_processes == 1:
            return count
        return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())

    def _items_of(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return what a micro-batch is normalized by, when it is by its own labels."""
        trainer = self.trainer
        weight = trained_weight(batch, trainer.args.device)
        # TRL multiplies by this again, since the number is usually that of all processes.
        return weight * (trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1)

    @contextmanager
    def _folded(self, passes: list[dict[str, Any]]) -> Iterator[None]:
        """Let the passes log as the one that they stand for."""
        yield
        trainer = self.trainer
        labels = torch.stack([part["labels"][..., 1:].ne(-100).sum() for part in passes]).to(trainer.args.device)
        of_all = trainer.accelerator.gather(labels[None]).sum(0).tolist()
        for name in _MEANS:
            values = trainer._metrics["train"][name]
            if len(values) >= len(passes):
                fold(values, len(passes), of_all)

    @contextmanager
    def _mean_over(self, passes: int) -> Iterator[None]:
        """Let a router's auxiliary loss, which is a mean of each pass, be the mean of the passes and not their sum."""
        trainer = self.trainer
        steps = trainer.current_gradient_accumulation_steps
        if trainer.aux_loss_enabled:
            trainer.current_gradient_accumulation_steps, self.passes = steps * passes, passes
        try:
            yield
        finally:
            trainer.current_gradient_accumulation_steps, self.passes = steps, 1

    @contextmanager
    def _alone(self, model: Any) -> Iterator[None]:
        """Keep processes from joining their gradients in this pass."""
        accelerator = self.trainer.accelerator
        syncs = accelerator.sync_gradients
        accelerator.gradient_state._set_sync_gradients(False)
        try:
            with accelerator.no_sync(model):
                yield
        finally:
            accelerator.gradient_state._set_sync_gradients(syncs)


def _take_counts(batch: dict[str, Any]) -> torch.Tensor | None:
    """Take out of a batch how many tokens its examples have, and how many are computed; `None` leaves it to TRL."""
    counts = [batch.pop(name, None) for name in ("num_tokens", "num_computed")]
    if counts[0] is not None:
        return torch.stack(counts)
    mask = batch.get("attention_mask")
    return mask.sum().repeat(2) if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None
