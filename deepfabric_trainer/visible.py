"""Text of strangers on its way to a terminal, a log or a page: everything in it can be seen, and nothing acts."""

import re

_PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)} | {0x7F: "␡"}
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Characters that are not shown, or that change the order of others; not the joiners that scripts need."""


def visible_controls(text: str) -> str:
    r"""Show control characters as pictures (`␛`).

    Newlines and tabs stay. Halves of surrogate pairs, which JSON can hold and UTF-8 cannot, become `\udXXX`.
    """
    return text.encode("utf-8", "backslashreplace").decode().translate(_PICTURES)


def visible(text: str) -> str:
    r"""Show what would not be shown: control characters as pictures (`␛`), others by number (`⟨U+202E⟩`).

    Example:
        >>> visible("\x1b]0;mine\x07")
        '␛]0;mine␇'
    """
    if text.isascii() and text.isprintable():
        return text
    return _INVISIBLE.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", visible_controls(text))
