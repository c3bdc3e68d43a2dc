"""Greedy generation for many prompts that begin alike.

`prefix_tree` finds what prompts have in common, `batches` computes it once and generates from it, `cache` holds the
keys and values; `plain` is the way for models whose past cannot be shared. `mode` makes a training model ready.
"""

from deepfabric_trainer.generate.batches import BatchGenerator, generate_with_shared_prefix
from deepfabric_trainer.generate.mode import generation_mode

__all__ = ["BatchGenerator", "generate_with_shared_prefix", "generation_mode"]
