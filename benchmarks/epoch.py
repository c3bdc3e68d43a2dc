"""How fast an epoch is: TRL's `SFTTrainer` and this library, over the same rows, in one process.

Run `python -m benchmarks.epoch --data rows.jsonl`, or without a file over rows made here: several exchanges over
catalogues that overlap. Ours has the defaults of `DeepFabricSFTConfig`: rows whose catalogues begin alike come in the
same batch, and what they share is computed once. TRL pads, on the examples that ours made of the rows. Preparing them
is not in the time. Every example is trained once by both, which the benchmark checks, but in another order: so their
losses come close without being the same.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.catalogue import as_text
from benchmarks.conversations import make_sessions
from benchmarks.report import GOALS, Bars, add_output_options, draw_bars, write_result
from benchmarks.training import ModelSize, fitted_tokenizer, our_trainer, quiet, train, trls_trainer
from deepfabric_trainer.rows import to_dataset

Json = dict[str, Any]

_LAST_STEPS = 3


@dataclass(frozen=True)
class Figure:
    """What an epoch took.

    Args:
        rows_of (`str`): Where the rows come from.
        rows (`int`): As many as there were.
        dropped (`int`): Of them left out, because the chat template does not render them right.
        examples (`int`): Trained by each, once.
        batch (`int`): Examples of a step.
        steps (`int`): Of either.
        layers (`int`): Of the model.
        hidden (`int`): The model's width.
        vocabulary (`int`): The model's.
        tokens (`int`): Of all examples.
        computed_tokens (`int`): Of them sent through the model by us.
        padded_tokens (`int`): Sent through it by TRL, padding included.
        trl_seconds (`float`): Of the clock, the whole epoch.
        our_seconds (`float`): Of the clock, the whole epoch.
        ratio (`float`): TRL's seconds to ours.
        cpu_ratio (`float`): The same of the processor's seconds.
        goal (`float`): The ratio to reach.
        trl_loss (`float`): The mean of the last steps.
        our_loss (`float`): The mean of the last steps, on other examples.
    """

    rows_of: str
    rows: int
    dropped: int
    examples: int
    batch: int
    steps: int
    layers: int
    hidden: int
    vocabulary: int
    tokens: int
    computed_tokens: int
    padded_tokens: int
    trl_seconds: float
    our_seconds: float
    ratio: float
    cpu_ratio: float
    goal: float
    trl_loss: float
    our_loss: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epoch", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="a JSON Lines file of conversations (default: rows made here)")
    parser.add_argument("--rows", type=int, default=110, help="rows that are made without a file (default: 110)")
    parser.add_argument("--batch", type=int, default=8, help="examples of a step (default: 8)")
    parser.add_argument("--layers", type=int, default=2, help="of the model (default: 2)")
    parser.add_argument("--hidden", type=int, default=64, help="width of the model (default: 64)")
    parser.add_argument("--vocabulary", type=int, default=2048, help="of the tokenizer (default: 2048)")
    parser.add_argument("--seed", type=int, default=0, help="makes the rows, the model and the order (default: 0)")
    add_output_options(parser)
    options = parser.parse_args(argv)

    if options.data:
        rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        rows = as_text(make_sessions(options.rows, options.seed))
    name = options.data.name if options.data else "rows made here"
    size = ModelSize(options.layers, options.hidden, options.vocabulary)
    with quiet():
        figure = measure(name, rows, size, options.batch, options.seed)
    print_figure(figure, Console())
    if options.output:
        write_result(options.output, "epoch", options, [asdict(figure)])
    if options.plot:
        plot(figure, options.plot)


def measure(rows_of: str, rows: list[Json], size: ModelSize, batch: int = 8, seed: int = 0) -> Figure:
    """Train an epoch with both."""
    tokenizer = fitted_tokenizer(rows, size.vocabulary)
    size = replace(size, vocabulary=len(tokenizer))
    dataset = to_dataset(rows)
    given = {"per_device_train_batch_size": batch, "seed": seed, "num_train_epochs": 1}
    with our_trainer(size.build(tokenizer, seed), tokenizer, dataset, on_invalid="drop", **given) as trainer:
        prepared = trainer.train_dataset
        dropped = _count_lines(Path(trainer.args.output_dir) / "rejected.jsonl")
        ours = train(trainer)
    with trls_trainer(size.build(tokenizer, seed), tokenizer, prepared, **given) as trainer:
        trls = train(trainer)
    once = sorted(hash(tuple(ids)) for ids in prepared["input_ids"])
    for name, run in (("ours", ours), ("TRL", trls)):
        if sorted(run.examples) != once:
            raise RuntimeError(f"{name} did not train each example once")
    trl_seconds, our_seconds = sum(trls.seconds), sum(ours.seconds)
    return Figure(
        rows_of=rows_of,
        rows=len(rows),
        dropped=dropped,
        examples=len(prepared),
        batch=batch,
        steps=len(ours.seconds),
        layers=size.layers,
        hidden=size.hidden,
        vocabulary=size.vocabulary,
        tokens=ours.tokens,
        computed_tokens=ours.computed_tokens,
        padded_tokens=trls.laid_out_tokens,
        trl_seconds=round(trl_seconds, 2),
        our_seconds=round(our_seconds, 2),
        ratio=round(trl_seconds / our_seconds, 2),
        cpu_ratio=round(trls.cpu_seconds / ours.cpu_seconds, 2),
        goal=GOALS["epoch"],
        trl_loss=_mean(trls.losses[-_LAST_STEPS:]),
        our_loss=_mean(ours.losses[-_LAST_STEPS:]),
    )


def print_figure(figure: Figure, console: Console) -> None:
    table = Table(title=f"an epoch over {figure.examples} examples ({figure.rows_of}), batches of {figure.batch}, CPU")
    for heading in ("", "seconds", "tokens computed", "steps", "last losses"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(
        "TRL", f"{figure.trl_seconds:.1f}", f"{figure.padded_tokens:,}", f"{figure.steps}", f"{figure.trl_loss:.3f}"
    )
    table.add_row(
        "ours", f"{figure.our_seconds:.1f}", f"{figure.computed_tokens:,}", f"{figure.steps}", f"{figure.our_loss:.3f}"
    )
    console.print(table)
    console.print(
        f"{figure.ratio:.2f}x (goal {figure.goal:g}x); {figure.tokens:,} tokens in the examples; each trained once "
        f"by both, in another order; {figure.dropped} of {figure.rows} rows left out; model {figure.layers} x "
        f"{figure.hidden}, vocabulary {figure.vocabulary:,}",
        highlight=False,
    )


def plot(figure: Figure, path: Path) -> None:
    """Draw the seconds, and the tokens that were computed."""
    values = {"TRL": figure.trl_seconds, "deepfabric-trainer": figure.our_seconds}
    tokens = {"TRL": f"{figure.padded_tokens:,} tokens"}
    tokens["deepfabric-trainer"] = f"{figure.computed_tokens:,} tokens, {figure.ratio:.1f}x"
    draw_bars(path, [Bars(f"{figure.examples} examples ({figure.rows_of})", values, tokens)], "seconds an epoch")


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


if __name__ == "__main__":
    main()
