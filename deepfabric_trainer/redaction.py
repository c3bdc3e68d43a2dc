"""Credentials, taken out of what is shown or written: by the names they go by, and by their form."""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

_SECRET_PART = {"key", "apikey", "password", "passwd", "pwd", "secret", "secrets", "credential", "credentials", "auth"}
_TOKENS_OF_TEXT = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "video", "audio", "stop", "assistant"}
"""What stands before `_token` where a tokenizer's token is meant."""
_SECRET_VALUE = re.compile(
    r"(?:hf_|sk-|sk_|ghp_|gho_|github_pat_|glpat-|xox[abprs]-|AKIA|dapi)[\w-]{8,}"
    r"|(?<=://)[^\s/@]+(?=@)"
    r"|(?i:(?<=bearer )|(?<=basic ))[\w.~+/=-]{8,}"
)
_NAME = re.compile(r"(?<![\w-])(?P<name>[\w-]++)(?:=|['\"]?\s*:\s*)(?P<quote>['\"]?)")
_VALUE = re.compile(r"[^\s&'\",;]+")


def without_secrets(text: str) -> str:
    """Replace what looks like a credential: known forms of keys, passwords in URLs, `token=...` and its like.

    Example:
        >>> without_secrets("https://ann:pass@host/?api_key=abc&step=3")
        'https://[redacted]@host/?api_key=[redacted]&step=3'
    """
    text = _SECRET_VALUE.sub(REDACTED, text)
    shown, position = [], 0
    for name in _NAME.finditer(text):
        if name.end() <= position or not names_a_secret(name["name"]):
            continue
        value = _VALUE.match(text, name.end())
        if value is not None and (not name["quote"] or text.startswith(name["quote"], value.end())):
            shown += [text[position : name.end()], REDACTED]
            position = value.end()
    return "".join([*shown, text[position:]])


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
