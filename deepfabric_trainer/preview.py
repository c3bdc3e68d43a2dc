"""Which tokens of an example are trained, for a person to see."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

from deepfabric_trainer.encode import EncodedExample, Region

_STYLES = {
    Region.CONTEXT: Style(dim=True),
    Region.REASONING: Style(color="magenta"),
    Region.CONTENT: Style(color="green"),
    Region.TOOL_NAME: Style(color="yellow", bold=True),
    Region.TOOL_ARGUMENTS: Style(color="cyan"),
    Region.FORMAT: Style(color="blue"),
    Region.STOP: Style(color="red", bold=True),
}
_CONTEXT_SHOWN = 240
"""Characters of an untrained stretch that are shown at each end."""


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
    for region, count, text in _stretches(example, tokenizer):
        if region is Region.CONTEXT:
            body.append(text if full else _shortened(text, count), style=_STYLES[region])
        elif coloured:
            body.append(text, style=_STYLES[region])
        else:
            body.append(f"⟦{region.name.lower()}:{text}⟧")
    console.print(body, soft_wrap=True)


def _legend(coloured: bool) -> Text:
    legend = Text("trained: ")
    if not coloured:
        return legend.append("⟦region:text⟧; everything else is context")
    for region in Region:
        if region is not Region.CONTEXT:
            legend.append(region.name.lower(), style=_STYLES[region]).append("  ")
    return legend.append("context", style=_STYLES[Region.CONTEXT]).append(" is not")


def _stretches(example: EncodedExample, tokenizer: Any) -> Iterator[tuple[Region, int, str]]:
    """Go over the runs of tokens of one region: region, number of tokens, text."""
    pairs = zip(example.regions, example.input_ids, strict=True)
    for region, run in groupby(pairs, key=lambda pair: pair[0]):
        ids = [token for _, token in run]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        yield Region(region), len(ids), text


def _shortened(text: str, tokens: int) -> str:
    if len(text) <= 2 * _CONTEXT_SHOWN + 80:
        return text
    hidden = f"[... {len(text) - 2 * _CONTEXT_SHOWN:,} characters of {tokens:,} untrained tokens ...]"
    return f"{text[:_CONTEXT_SHOWN]} {hidden} {text[-_CONTEXT_SHOWN:]}"
