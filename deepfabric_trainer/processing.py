"""The tokenizer inside a processing class: a processor holds one, a tokenizer is one."""

from typing import Any


def tokenizer_of(processing_class: Any) -> Any:
    """Return the tokenizer of a processor; a tokenizer itself.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): What a trainer has.
    """
    return getattr(processing_class, "tokenizer", processing_class)
