"""Compare our labels with those of trl's training templates: python -m tests.golden.make_trl_labels [--check]

For each of its hand-written templates and each conversation style: the runs of tokens that only one of the two trains,
with the reason. A difference without a reason is an error: think about who is right before you add one.
"""

import argparse
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from deepfabric_trainer.encode import ConversationEncoder, EncodedExample, Region
from deepfabric_trainer.errors import DeepFabricTrainerError
from deepfabric_trainer.template import ChatTemplate, Habits
from tests.fixtures.conversations import STYLES
from tests.fixtures.templates import ALL, frozen_clock, tokenizer_with

PATH = Path(__file__).with_name("trl_labels.json")
TRAINING = [name for name in ALL if name.endswith("_training")]
REASONS = {
    "prompt": "the generation prompt supplies it, so the model never produces it",
    "behind": "it stands behind the stop token, where the model does not write any more",
    "empty": "an empty reasoning block that the template invents",
    "elsewhere": "the turn is trained in a sequence of its own, in the context that inference shows",
    "stop": "generation stops at this token, so the model must learn to produce it",
    "header": "no prompt of inference supplies it here, so the model must produce it",
}


def differences(name: str) -> dict[str, Any]:
    """Return, for each style, the runs that only one of the two trains: who, the text, the reason."""
    tokenizer = tokenizer_with(name)
    encoder = ConversationEncoder(tokenizer)
    found: dict[str, Any] = {}
    for style, (messages, tools) in STYLES.items():
        try:
            examples = encoder.encode({"messages": messages, "tools": tools})
        except DeepFabricTrainerError as error:
            found[style] = f"rejected: {error.found}"
            continue
        habits = Habits(ChatTemplate(tokenizer), tools)
        runs = [
            _runs(
                example,
                _trained_by_trl(example, tokenizer, messages, tools),
                habits,
                _contents(examples, example, tokenizer),
            )
            for example in examples
        ]
        found[style] = runs if any(runs) else "equal"
    return found


def _trained_by_trl(example: EncodedExample, tokenizer: Any, messages: Any, tools: Any) -> list[int]:
    """Return trl's mask for the part of the conversation that an example renders."""
    for parts in (False, True):
        told = [{**m, "content": [{"type": "text", "text": m["content"]}]} if parts else m for m in messages]
        for end in range(len(told), 0, -1):
            options = {"tools": tools, "return_dict": True, "return_assistant_tokens_mask": True}
            try:
                encoded = tokenizer.apply_chat_template(told[:end], **options)
            except jinja2.TemplateError:
                continue
            if encoded["input_ids"] == example.input_ids:
                return list(encoded["assistant_masks"])
    raise AssertionError("no part of the conversation gives the example's ids")


def _contents(examples: list[EncodedExample], but: EncodedExample, tokenizer: Any) -> set[str]:
    """Return what the other examples of a conversation train that is no format."""
    found = set()
    for example in examples:
        pairs = zip(example.regions, example.input_ids, strict=True)
        for region, run in groupby(pairs, key=lambda pair: pair[0]):
            if example is not but and region in (Region.CONTENT, Region.TOOL_ARGUMENTS):
                found.add(tokenizer.decode([token for _, token in run]))
    return found


def _runs(example: EncodedExample, theirs: list[int], habits: Habits, elsewhere: set[str]) -> list[list[str]]:
    who = [
        "" if bool(mask) == (label != -100) else "trl" if mask else "ours"
        for mask, label in zip(theirs, example.labels, strict=True)
    ]
    runs = []
    for one, group in groupby(range(len(who)), key=lambda position: who[position]):
        positions = list(group)
        if one:
            text = habits.template.tokenizer.decode([example.input_ids[position] for position in positions])
            runs.append([one, text, _reason(example, positions, one, text, habits, elsewhere)])
    return runs


def _reason(
    example: EncodedExample, positions: list[int], who: str, text: str, habits: Habits, elsewhere: set[str]
) -> str:
    regions = example.regions
    before = regions[positions[0] - 1] if positions[0] else Region.CONTEXT
    if who == "ours":
        return "stop" if {regions[position] for position in positions} == {Region.STOP} else "header"
    if before is Region.STOP:
        return "behind"
    if any(pattern.fullmatch(text) for pattern in habits.empty_thinking):
        return "empty"
    if text in habits.generation_prompt:
        return "prompt"
    if any(content in text for content in elsewhere):
        return "elsewhere"
    raise AssertionError(f"no reason is known why only trl trains {text!r}")


def golden() -> str:
    """Return the content of the golden file."""
    with frozen_clock():
        content = {"reasons": REASONS, **{name: differences(name) for name in TRAINING}}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def main() -> int:
    """Write or check the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file differs")
    check = parser.parse_args().check
    text = golden()
    if PATH.exists() and PATH.read_text(encoding="utf-8") == text:
        return 0
    print(f"{'differs' if check else 'written'}: {PATH}")
    if not check:
        PATH.write_text(text, encoding="utf-8")
    return int(check)


if __name__ == "__main__":
    sys.exit(main())
