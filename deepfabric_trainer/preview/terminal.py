from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

from deepfabric_trainer.encode import EncodedExample, Region
from deepfabric_trainer.preview.rows import PreviewedRow, notes_on
from deepfabric_trainer.preview.tokens import stretches
from deepfabric_trainer.visible import visible

_STYLES = {
    Region.CONTEXT: Style(dim=True),
    Region.REASONING: Style(color="magenta"),
    Region.CONTENT: Style(color="green"),
    Region.TOOL_NAME: Style(color="yellow", bold=True),
    Region.TOOL_ARGUMENTS: Style(color="cyan"),
    Region.FORMAT: Style(color="blue"),
    Region.STOP: Style(color="red", bold=True),
}
_ENDS_SHOWN = 240
"""Characters of a long text that are shown at each end."""


def print_row(row: PreviewedRow, tokenizer: Any, console: Console, *, full: bool = False) -> None:
    """Print the examples that a row gives, or why it gives none.

    Args:
        row (`PreviewedRow`): What to show.
        tokenizer (`PreTrainedTokenizerBase`): Decodes its tokens.
        console (`Console`): Where to print.
        full (`bool`, *optional*, defaults to `False`): Show untrained stretches whole, and all of a rejected row.
    """
    if row.error is not None:
        reason = Text(f"row {row.number} is rejected: ", style="bold red").append(visible(row.error))
        console.print(reason, soft_wrap=True)
        text = row.as_json()
        shown = text if full else _shortened(text, "characters")
        console.print(Text(shown, style=_STYLES[Region.CONTEXT]), soft_wrap=True)
    _print_notes(row.notes, console)
    for number, example in enumerate(row.examples, start=1):
        if len(row.examples) > 1:
            console.rule(f"example {number} of {len(row.examples)}: the template rewrites history")
        _print_notes(notes_on(example), console)
        print_example(example, tokenizer, console, full=full)


def print_example(example: EncodedExample, tokenizer: Any, console: Console, *, full: bool = False) -> None:
    """Print an example with its trained tokens in colour, or between marks where there is no colour.

    Args:
        example (`EncodedExample`): What to show.
        tokenizer (`PreTrainedTokenizerBase`): Decodes its tokens.
        console (`Console`): Where to print; its colour decides between colours and marks.
        full (`bool`, *optional*, defaults to `False`): Show untrained stretches whole.
    """
    coloured = console.color_system is not None and not console.no_color
    trained = sum(label != -100 for label in example.labels)
    total = len(example.input_ids)
    console.print(f"{total:,} tokens, {trained:,} trained ({trained / total:.1%})", style="bold", highlight=False)
    console.print(_legend(coloured), soft_wrap=True)
    body = Text()
    for stretch in stretches(example, tokenizer):
        text = visible(stretch.text)
        if stretch.region is Region.CONTEXT:
            kind = f"characters of {stretch.tokens:,} untrained tokens"
            body.append(text if full else _shortened(text, kind), style=_STYLES[stretch.region])
        elif coloured:
            body.append(text, style=_STYLES[stretch.region])
        else:
            body.append(f"⟦{stretch.region.name.lower()}:{text}⟧")
    console.print(body, soft_wrap=True)


def _print_notes(notes: Iterable[str], console: Console) -> None:
    for note in notes:
        console.print(Text(note), soft_wrap=True)


def _legend(coloured: bool) -> Text:
    legend = Text("trained: ")
    if not coloured:
        return legend.append("⟦region:text⟧; everything else is context")
    for region in Region:
        if region is not Region.CONTEXT:
            legend.append(region.name.lower(), style=_STYLES[region]).append("  ")
    return legend.append("context", style=_STYLES[Region.CONTEXT]).append(" is not")


def _shortened(text: str, kind: str) -> str:
    if len(text) <= 2 * _ENDS_SHOWN + 80:
        return text
    hidden = f"[... {len(text) - 2 * _ENDS_SHOWN:,} {kind} ...]"
    return f"{text[:_ENDS_SHOWN]} {hidden} {text[-_ENDS_SHOWN:]}"
