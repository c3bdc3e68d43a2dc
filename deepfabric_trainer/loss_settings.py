"""What the loss is weighted by, and the settings and rows with which it cannot be weighted."""

from functools import partial
from typing import Any, NamedTuple

from datasets import IterableDataset
from trl.data_utils import get_dataset_column_names

from deepfabric_trainer.collators.packing import PackingCollator
from deepfabric_trainer.collators.shared_prefix import SharedPrefixCollator
from deepfabric_trainer.collators.tool_call import ToolCallCollator
from deepfabric_trainer.config import DeepFabricSFTConfig
from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.prepare.lazy import EncodedOnDemand

_WEIGHING = (ToolCallCollator, SharedPrefixCollator, PackingCollator)


def weights_for_collator(args: DeepFabricSFTConfig, dataset: Any) -> dict[int, float] | None:
    """Return the weights by region; `None` when only batches of weighted rows need weights."""
    if isinstance(args.loss_weights, dict) and args.loss_weights:
        return {Region[name.upper()]: weight for name, weight in args.loss_weights.items()}
    # accelerate joins the batches of a stream, so they must hold the same tensors, weighted rows or not.
    return {} if isinstance(dataset, IterableDataset) else None


def columns_beside_labels(data_collator: Any) -> list[str]:
    """Return the columns of encoded rows, beside tokens and labels, that a collator reads."""
    weighs = isinstance(data_collator, _WEIGHING)
    needs_regions = getattr(data_collator, "return_regions", False) or (weighs and data_collator.loss_weights)
    return [*(["weights"] if weighs else []), *(["regions"] if needs_regions else [])]


class Obstacle(NamedTuple):
    """What keeps weights out of the loss, as the user knows it, and the edit that removes it."""

    what: str
    fix: str


def find_obstacle(
    args: Any, *, conversations: bool, data_collator: Any, compute_loss_func: Any, formatting_func: Any
) -> Obstacle | None:
    """Return what keeps the weights of tokens out of the loss; `None` when nothing does.

    Args:
        args (`TrainingArguments`): The trainer's.
        conversations (`bool`): Whether the trainer encodes the rows.
        data_collator (`Callable`, *optional*): The user's.
        compute_loss_func (`Callable`, *optional*): The user's.
        formatting_func (`Callable`, *optional*): The user's.

    Raises:
        ConfigError: If there is something, and `loss_weights` is set.
    """
    weighs_regions = bool(getattr(args, "loss_weights", None))
    loss_type, is_ours = getattr(args, "loss_type", "nll"), isinstance(args, DeepFabricSFTConfig)
    collator = "give the weights to a collator: `data_collator=ToolCallCollator(..., loss_weights=...)`"
    obstacles = [
        (loss_type not in ("nll", "chunked_nll"), f"loss_type={loss_type!r}", "set loss_type='nll'"),
        (args.label_smoothing_factor > 0, "`label_smoothing_factor`", "set it to 0"),
        (compute_loss_func is not None, "`compute_loss_func`", "leave it out"),
        (formatting_func is not None, "`formatting_func`", "leave it out"),
        (getattr(args, "packing", False), "`packing`", "set packing=False; batching='auto' saves more"),
        (getattr(args, "eval_packing", None), "`eval_packing`", "set eval_packing=False"),
        (getattr(args, "padding_free", False), "`padding_free`", "set padding_free=False; batching='auto' saves more"),
        (data_collator is not None and weighs_regions, "a `data_collator`", collator),
        (
            data_collator is not None and not isinstance(data_collator, _WEIGHING),
            "a `data_collator` that makes no weights",
            collator,
        ),
        (data_collator is None and not is_ours, "a plain `SFTConfig`", "use `DeepFabricSFTConfig`"),
        (data_collator is None and not conversations, "rows that are no conversations", collator),
    ]
    obstacle = next((Obstacle(what, fix) for there, what, fix in obstacles if there), None)
    if obstacle is not None and weighs_regions:
        raise ConfigError(f"loss_weights together with {obstacle.what}", expected="one of the two", fix=obstacle.fix)
    return obstacle


def refuse_weights(dataset: Any, obstacle: Obstacle | None, name: str) -> Any:
    """Return encoded rows as they are, when none has weights of its own or nothing keeps them out of the loss.

    Args:
        dataset (`Dataset`, `IterableDataset` or `EncodedOnDemand`): Encoded rows; those that are not go through as
            they are.
        obstacle (`Obstacle`, *optional*): From `find_obstacle`.
        name (`str`): What the dataset is called.

    Returns:
        `Dataset`, `IterableDataset` or `EncodedOnDemand`: The dataset; where rows are not encoded yet, one that
        raises when such a row is read.

    Raises:
        ConfigError: If a row has weights that the loss cannot heed.
    """
    if obstacle is None or not {"regions", "weights"} <= set(get_dataset_column_names(dataset)):
        return dataset
    if isinstance(dataset, IterableDataset):
        options = {"obstacle": obstacle, "name": name}
        return dataset.map(_refuse_weighted_row, fn_kwargs=options, features=dataset.features)
    if isinstance(dataset, EncodedOnDemand):
        return dataset.looked_at_by(partial(_refuse_weighted_row, obstacle=obstacle, name=name))
    for row in dataset.select_columns("weights"):
        _refuse_weighted_row(row, obstacle, name)
    return dataset


def _refuse_weighted_row(row: dict[str, Any], obstacle: Obstacle, name: str) -> dict[str, Any]:
    weights = row.get("weights")
    if weights is not None and len(weights):
        raise ConfigError(
            f"{name} dataset: messages have a `weight`, which cannot be heeded together with {obstacle.what}",
            expected="one of the two",
            fix=f"{obstacle.fix}, or write no other weights than 0 and 1",
        )
    return row
