"""How long it takes from the start to the first training step, with many rows that are encoded when they are wanted.

Run `python -m benchmarks.first_step`. The rows, 20 tools each of 200, lie in an Arrow file of the size that such a
dataset has (it is made first, of a block of rows again and again, and deleted afterwards). The clock starts when the
trainer is constructed, with `preparation="lazy"`, and stops when the first batch is there; imports and the model come
before. TRL encodes all rows first: its constructor is measured on two small numbers of rows, and what it would take
for all is calculated from these, in a straight line.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.catalogue import as_text, make_rows, make_tools
from benchmarks.report import GOALS, Bars, add_output_options, draw_bars, write_result
from benchmarks.tokenizer import small_tokenizer
from benchmarks.training import COMMON, ModelSize, our_trainer, quiet
from deepfabric_trainer.rows import to_dataset

_BLOCK = 2000


@dataclass(frozen=True)
class Figure:
    """What passed before the first step.

    Args:
        rows (`int`): Of the dataset.
        file_mib (`float`): The size of its file.
        workers (`int`): Processes of the data loader.
        constructor_seconds (`float`): Of the clock, for our trainer's constructor.
        our_seconds (`float`): Of the clock, from its beginning until the first batch is there.
        step_seconds (`float`): Of the clock, from its beginning until the first step is done.
        trl_rows (`int`): The larger number of rows that TRL was measured on.
        trl_measured_seconds (`float`): Of the clock, for its constructor with these.
        trl_calculated_seconds (`float`): What it would take for all rows.
        goal (`float`): Seconds for our first batch to stay below.
    """

    rows: int
    file_mib: float
    workers: int
    constructor_seconds: float
    our_seconds: float
    step_seconds: float
    trl_rows: int
    trl_measured_seconds: float
    trl_calculated_seconds: float
    goal: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_step", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the dataset (default: 100000)")
    parser.add_argument("--trl-rows", type=int, default=200, help="rows that TRL encodes (default: 200)")
    parser.add_argument("--tools", type=int, default=20, help="tools of a row (default: 20)")
    parser.add_argument("--catalogue", type=int, default=200, help="tools that rows draw from (default: 200)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the data loader (default: 2)")
    parser.add_argument("--hidden", type=int, default=32, help="width of the model, of one layer (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="makes the rows (default: 0)")
    add_output_options(parser)
    options = parser.parse_args(argv)

    with quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.arrow"
        write_rows(path, options.rows, options.tools, options.catalogue, options.seed)
        figure = measure(path, options.workers, options.trl_rows, options.hidden)
    print_figure(figure, Console())
    if options.output:
        write_result(options.output, "first_step", options, [asdict(figure)])
    if options.plot:
        plot(figure, options.plot)


def write_rows(path: Path, count: int, tools: int, catalogue: int, seed: int = 0) -> None:
    """Write rows to an Arrow file, a block of them as often as it takes."""
    made = make_rows(min(count, _BLOCK), catalogue=make_tools(catalogue, seed), tools_per_row=tools, seed=seed)
    block = to_dataset(as_text(made)).data.table
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, block.schema) as writer:
        for start in range(0, count, len(block)):
            writer.write_table(block.slice(0, min(len(block), count - start)))


def measure(path: Path, workers: int, trl_rows: int, hidden: int = 32) -> Figure:
    """Start a training on the rows of a file with ours, and construct TRL's trainer on some of them."""
    tokenizer = small_tokenizer()
    rows = Dataset.from_file(str(path))
    size = ModelSize(1, hidden, len(tokenizer))
    model, clock = size.build(tokenizer), _FirstStep()
    options = {"preparation": "lazy", "dataloader_num_workers": workers, "max_steps": 1}
    started = time.perf_counter()
    with our_trainer(model, tokenizer, rows, **options) as trainer:
        constructed = time.perf_counter()
        trainer.add_callback(clock)
        trainer.train()
    few = max(trl_rows // 10, 1)
    seconds = {count: _trls_seconds(size, tokenizer, rows.select(range(count))) for count in (few, trl_rows)}
    a_row = (seconds[trl_rows] - seconds[few]) / (trl_rows - few)
    return Figure(
        rows=len(rows),
        file_mib=round(path.stat().st_size / 2**20, 1),
        workers=workers,
        constructor_seconds=round(constructed - started, 2),
        our_seconds=round(clock.fetched - started, 2),
        step_seconds=round(clock.done - started, 2),
        trl_rows=trl_rows,
        trl_measured_seconds=round(seconds[trl_rows], 2),
        trl_calculated_seconds=round(seconds[few] + a_row * (len(rows) - few), 1),
        goal=GOALS["first step"],
    )


def print_figure(figure: Figure, console: Console) -> None:
    table = Table(title=f"from the start to the first step, {figure.rows:,} rows ({figure.file_mib:,.0f} MiB)")
    table.add_column("", no_wrap=True)
    table.add_column("seconds", justify="right")
    table.add_row("ours: trainer constructed", f"{figure.constructor_seconds:.2f}")
    table.add_row(f"ours: first batch there (goal {figure.goal:g})", f"{figure.our_seconds:.2f}")
    table.add_row("ours: first step done", f"{figure.step_seconds:.2f}")
    table.add_row(f"TRL: trainer constructed on {figure.trl_rows:,} rows", f"{figure.trl_measured_seconds:.2f}")
    table.add_row(f"TRL: on {figure.rows:,} rows, calculated from this", f"{figure.trl_calculated_seconds:,.0f}")
    console.print(table)


def plot(figure: Figure, path: Path) -> None:
    """Draw the seconds until the first batch."""
    values = {"TRL": figure.trl_calculated_seconds, "deepfabric-trainer": figure.our_seconds}
    notes = {"TRL": f"calculated from {figure.trl_rows:,} rows", "deepfabric-trainer": 'preparation="lazy"'}
    bars = Bars(f"{figure.rows:,} rows of {figure.file_mib / 1024:.1f} GiB", values, notes)
    draw_bars(path, [bars], "seconds from the start to the first batch", "{:,.1f}")


class _FirstStep(TrainerCallback):
    def __init__(self) -> None:
        self.fetched = self.done = math.nan

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.fetched = time.perf_counter()  # the batch comes before

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done = time.perf_counter()


def _trls_seconds(size: ModelSize, tokenizer: Any, rows: Dataset) -> float:
    """Return the seconds of TRL's constructor, which encodes all rows."""
    model = size.build(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(folder, **COMMON | {"max_length": None, "assistant_only_loss": True})
        started = time.perf_counter()
        SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
