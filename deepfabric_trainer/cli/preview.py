"""`deepfabric-trainer preview`: which tokens of a row are trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from deepfabric_trainer.cli.load import load_conversations, load_tokenizer
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.errors import ConfigError, DataFormatError, TemplateError
from deepfabric_trainer.preview import PreviewedRow, print_row, render_html


def preview(rows: str, tokenizer: str, *, first: int, count: int, train_on: str, full: bool, html: str | None) -> int:
    """Print the examples that rows give, or why they give none, and write the same as a page.

    Args:
        rows (`str`): A file of rows, or a dataset on the Hub.
        tokenizer (`str`): A tokenizer's folder or name.
        first (`int`): The number of the first row, counted from 0.
        count (`int`): How many rows to show from there on, as far as there are so many.
        train_on (`str`): A [`TrainOn`].
        full (`bool`): Print untrained text whole.
        html (`str`, *optional*): The file to write the page to.

    Returns:
        `int`: 0, or 1 when every one of the rows was rejected.

    Raises:
        ConfigError: If there is no such row, or the page cannot be written.
    """
    conversations = load_conversations(rows)
    if not 0 <= first < len(conversations):
        raise ConfigError(f"--row is {first}", expected=f"a row between 0 and {len(conversations) - 1}")
    if count < 1:
        raise ConfigError(f"--rows is {count}", expected="at least one row")
    encoder = ConversationEncoder(load_tokenizer(tokenizer), train_on=train_on)
    numbers = range(first, min(first + count, len(conversations)))
    previewed = [_encoded(encoder, number, conversations[number]) for number in numbers]
    console = Console()
    for row in previewed:
        if len(previewed) > 1:
            console.rule(f"row {row.number}")
        print_row(row, encoder.tokenizer, console, full=full)
    if html is not None:
        facts = {"data:": rows, "tokenizer:": tokenizer, "trained on:": train_on}
        _write(Path(html), render_html(previewed, encoder.tokenizer, facts=facts))
        console.print(f"wrote {html}", markup=False, highlight=False, soft_wrap=True)
    return 0 if any(row.error is None for row in previewed) else 1


def _encoded(encoder: ConversationEncoder, number: int, row: Mapping[str, Any]) -> PreviewedRow:
    try:
        encoded = encoder.encode_row(row)
    except (DataFormatError, TemplateError) as error:
        return PreviewedRow(number, row, error=str(error))
    notes: list[str] = [*sorted(encoded.repairs)]
    if encoded.dropped_reasoning:
        notes.append("the `reasoning` column found no place in the messages")
    return PreviewedRow(number, row, encoded.examples, notes)


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write --html {path}: {error.strerror}", expected="a file in a folder that exists"
        ) from error
