"""Batches of rows that begin alike, so that what they have in common is computed once.

`keys` gives raw rows a code by their tools and system message, `encoded` gives encoded rows one by their tokens, and
`template_order` tells which of the two beginnings a chat template writes first; `sampler` makes the order of an epoch
from the codes. `hashing` and `sequences` are what the codes are made of, `batches` what the order is made of.
"""

from deepfabric_trainer.grouping.encoded import encoded_codes
from deepfabric_trainer.grouping.keys import row_codes
from deepfabric_trainer.grouping.sampler import PrefixGroupSampler
from deepfabric_trainer.grouping.template_order import template_writes_tools_first

__all__ = ["PrefixGroupSampler", "encoded_codes", "row_codes", "template_writes_tools_first"]
