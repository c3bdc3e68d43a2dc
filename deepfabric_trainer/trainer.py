"""`DeepFabricTrainer`: `SFTTrainer` with our encoding, our batches and our metrics in its place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import TrainerCallback, TrainingArguments

from deepfabric_trainer.batches import checked, choose_collator, padded_like, with_regions
from deepfabric_trainer.collators.tree_attention import tree_attention
from deepfabric_trainer.config import DeepFabricSFTConfig
from deepfabric_trainer.head import trained_positions_only
from deepfabric_trainer.hub import HubPushes, wanted
from deepfabric_trainer.label_scores import give_up_chunks, measured_and_weighed, wants_logits
from deepfabric_trainer.laid_out import mask_for_backbone, with_tokens_of_examples
from deepfabric_trainer.launch import warn_of_launch
from deepfabric_trainer.loss import mean_weight
from deepfabric_trainer.loss_settings import columns_beside_labels, find_obstacle, refuse_weights, weights_for_collator
from deepfabric_trainer.preflight import look_at_run, look_at_settings
from deepfabric_trainer.region_metrics import RegionMetrics, without_repeats
from deepfabric_trainer.resumable import ResumableTrainer
from deepfabric_trainer.run_callbacks import add_own_callbacks, ask_for_metrics, ending_well, give, put_readers_last
from deepfabric_trainer.run_folder import own_folder
from deepfabric_trainer.steps import OptimizerStep
from deepfabric_trainer.training_order import Grouping, find_sampler
from deepfabric_trainer.training_rows import (
    drop_untrained,
    facts_of,
    holds_conversations,
    is_encoded,
    own_examples,
    rows_to_generate,
    text_column_of,
    without_assistant_only_loss,
)


class DeepFabricTrainer(HubPushes, ResumableTrainer):
    """Drop-in for [`~trl.SFTTrainer`] that trains on exactly the right tokens of tool-calling conversations.

    The constructor is `SFTTrainer`'s. With a [`DeepFabricSFTConfig`] only the assistant is trained, up to the model's
    whole context, and what a batch has in common is computed once. With a plain `SFTConfig` the run is TRL's, except
    that rows which TRL would corrupt are encoded right, which the log says. Rows that are no conversations (text,
    prompt-completion, tokenized, with images) go TRL's way, unchanged.

    Logs and evaluations of conversations also hold loss and token accuracy by region (`eval_token_accuracy_tool_name`,
    `eval_loss_tool_arguments`, ...), of the same forward pass: means over tokens, whatever the batches and processes.

    Callbacks that have a method `compute_metrics` are asked for more metrics in each evaluation, before anyone reads
    them; those without a dataset of their own generate from the evaluation rows, of several sets from the first.

    Each run is watched by a [`TrainingHealthCallback`] and leaves the report of a [`RunReportCallback`] in its output
    folder, unless there are such callbacks already, the settings `health_checks` and `run_report` say no, or, for the
    report, the folder is pushed to the hub. With a plain `SFTConfig` the watch only logs; `remove_callback` takes
    either away. In a terminal a [`TrainingProgressCallback`] stands in for transformers' bar.

    Raises:
        DataFormatError: If rows cannot be trained on; it counts them by cause and names the first.
        ConfigError: If settings, model, tokenizer and output folder cannot work together.
        HubError: If something is wanted by its name, and the Hub is not reached.
    """

    _total_train_tokens: int
    _signature_columns: list[str]
    data_collator: Any

    def __init__(
        self,
        model: Any,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            args = DeepFabricSFTConfig(f"{name.rstrip('/').split('/')[-1] or 'model'}-SFT")
        look_at_settings(args, processing_class, data_collator)
        self._facts = facts_of(model, args)
        if isinstance(args, DeepFabricSFTConfig) and args.packing and args.max_length is None:
            args.max_length = self._facts.context_length
        warn_of_launch(args)
        is_ours = isinstance(args, DeepFabricSFTConfig)
        # The parent refuses all else, by its type.
        conversations = isinstance(train_dataset, Dataset | IterableDataset) and (
            (is_ours and is_encoded(train_dataset)) or holds_conversations(train_dataset, text_column_of(args))
        )
        give_up_chunks(args, are_scored=conversations or data_collator is not None)
        self._assistant_only = bool(getattr(args, "assistant_only_loss", False))
        self._obstacle_to_weights = find_obstacle(
            args,
            conversations=conversations,
            data_collator=data_collator,
            compute_loss_func=compute_loss_func,
            formatting_func=formatting_func,
        )
        self._grouping: Grouping | None = None
        self._rows = rows_to_generate(eval_dataset)
        self._accounts: dict[str, dict[str, Any]] = {}
        self.region_metrics = RegionMetrics()
        self._step = OptimizerStep(self, getattr(args, "max_tokens_per_batch", None))
        with without_assistant_only_loss(args, conversations), wanted("the model or its tokenizer", model):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_loss_func=compute_loss_func,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
                quantization_config=quantization_config,
                peft_config=peft_config,
                formatting_func=formatting_func,
            )
        look_at_run(self, train_dataset, eval_dataset)
        add_own_callbacks(self)
        put_readers_last(self.callback_handler.callbacks)
        give(self.callback_handler.callbacks, self._rows, self._accounts)
        self.data_collator = checked(self.data_collator, self.model)
        lays_out = isinstance(self.args, DeepFabricSFTConfig) and not (self.args.packing or self.args.padding_free)
        if lays_out and conversations and data_collator is None:
            self.data_collator = choose_collator(
                self.model,
                self.args,
                pad_token_id=self._tokenizer.pad_token_id,
                loss_weights=weights_for_collator(self.args, self.train_dataset),
            )

    def add_callback(self, callback: Any) -> None:
        """Add a callback; one that wants rows to generate from and has none gets the evaluation rows."""
        super().add_callback(callback)
        give(self.callback_handler.callbacks[-1:], self._rows, self._accounts)
        put_readers_last(self.callback_handler.callbacks)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the parent does, and leave report and terminal in order also after an exception."""
        with ending_well(self.callback_handler.callbacks, self.args), own_folder(self.args):
            return super().train(*args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as the parent does; callbacks without rows of their own generate from the rows evaluated."""
        rows = self._rows if eval_dataset is None else rows_to_generate(eval_dataset)
        callbacks = [] if rows is None or isinstance(eval_dataset, str) else self.callback_handler.callbacks
        give(callbacks, rows, self._accounts)
        try:
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            give(callbacks, self._rows, self._accounts)
        return metrics

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run the parent's step, in several passes where the batch is larger than the budget; count the tokens."""
        with tree_attention(self.model):
            loss = self._step.run(model, inputs, num_items_in_batch, super().training_step)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        self._metrics["train"]["num_computed_tokens"] = [self._step.computed_tokens]
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the parent's loss, weighted, its head on trained positions only, on rows of any layout."""
        for name in ("num_tokens", "num_computed"):
            inputs.pop(name, None)
        mode = "train" if self.model.training else "eval"
        if mode == "eval":
            inputs = without_repeats(inputs, self.accelerator)
        needs_logits = wants_logits(self, inputs, return_outputs)
        with (
            tree_attention(self.model),
            mask_for_backbone(self.model, inputs) as shown,
            nullcontext(shown) if needs_logits else trained_positions_only(self.model, shown) as batch,
        ):
            weighed = measured_and_weighed(self, model, batch, mode, num_items_in_batch)
            return super().compute_loss(weighed, batch, return_outputs, num_items_in_batch)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        super()._track_num_input_tokens(with_tokens_of_examples(inputs))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Sum the weights of the labels, where the parent counts the labels."""
        count = super()._get_num_items_in_batch(batch_samples, device)
        gathers = self.args.average_tokens_across_devices and self.args.world_size > 1
        gather = self.accelerator.gather if gathers else None
        return None if count is None else count * mean_weight(batch_samples, device, gather)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = [*self._signature_columns, *columns_beside_labels(self.data_collator)]
        self._signature_columns = list(dict.fromkeys(columns))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent does; beside the training loss also that of each region."""
        if "loss" in logs:
            logs.update(self.region_metrics.take("train", self.accelerator.reduce))
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """Run the parent's loop, then add the metrics of regions and callbacks, before anyone reads them."""
        self.region_metrics.begin("eval")
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics.update(self.region_metrics.take("eval", self.accelerator.reduce, prefix))
        if description == "Evaluation":
            output.metrics.update(ask_for_metrics(self, prefix))
        return output

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the parent's loader; when logits are gathered for `compute_metrics`, with a row an example."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        chosen = self.eval_dataset[chosen] if isinstance(chosen, str) else chosen
        # Batches of a stream are cut and joined by accelerate, which takes every tensor for one of rows.
        with self._batches_of(chosen, padded=bool(self.compute_metrics) or isinstance(chosen, IterableDataset)):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Return the parent's loader with a row an example, since `predict` gives back logits."""
        with self._batches_of(test_dataset, padded=True):
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _batches_of(self, dataset: Any, *, padded: bool = False) -> Iterator[None]:
        collator = self.data_collator
        self.data_collator = with_regions(padded_like(collator) if padded else collator, dataset)
        try:
            yield
        finally:
            self.data_collator = collator

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Any:
        own = own_examples(
            dataset,
            processing_class,
            args,
            dataset_name,
            self._facts,
            assistant_only=self._assistant_only,
            packing=packing,
            formatting_func=formatting_func,
        )
        if own is None:
            dataset = refuse_weights(dataset, self._obstacle_to_weights, dataset_name)
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        prepared, grouping, self._accounts[dataset_name] = own
        prepared = refuse_weights(prepared, self._obstacle_to_weights, dataset_name)
        if dataset_name == "train":
            self._grouping = None if grouping is None else replace(grouping, dataset=prepared)
        if not packing:
            return prepared
        prepared = prepared.select_columns(["input_ids", "labels"])
        packed = super()._prepare_dataset(prepared, processing_class, args, packing, None, dataset_name)
        return drop_untrained(packed, args, dataset_name)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return a sampler that puts examples which begin alike into one batch, where the settings ask for it."""
        sampler = None
        # What comes in is the dataset without the columns that are not needed.
        if self._grouping is not None and self.train_dataset is self._grouping.dataset:
            sampler = self._grouping.sampler(self.args)
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def get_train_dataloader(self) -> Any:
        """Return the parent's loader, which tells the epoch to a sampler of ours also after a resume."""
        self.region_metrics.begin("train")
        with self._batches_of(self.train_dataset):
            loader = super().get_train_dataloader()
        sampler = find_sampler(loader)
        if sampler is not None:
            # accelerate looks for the sampler when it wraps batches to skip, and finds only what was set.
            loader.set_sampler(sampler)
        return loader
