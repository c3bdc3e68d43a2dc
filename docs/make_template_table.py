"""Write docs/templates.md: which chat template takes which kind of conversation, and why not.

python -m docs.make_template_table [--assets FOLDER] [--check]

The rows of trl's templates come from the golden encodings, which the tests compare with what the encoder does. Those
of real tokenizers are made from the folders in FOLDER; without it they stay as they are.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests.fixtures.conversations import STYLES
from tests.fixtures.templates import frozen_clock
from tests.golden.make_encodings import FOLDER, encoding_with

PATH = Path(__file__).with_name("templates.md")
REAL = {"qwen3": "Qwen3", "llama3_1": "Llama 3.1"}
"""The folders of real tokenizers, and what they are called."""
_HEAD = """\
# Chat templates and conversations

Made by `make docs`; the tests compare it with what the encoder does. Each cell is one conversation, encoded with
`ConversationEncoder(tokenizer)`:

- **✓** proved: every assistant turn is trained, right behind the prompt that inference shows, up to its stop token.
- **✓ n** proved in n sequences, because the template rewrites history.
- **✓ context** proved, but a turn does not stand behind a prompt of inference: the template puts an empty reasoning
  block before it that no prompt has, leaves out one that prompts open, or renders the history differently.
- **✓ stop** proved, but the template ends the last turn without a stop token, which it leaves to the next message.
- anything else: rejected, because the template does not render it. The error names the field. A number is the
  template's own refusal, in its own words below.
"""
_SHORT = (
    (r"leaves out '.*' of the tool", "no tools"),
    (r"leaves out the tool name", "no call"),
    (r"leaves out the reasoning", "no reasoning"),
    (r"leaves out the content", "no text"),
    (r"leaves out a message of role '(\w+)'", r"no \1 message"),
)


def table(encodings: Mapping[str, Mapping[str, Any]], refusals: list[str]) -> str:
    """Return a Markdown table with a row for each template; what templates refuse with is added to `refusals`."""
    lines = [f"| template | {' | '.join(STYLES)} |", "|---" * (len(STYLES) + 1) + "|"]
    for name, styles in encodings.items():
        cells = [cell(styles[style], refusals) for style in STYLES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(encoding: Any, refusals: list[str]) -> str:
    """Return what a cell says about an encoding, as the golden files have it."""
    if isinstance(encoding, Mapping):
        return _rejected(encoding["rejected"], refusals)
    notes = [str(len(encoding))] if len(encoding) > 1 else []
    notes += ["context"] if any("inexact" in example for example in encoding) else []
    notes += ["stop"] if any("unstopped" in example for example in encoding) else []
    return " ".join(["✓", ", ".join(notes)]).strip()


def _rejected(found: str, refusals: list[str]) -> str:
    for pattern, short in _SHORT:
        match = re.search(pattern, found)
        if match:
            return match.expand(short)
    words = found.partition("refuses the conversation: ")[2]
    if not words:
        raise ValueError(f"no words for the reason {found!r}; add them to _SHORT")
    if words not in refusals:
        refusals.append(words)
    return f"refused [{refusals.index(words) + 1}]"


def trl_section() -> str:
    """Return the section about trl's templates, from the golden encodings."""
    encodings = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
    return _section("Templates that trl ships", encodings)


def real_section(assets: Path) -> str:
    """Return the section about real tokenizers with their own templates."""
    with frozen_clock():
        encodings = {
            title: encoding_with(AutoTokenizer.from_pretrained(assets / folder)) for folder, title in REAL.items()
        }
    return _section("Real tokenizers with their own templates", encodings)


def _section(title: str, encodings: Mapping[str, Mapping[str, Any]]) -> str:
    refusals: list[str] = []
    text = f"## {title}\n\n{table(encodings, refusals)}\n"
    notes = "".join(f"{number}. {words}\n" for number, words in enumerate(refusals, start=1))
    return text + (f"\n{notes}" if notes else "")


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, help="folder with the folders of real tokenizers")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page differs")
    arguments = parser.parse_args()
    old = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    kept = old[old.index("## Real tokenizers") :] if "## Real tokenizers" in old else ""
    real = real_section(arguments.assets) if arguments.assets else kept
    new = "\n".join(part for part in (_HEAD, trl_section(), real) if part)
    if new == old:
        return 0
    print(f"{'differs' if arguments.check else 'written'}: {PATH.name}")
    if not arguments.check:
        PATH.write_text(new, encoding="utf-8")
    return int(arguments.check)


if __name__ == "__main__":
    sys.exit(main())
