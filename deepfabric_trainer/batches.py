"""How a trainer's batches are laid out: the collator that its settings and its model admit."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from deepfabric_trainer.collators.masks import MaskForm
from deepfabric_trainer.collators.packing import PackingCollator
from deepfabric_trainer.collators.padding import pad_rows
from deepfabric_trainer.collators.shared_prefix import SharedPrefixCollator
from deepfabric_trainer.collators.support import find_mask_form, why_not
from deepfabric_trainer.collators.tool_call import ToolCallCollator
from deepfabric_trainer.config import Batching, DeepFabricSFTConfig
from deepfabric_trainer.errors import ConfigError

logger = logging.getLogger(__name__)

LAID_OUT = (SharedPrefixCollator, PackingCollator)
"""Collators whose rows are not the examples."""


def choose_collator(
    model: Any, args: DeepFabricSFTConfig, *, pad_token_id: int, loss_weights: Mapping[int, float] | None
) -> ToolCallCollator | SharedPrefixCollator | PackingCollator:
    """Return the collator for a trainer's batches; the log says when it is not what was asked for.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Not yet wrapped for several processes; it is tried out.
        args (`DeepFabricSFTConfig`): The trainer's.
        pad_token_id (`int`): The id to pad `input_ids` with.
        loss_weights (`Mapping[int, float]`, *optional*): The weights of regions in the loss.

    Raises:
        ConfigError: If the model cannot compute the layout that was asked for by name.
    """
    padded = ToolCallCollator(pad_token_id, args.pad_to_multiple_of, loss_weights=loss_weights)
    if args.batching == Batching.PADDED:
        return padded
    form = _find_form(model, args)
    if isinstance(form, MaskForm):
        return _laid_out(form, args, pad_token_id, loss_weights)
    if args.batching != Batching.AUTO:
        what = "share prefixes" if args.batching == Batching.SHARED_PREFIX else "compute packed rows"
        raise ConfigError(
            f"batching={str(args.batching)!r}, but the model cannot {what}: {form}",
            fix="set batching='auto' or 'padded'",
        )
    if args.process_index == 0:
        logger.warning("batches are padded, because the model cannot share prefixes: %s", form)
    return padded


def _find_form(model: Any, args: DeepFabricSFTConfig) -> MaskForm | str:
    if args.neftune_noise_alpha is not None:
        return "`neftune_noise_alpha` makes less noise the longer the rows are"
    # A compiler would compile anew for each tree. On a GPU masks are what was measured by others.
    return find_mask_form(model, without_mask=model.device.type == "cpu" and not args.torch_compile)


def _laid_out(
    form: MaskForm, args: DeepFabricSFTConfig, pad_token_id: int, loss_weights: Mapping[int, float] | None
) -> SharedPrefixCollator | PackingCollator:
    options: dict[str, Any] = {
        "attn_implementation": form.attn_implementation,
        "mask_dtype": form.dtype,
        "sliding_window": form.sliding_window,
        "by_layer_type": form.by_layer_type,
        "pad_to_multiple_of": args.pad_to_multiple_of,
        "return_num_tokens": True,
        "return_tree": True,
        "loss_weights": loss_weights,
    }
    if args.batching == Batching.PACKED:
        return PackingCollator(pad_token_id, args.max_tokens_per_batch, **options)
    return SharedPrefixCollator(pad_token_id, max_tokens=args.max_tokens_per_batch, **options)


def padded_like(collator: Any) -> Any:
    """Return a collator that gives a row for each example, with the same weights; another one as it is."""
    if not isinstance(collator, LAID_OUT):
        return collator
    return ToolCallCollator(
        collator.pad_token_id,
        collator.pad_to_multiple_of,
        collator.return_regions,
        loss_weights=collator.loss_weights,
    )


def with_regions(collator: Any, dataset: Any) -> Any:
    """Return a collator that also gives the regions of a dataset's tokens, where the dataset has them.

    A user's own collator is returned as it is.
    """
    if "regions" not in (getattr(dataset, "column_names", None) or ()):
        return collator
    if type(collator) in (ToolCallCollator, *LAID_OUT):
        return replace(collator, return_regions=True)
    return CollatorWithRegions(collator) if type(collator) is DataCollatorForLanguageModeling else collator


@dataclass
class CollatorWithRegions:
    """TRL's collator, which also gives `regions` beside the labels.

    Args:
        collator (`DataCollatorForLanguageModeling`): What makes all else of the batch.
    """

    collator: DataCollatorForLanguageModeling
    return_regions = True

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate examples with `input_ids`, `labels` and `regions`."""
        batch: dict[str, Any] = self.collator(examples)
        rows = [list(example["regions"]) for example in examples]
        if self.collator.padding_free:
            rows = [list(chain.from_iterable(rows))]
        batch["regions"] = pad_rows(rows, 0, self.collator.pad_to_multiple_of)
        return batch


def checked(collator: Any, model: Any) -> Any:
    """Return a user's collator; of laid-out batches one that says how they are laid out and counts their tokens.

    Raises:
        ConfigError: If the model computes its laid-out batches wrong.
    """
    if not isinstance(collator, LAID_OUT):
        return collator
    reason = why_not(model, collator.mask_form)
    if reason is not None:
        raise ConfigError(
            f"data_collator={type(collator).__name__}({collator.attn_implementation!r}, ...), but with it the model "
            f"computes other losses than with padded rows: {reason}",
            fix="leave `data_collator` out: the masks are then made as the model wants them",
        )
    return replace(collator, return_tree=True, return_num_tokens=True)
