"""What `apply_chat_template` does around a template: the private functions of transformers, by public names.

Those that come and go between its versions have a stand-in here, which does what the versions without them do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from packaging.version import Version
from transformers.utils import chat_template_utils

DROPS_NULLS = Version(transformers.__version__) >= Version("5.23")
"""Whether `apply_chat_template` leaves keys out of messages whose value is `None`; before, templates saw them."""


def plain_data(value: Any) -> Any:
    """Return a value as templates get it: since transformers 5.21 rebuilt of plain types."""
    rebuild = getattr(chat_template_utils, "_plain_template_data", None)
    return value if rebuild is None else rebuild(value)


def with_reasoning_fields(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return messages with their reasoning under all the names that templates read, where transformers adds these."""
    add = getattr(chat_template_utils, "_alias_reasoning_fields", None)
    added: Sequence[Mapping[str, Any]] = messages if add is None else add(messages)
    return added
