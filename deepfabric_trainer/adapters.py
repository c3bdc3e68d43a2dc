"""The adapters that PEFT has put around a model."""

from collections.abc import Collection
from typing import Any


def adapters_of(model: Any) -> Collection[Any]:
    """Return the configurations of a model's adapters, none if it has none.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Not wrapped otherwise.
    """
    return (getattr(model, "peft_config", None) or {}).values()


def has_virtual_tokens(model: Any) -> bool:
    """Tell whether an adapter puts tokens of its own before each row, for which it makes labels itself."""
    return any(adapter.is_prompt_learning for adapter in adapters_of(model))
