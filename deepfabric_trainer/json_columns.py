"""Values in columns of the type `Json` of `datasets`, read back as they are.

`datasets` 5.2 changes what goes through that type: its encoder keeps ten digits behind the point, its decoder rounds
twice (0.7 comes back as 0.7000000000000001), and a text that happens to be JSON, such as "5", comes back as a number.
"""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from datasets import Json

from deepfabric_trainer.schema.strict_json import decode

_STRING_OR_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?')


def encode_json_columns(value: Any, feature: Any) -> Any:
    """Return a value with everything that its feature stores as JSON written out as text that is read back as it is.

    Args:
        value (`Any`): A row, a column's value, or a part of one.
        feature (`Any`): Its feature: `Features`, a struct, a list, a `Value` or a `Json`.
    """
    if isinstance(feature, Json):
        return None if value is None else json_text(value)
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {
            key: encode_json_columns(item, feature[key]) if key in feature else item for key, item in value.items()
        }
    inner = getattr(feature, "feature", None)
    if inner is not None and isinstance(value, list | tuple):
        return [encode_json_columns(item, inner) for item in value]
    return value


def json_text(value: Any) -> str:
    """Return JSON text that `datasets` reads as the value itself.

    Its decoder makes 0.7000000000000001 of 0.7, but not of 7000000000000000000e-19.
    """
    text = json.dumps(value, ensure_ascii=False)
    return text if _read(text) == value else _STRING_OR_NUMBER.sub(_respelled, text)


def _respelled(match: re.Match[str]) -> str:
    text = match[0]
    if text.startswith('"') or _read(text) == decode(text):
        return text
    others = (f"{Decimal(text).scaleb(-power):f}e{power}" for power in range(-25, 26))
    return next((other for other in others if _read(other) == decode(text)), text)


def _read(text: str) -> Any:
    try:
        return Json().decode_example(text)
    except ValueError:
        return None
