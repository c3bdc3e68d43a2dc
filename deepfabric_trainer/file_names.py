"""Names of files from names that come with the data."""

import hashlib
import re

_LONGEST = 80


def file_name(name: str) -> str:
    """Return a name as part of a file's name: it leads to no other folder, and different names stay different.

    Example:
        >>> file_name("held_out-2")
        'held_out-2'
        >>> file_name("../../x")
        'x-9cdf6a50'
    """
    kept = re.sub(r"[^\w.-]+", "_", name.encode("utf-8", "backslashreplace").decode(), flags=re.ASCII)
    kept = kept.lstrip("._") if kept.startswith(".") else kept
    if kept == name and 0 < len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{kept[:_LONGEST]}-{digest}"
