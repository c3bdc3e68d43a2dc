"""Text of strangers on its way into a page: made visible, cut to size, and without secrets."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.visible import visible

REDACTED = "[redacted]"

_SECRET_PART = {"key", "apikey", "password", "passwd", "pwd", "secret", "secrets", "credential", "credentials", "auth"}
_TOKENS_OF_TEXT = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "video", "audio", "stop", "assistant"}
"""What stands before `_token` where a tokenizer's token is meant."""
_SECRET_VALUE = re.compile(
    r"(?:hf_|sk-|sk_|ghp_|gho_|github_pat_|glpat-|xox[abprs]-|AKIA|dapi)[\w-]{8,}"
    r"|(?<=://)[^\s/@]+(?=@)"
    r"|(?i:(?<=bearer )|(?<=basic ))[\w.~+/=-]{8,}"
)
_NAMED_VALUE = re.compile(
    r"(?P<name>[\w-]*\w)(?P<is>=|['\"]?\s*:\s*)(?P<quote>['\"]?)(?P<value>[^\s&'\",;]+)(?P=quote)"
)


@dataclass(frozen=True)
class Cut:
    """A text, and how many characters of it are left out behind it."""

    text: str
    left_out: int = 0


def cut(text: str, most: int) -> Cut:
    """Return a visible text of so many characters of the given one, and how many there are beyond."""
    return Cut(visible(text[:most]), max(0, len(text) - most))


def without_secrets(text: str) -> str:
    """Replace what looks like a credential: known forms of keys, passwords in URLs, `token=...` and its like.

    Example:
        >>> without_secrets("https://ann:pass@host/?api_key=abc&step=3")
        'https://[redacted]@host/?api_key=[redacted]&step=3'
    """

    def hide(found: re.Match[str]) -> str:
        if not names_a_secret(found["name"]):
            return found[0]
        return f"{found['name']}{found['is']}{found['quote']}{REDACTED}{found['quote']}"

    return _NAMED_VALUE.sub(hide, _SECRET_VALUE.sub(REDACTED, text))


def names_a_secret(name: str) -> bool:
    """Tell whether a setting of this name holds a credential: `hub_token` does, `eos_token` does not."""
    parts = [part for part in re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()) if part]
    if _SECRET_PART & set(parts):
        return True
    return parts[-1:] == ["token"] and not _TOKENS_OF_TEXT & set(parts)


def redacted(name: str, value: Any) -> Any:
    """Return a setting's value without credentials, also inside lists and mappings.

    Args:
        name (`str`): Its name.
        value (`Any`): Its value.

    Returns:
        `Any`: The same, of the same kind; numbers, truth values and `None` are no secrets.
    """
    if isinstance(value, Mapping):
        return {key: redacted(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(name, item) for item in value]
    if isinstance(value, str) and value:
        return REDACTED if names_a_secret(name) else without_secrets(value)
    return value


def redacted_command(words: list[str]) -> list[str]:
    """Return a command line without credentials: `--hub_token abc` and `--hub_token=abc` lose the value."""
    shown, hide_next = [], False
    for word in words:
        shown.append(REDACTED if hide_next and not word.startswith("--") else without_secrets(word))
        hide_next = word.startswith("-") and "=" not in word and names_a_secret(word)
    return shown
