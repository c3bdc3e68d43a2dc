"""`deepfabric-trainer analyze`: what is in a dataset."""

import json
import sys

from rich.console import Console
from rich.progress import track

from deepfabric_trainer.analyze import analyze_dataset
from deepfabric_trainer.cli.load import load_conversations, load_tokenizer
from deepfabric_trainer.visible import visible


def analyze(rows: str, tokenizer: str | None, *, as_json: bool = False) -> int:
    """Print what is in a dataset.

    Args:
        rows (`str`): A file of rows, or a dataset on the Hub.
        tokenizer (`str`, *optional*): A tokenizer's folder or name; tokens are counted with its chat template.
        as_json (`bool`, *optional*, defaults to `False`): Print one JSON object, for a program.

    Returns:
        `int`: 0.

    Raises:
        ConfigError: If something cannot be loaded.
    """
    conversations = load_conversations(rows)
    processing_class = load_tokenizer(tokenizer) if tokenizer else None
    progress = Console(stderr=True)
    read = track(conversations, "Reading rows", console=progress, transient=True, disable=not sys.stderr.isatty())
    report = analyze_dataset(read, processing_class)
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=True) if as_json else visible(str(report))
    Console(soft_wrap=True).print(text, markup=False, highlight=False, emoji=False)
    return 0
