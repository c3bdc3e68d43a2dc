"""How fast rows are prepared for training: TRL's `SFTTrainer` and this library, on the same rows, in one process.

Run `python -m benchmarks.prepare`. Two sets of rows are made from a seed: in one all rows list one catalogue of tools,
in the other each row draws its own from a larger one. TRL's figure is the whole of its `_prepare_dataset` with
`assistant_only_loss=True` and the template that it trains with; ours is the whole of `prepare_dataset` on the same
template: every row checked, encoded and proved. Both take turns, nothing is read from a cache, the best run counts,
and the examples of both are compared, token by token.
"""

import argparse
import gc
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from benchmarks.catalogue import as_text, make_rows, make_tools
from benchmarks.prepare_memory import measure_memory
from benchmarks.report import Bars, add_output_options, draw_bars, write_result
from benchmarks.tokenizer import load_tokenizer, template_of_trl
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.prepare import prepare_dataset
from deepfabric_trainer.rows import to_dataset


@dataclass(frozen=True)
class Figure:
    """What one set of rows took.

    Args:
        rows_of (`str`): The set.
        rows (`int`): Rows that were prepared, and examples that came out of either.
        tokens (`float`): The mean length of an example.
        trl_seconds (`float`): Of the processor, TRL's best run.
        our_seconds (`float`): Of the processor, our best run.
        trl_rows_per_second (`float`): By the processor's time.
        our_rows_per_second (`float`): By the processor's time.
        ratio (`float`): Ours to TRL's.
        same_ids (`int`): Rows whose token ids are the same.
        same_labels (`int`): Rows whose labels are the same.
        only_trl_trains (`dict[str, int]`): Tokens that TRL alone trains, as text, with their number.
        only_we_train (`dict[str, int]`): Tokens that we alone train.
        two_processes (`float`, *optional*): Our rows a second of the clock with `num_proc=2`, to those with one.
    """

    rows_of: str
    rows: int
    tokens: float
    trl_seconds: float
    our_seconds: float
    trl_rows_per_second: float
    our_rows_per_second: float
    ratio: float
    same_ids: int
    same_labels: int
    only_trl_trains: dict[str, int]
    only_we_train: dict[str, int]
    two_processes: float | None = None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1500, help="rows of each set (default: 1500)")
    parser.add_argument("--tools", type=int, default=20, help="tools of a row (default: 20)")
    parser.add_argument("--catalogue", type=int, default=200, help="tools of the large catalogue (default: 200)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each, of which the best counts (default: 2)")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer (default: a small one, made here)")
    parser.add_argument("--template", default="qwen3", help="a chat template that trl installs (default: qwen3)")
    parser.add_argument(
        "--two", type=int, metavar="ROWS", help="also measure what a second process gains, on more rows"
    )
    parser.add_argument("--memory", type=int, nargs="+", default=[], metavar="ROWS", help="also measure peak memory")
    parser.add_argument("--seed", type=int, default=0, help="makes the rows (default: 0)")
    add_output_options(parser)
    options = parser.parse_args(argv)

    tokenizer = load_tokenizer(options.tokenizer)
    tokenizer.chat_template = template_of_trl(options.template)
    figures = []
    with _quietly_without_cache():
        for size in (options.tools, options.catalogue):
            rows = make_rows(
                options.rows, catalogue=make_tools(size, options.seed), tools_per_row=options.tools, seed=options.seed
            )
            name = f"one catalogue of {size}" if size == options.tools else f"{options.tools} of {size}"
            figure = measure(name, to_dataset(as_text(rows)), tokenizer, options.repeats)
            if options.two:
                more = make_rows(options.two, catalogue=make_tools(size, options.seed), tools_per_row=options.tools)
                figure = replace(figure, two_processes=gain_of_two(to_dataset(as_text(more)), tokenizer))
            figures.append(figure)
    print_figures(figures, Console())
    memory = [measure_memory(rows, options.tools, options.catalogue) for rows in options.memory]
    for each in memory:
        print(each)
    if options.output:
        options.memory = [asdict(each) for each in memory]
        write_result(options.output, "prepare", options, [asdict(figure) for figure in figures])
    if options.plot:
        plot(figures, options.plot)


