"""Greedy generation for many prompts that begin alike.

`prefix_tree` finds what prompts have in common, `pasts` computes it once, `batches` generates from it, `cache` holds
the keys and values; `trial` finds whether a model's past can be shared, `plain` is the way where it cannot. `mode`
makes a training model ready.
"""

from deepfabric_trainer.generate.batches import BatchGenerator, generate_with_shared_prefix
from deepfabric_trainer.generate.mode import generation_mode

__all__ = ["BatchGenerator", "generate_with_shared_prefix", "generation_mode"]
