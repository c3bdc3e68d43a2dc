"""Make the golden encodings anew, or check them: python -m tests.golden.make_encodings [--check]

One file for each template that trl ships: for each conversation style the text, a hash of the ids, and the runs of
regions; or why it is rejected. Read the difference before you commit it.
"""

import argparse
import hashlib
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from deepfabric_trainer.encode import Context, ConversationEncoder, EncodedExample
from deepfabric_trainer.errors import DeepFabricTrainerError
from tests.fixtures.conversations import STYLES
from tests.fixtures.templates import ALL, frozen_clock, tokenizer_with

FOLDER = Path(__file__).parent / "encodings"


def encoding_of(name: str) -> dict[str, Any]:
    """Return the golden content for one template."""
    return encoding_with(tokenizer_with(name))


def encoding_with(tokenizer: Any) -> dict[str, Any]:
    """Return the golden content for a tokenizer's own template."""
    encoder = ConversationEncoder(tokenizer)
    return {style: _style(encoder, tokenizer, messages, tools) for style, (messages, tools) in STYLES.items()}


def path_of(name: str) -> Path:
    """Return where the golden content of a template is kept."""
    return FOLDER / f"{name}.json"


def _style(encoder: ConversationEncoder, tokenizer: Any, messages: Any, tools: Any) -> Any:
    try:
        examples = encoder.encode({"messages": messages, "tools": tools})
    except DeepFabricTrainerError as error:
        return {"rejected": f"{error.path}: {error.found}" if error.path else error.found}
    return [_example(example, tokenizer) for example in examples]


def _example(example: EncodedExample, tokenizer: Any) -> dict[str, Any]:
    pairs = zip(example.regions, example.input_ids, strict=True)
    runs = [(region.name, [token for _, token in run]) for region, run in groupby(pairs, key=lambda pair: pair[0])]
    golden: dict[str, Any] = {
        "ids": hashlib.sha256(json.dumps(example.input_ids).encode()).hexdigest()[:16],
        "regions": [
            [region, len(ids)] if region == "CONTEXT" else [region, len(ids), tokenizer.decode(ids)]
            for region, ids in runs
        ],
        "text": example.text,
    }
    inexact = [context.name for context in example.contexts if context is not Context.EXACT]
    return (
        golden
        | ({"inexact": inexact} if inexact else {})
        | ({"unstopped": example.unstopped_turns} if example.unstopped_turns else {})
    )


def main() -> int:
    """Write or check every file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    check = parser.parse_args().check
    different = 0
    with frozen_clock():
        for name in ALL:
            text = json.dumps(encoding_of(name), ensure_ascii=False, indent=1) + "\n"
            path = path_of(name)
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            different += 1
            print(f"{'differs' if check else 'written'}: {path}")
            if not check:
                path.write_text(text, encoding="utf-8")
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