def measure(rows_of: str, rows: Dataset, tokenizer: Any, repeats: int = 2) -> Figure:
    """Prepare rows in turns and compare what comes out."""
    trainer = _trainer(rows, tokenizer)
    template = trainer.chat_template

    def prepare_as_trl() -> Dataset:
        return trainer._prepare_dataset(rows, tokenizer, trainer.args, False, None, "train")

    def prepare_as_we_do() -> Dataset:
        # A new encoder each time, so that it remembers nothing.
        return prepare_dataset(rows, ConversationEncoder(tokenizer, chat_template=template))

    trl, ours = [], []
    for _ in range(repeats):
        trl.append(_cpu_seconds(prepare_as_trl))
        ours.append(_cpu_seconds(prepare_as_we_do))
    trl_seconds, our_seconds = (min(seconds for seconds, _ in runs) for runs in (trl, ours))
    theirs, mine = trl[-1][1], ours[-1][1]
    same_ids, same_labels, only_trl, only_we = _compare(theirs, mine, tokenizer)
    return Figure(
        rows_of=rows_of,
        rows=len(rows),
        tokens=round(sum(map(len, mine["input_ids"])) / len(mine), 1),
        trl_seconds=round(trl_seconds, 3),
        our_seconds=round(our_seconds, 3),
        trl_rows_per_second=round(len(rows) / trl_seconds, 1),
        our_rows_per_second=round(len(rows) / our_seconds, 1),
        ratio=round(trl_seconds / our_seconds, 2),
        same_ids=same_ids,
        same_labels=same_labels,
        only_trl_trains=only_trl,
        only_we_train=only_we,
    )


def gain_of_two(rows: Dataset, tokenizer: Any) -> float:
    """Return how many times as fast, by the clock, two processes prepare rows."""
    seconds = {}
    for processes in (None, 2):
        encoder = ConversationEncoder(tokenizer)
        started = time.perf_counter()
        prepare_dataset(rows, encoder, num_proc=processes)
        seconds[processes] = time.perf_counter() - started
    return round(seconds[None] / seconds[2], 2)


def print_figures(figures: Sequence[Figure], console: Console) -> None:
    table = Table(title="rows prepared per second, one process")
    table.add_column("a row lists", no_wrap=True)
    headings = ["rows", "tokens", "TRL", "ours", "ratio", "ids", "labels"]
    if any(figure.two_processes is not None for figure in figures):
        headings.append("with 2")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for figure in figures:
        table.add_row(
            figure.rows_of,
            f"{figure.rows:,}",
            f"{figure.tokens:,.0f}",
            f"{figure.trl_rows_per_second:,.1f}",
            f"{figure.our_rows_per_second:,.1f}",
            f"{figure.ratio:.1f}x",
            f"{figure.same_ids:,}",
            f"{figure.same_labels:,}",
            *([] if figure.two_processes is None else [f"{figure.two_processes:.2f}x"]),
        )
    console.print(
        table, "ids, labels: rows in which both have the same; with 2: what a second process gains", sep="\n"
    )
    for figure in figures:
        for name, only in (("TRL", figure.only_trl_trains), ("ours", figure.only_we_train)):
            if only:
                console.print(f"{figure.rows_of}: trained by {name} alone: {only}", highlight=False, markup=False)


def plot(figures: Sequence[Figure], path: Path) -> None:
    """Draw the rows a second of both as bars."""
    groups = [
        Bars(
            f"a row lists {figure.rows_of}",
            {"TRL": figure.trl_rows_per_second, "deepfabric-trainer": figure.our_rows_per_second},
            {"deepfabric-trainer": f"{figure.ratio:.1f} times as many"},
        )
        for figure in figures
    ]
    draw_bars(path, groups, "rows prepared per second, one process", "{:,.0f}")


def _trainer(rows: Dataset, tokenizer: Any) -> SFTTrainer:
    """Return TRL's trainer on a model of no use, constructed with the first rows."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            assistant_only_loss=True,
            max_length=None,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
        )
        first = rows.select(range(1))
        return SFTTrainer(LlamaForCausalLM(config), args=args, train_dataset=first, processing_class=tokenizer)


def _compare(theirs: Dataset, ours: Dataset, tokenizer: Any) -> tuple[int, int, dict[str, int], dict[str, int]]:
    """Count the rows with the same ids and labels, and the tokens that only one of both trains."""
    same_ids = same_labels = 0
    only: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for their, our in zip(theirs, ours, strict=True):
        same_ids += their["input_ids"] == our["input_ids"]
        same_labels += their["labels"] == our["labels"]
        for token, label, other in zip(our["input_ids"], their["labels"], our["labels"], strict=False):
            if (label == -100) != (other == -100):
                counts, text = only[label == -100], tokenizer.decode([token])
                counts[text] = counts.get(text, 0) + 1
    return same_ids, same_labels, *only


def _cpu_seconds(work: Callable[[], Dataset]) -> tuple[float, Dataset]:
    gc.collect()
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


@contextmanager
def _quietly_without_cache() -> Iterator[None]:
    caches, bars = datasets.is_caching_enabled(), datasets.is_progress_bar_enabled()
    logger = logging.getLogger("deepfabric_trainer")
    level = logger.level
    datasets.disable_caching()
    datasets.disable_progress_bars()
    logger.setLevel(logging.ERROR)  # that the tools came as text is known
    try:
        yield
    finally:
        logger.setLevel(level)
        if caches:
            datasets.enable_caching()
        if bars:
            datasets.enable_progress_bars()


if __name__ == "__main__":
    main()
