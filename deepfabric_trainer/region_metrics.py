"""Loss and token accuracy by region, from the forward pass that is made anyway.

TRL's fused head returns for each label its log-probability and whether it is the most likely token. Collators give
`regions` beside the labels; here both are summed by region, on the device and without waiting for it, and the sums
become numbers when somebody logs. Sums over tokens, so that batches, passes and processes of any size add up.
"""

from collections.abc import Callable
from typing import Any

import torch

from deepfabric_trainer.collators.layout import examples_of_tokens
from deepfabric_trainer.encode.regions import Region

_TRAINED = tuple(region for region in Region if region is not Region.CONTEXT)


class RegionMetrics:
    """The sums by region of what is trained or evaluated at the moment, each under a name."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def begin(self, name: str) -> None:
        """Forget what was summed under a name."""
        self._sums.pop(name, None)

    def saved(self, name: str) -> torch.Tensor | None:
        """Return what `restore` takes back."""
        return self._sums.get(name)

    def restore(self, name: str, saved: torch.Tensor | None) -> None:
        """Forget what was summed under a name since `saved`."""
        self.begin(name)
        if saved is not None:
            self._sums[name] = saved

    def measured(self, model: Any, inputs: dict[str, Any], name: str) -> Any:
        """Take `regions` out of a batch and return the model, whose outputs are summed by them.

        Args:
            model (`Callable`): With TRL's fused head; other outputs than its own go through unseen.
            inputs (`dict[str, Any]`): The batch; `regions` [R, T] is removed from it.
            name (`str`): What to sum under.

        Returns:
            `Callable`: To be called as the model would be; the model itself when there are no regions, or when context
            or sequence parallelism has split the rows without them.
        """
        regions = inputs.pop("regions", None)
        if regions is None or "shift_labels" in inputs:
            return model

        def measured(**batch: Any) -> Any:
            outputs = model(**batch)
            if getattr(outputs, "log_probs", None) is not None and outputs.is_top1 is not None:
                sums = sums_by_region(regions, outputs.log_probs, outputs.is_top1, outputs.label_mask)
                self._sums[name] = self._sums[name] + sums if name in self._sums else sums
            return outputs

        return measured

    def take(
        self, name: str, reduce: Callable[[torch.Tensor], torch.Tensor], prefix: str | None = None
    ) -> dict[str, float]:
        """Return the metrics of what was summed under a name, and begin anew. All processes call it, or none.

        Args:
            name (`str`): What was summed under.
            reduce (`Callable`): Adds up the tensors of all processes.
            prefix (`str`, *optional*): Stands before each metric, with `_`.

        Returns:
            `dict[str, float]`: `loss_{region}` in nats a token and `token_accuracy_{region}`, of the regions that have
            tokens; empty when nothing was summed.
        """
        sums = self._sums.pop(name, None)
        if sums is None:
            return {}
        metrics: dict[str, float] = {}
        for region, (tokens, right, loss) in zip(_TRAINED, reduce(sums).tolist(), strict=True):
            if tokens:
                key = region.name.lower()
                metrics[f"loss_{key}"] = loss / tokens
                metrics[f"token_accuracy_{key}"] = right / tokens
        return {f"{prefix}_{key}" if prefix else key: value for key, value in metrics.items()}


def sums_by_region(
    regions: torch.Tensor, log_probs: torch.Tensor, is_top1: torch.Tensor, label_mask: torch.Tensor
) -> torch.Tensor:
    """Return how many tokens each trained region has, how many of them are right, and their summed loss.

    Args:
        regions (`torch.Tensor`): Aligned to the labels, [R, T].
        log_probs (`torch.Tensor`): Of each predicted label, [R, T - 1]; longer by the virtual tokens that an adapter
            puts before each row.
        is_top1 (`torch.Tensor`): Whether it is the most likely token, likewise.
        label_mask (`torch.Tensor`): Whether it is trained, likewise.

    Returns:
        `torch.Tensor`: [6, 3], from `Region.REASONING` to `Region.STOP`, in float64 where the device has it.
    """
    device = log_probs.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    # The first token is predicted from nothing, unless virtual ones stand before it.
    before = label_mask.shape[-1] - regions.shape[-1] + 1
    aligned = torch.nn.functional.pad(regions.to(device), (before, 0))[:, 1:].reshape(-1)
    values = torch.stack([label_mask.to(dtype), is_top1.to(dtype), -log_probs.detach().to(dtype)]).flatten(1)
    # Not `index_add_`, whose order of addition on a GPU is left to chance.
    kinds = torch.arange(_TRAINED[0], _TRAINED[-1] + 1, device=device)
    chosen = (aligned == kinds[:, None]) & label_mask.reshape(-1)
    return torch.where(chosen[:, None], values, 0.0).sum(-1)


def without_repeats(inputs: dict[str, Any], accelerator: Any) -> dict[str, Any]:
    """Return a batch in which examples that are evaluated a second time belong to no region.

    Several processes get batches of one size: what the last ones lack is filled up with examples from the beginning.

    Args:
        inputs (`dict[str, Any]`): A batch, perhaps with `regions` [R, T].
        accelerator (`Accelerator`): Knows where in the dataset it stands.
    """
    state = accelerator.gradient_state
    if "regions" not in inputs or accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder < 1:
        return inputs
    regions: torch.Tensor = inputs["regions"]
    if "prefix_tree" in inputs:
        examples = examples_of_tokens(inputs["prefix_tree"], regions.shape[1])
    elif "seq_idx" in inputs:  # TRL's padding-free rows
        examples = inputs["seq_idx"]
    else:
        examples = torch.arange(len(regions))[:, None]
    in_batch = int(examples.max()) + 1
    repeated = examples >= state.remainder - accelerator.process_index * in_batch
    return {**inputs, "regions": regions.masked_fill(repeated.to(regions.device), int(Region.CONTEXT))}
