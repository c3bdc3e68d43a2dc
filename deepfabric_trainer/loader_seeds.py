"""From what loaders whose processes persist draw the seed of these."""

from typing import Any

import torch


def draw_apart(loader: Any, seed: int) -> None:
    """Let a loader whose processes persist draw their seed from a generator of its own.

    Such a loader draws once, when its processes begin, and other loaders at the begin of each pass. From PyTorch's own
    generator, the random numbers of dropout would depend on where a run goes on.

    Args:
        loader (`torch.utils.data.DataLoader`): One with a generator keeps it.
        seed (`int`): Of the run.
    """
    loader = getattr(loader, "base_dataloader", loader)  # accelerate's wrappers iterate over another
    persists = getattr(loader, "num_workers", 0) > 0 and loader.persistent_workers
    if persists and loader.generator is None:
        loader.generator = torch.Generator().manual_seed(seed)
