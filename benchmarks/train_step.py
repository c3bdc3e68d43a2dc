"""How fast a training step is: TRL's `SFTTrainer` and this library, on the same examples, in one process.

Run `python -m benchmarks.train_step`. Both trainers get a model of the same weights and train batches of 8 for some
steps: the same examples in the same step, with the same labels, in float32 on the CPU, with the defaults of each, so
with gradient checkpointing. A step is all of it: rows are read, laid out, sent forward and backward, and the update
made. The two take turns, the fastest step of each counts, and the benchmark fails unless their losses are the same.

Three settings: rows of one catalogue of 20 tools with Qwen's vocabulary of 151,936, where TRL's head weighs most
(tools with their required parameters only, since with all of them 24 GiB of memory are too few for TRL's step); rows
of the same tools in full with a vocabulary so small that the head does not count; and rows that have nothing in
common, in which every token is trained, so that neither sharing nor the smaller head can help. TRL's packing has a
line of its own with the small vocabulary: two examples a row, in their own order, and four rows a step.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.table import Table

from benchmarks.catalogue import as_text, briefly, make_rows, make_tools
from benchmarks.conversations import make_texts
from benchmarks.report import GOALS, Bars, add_output_options, draw_bars, write_result
from benchmarks.training import (
    QWENS_VOCABULARY,
    ModelSize,
    Run,
    check_same_steps,
    difference,
    fitted_tokenizer,
    our_trainer,
    quiet,
    train,
    trls_trainer,
)
from deepfabric_trainer.rows import to_dataset

Json = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Args:
        name (`str`): One of those that have a goal.
        size (`ModelSize`): The model's.
        rows (`list[dict]`): Conversations.
        steps (`int`): Of a run.
        repeats (`int`): Runs of each trainer.
        train_on (`str`): Which messages are trained.
        packs (`bool`): Whether TRL's packing is measured too.
    """

    name: str
    size: ModelSize
    rows: list[Json]
    steps: int
    repeats: int
    train_on: str = "assistant"
    packs: bool = False


@dataclass(frozen=True)
class Figure:
    """What a step of one setting took.

    Args:
        setting (`str`): Its name.
        layers (`int`): Of the model.
        hidden (`int`): The model's width.
        vocabulary (`int`): The model's.
        batch (`int`): Examples of a step.
        tokens (`float`): The mean length of an example.
        trained_tokens (`float`): Of them trained.
        computed_share (`float`): Of the tokens of all examples, those that we sent through the model.
        trl_seconds (`float`): Of the clock, TRL's fastest step.
        our_seconds (`float`): Of the clock, our fastest step.
        packed_seconds (`float`, *optional*): Of the clock, TRL's only step with packing, of as many examples.
        ratio (`float`): TRL's seconds to ours.
        cpu_ratio (`float`): The same of the processor's seconds, of all steps.
        goal (`float`): The ratio to reach.
        trl_all_seconds (`list[float]`): Of every step.
        our_all_seconds (`list[float]`): Of every step.
        trl_losses (`list[float]`): Of the steps.
        our_losses (`list[float]`): Of the same steps.
        loss_difference (`float`): The largest between the two, relative.
        same_examples (`bool`): Whether both trained the same examples in the same order.
    """

    setting: str
    layers: int
    hidden: int
    vocabulary: int
    batch: int
    tokens: float
    trained_tokens: float
    computed_share: float
    trl_seconds: float
    our_seconds: float
    packed_seconds: float | None
    ratio: float
    cpu_ratio: float
    goal: float
    trl_all_seconds: list[float]
    our_all_seconds: list[float]
    trl_losses: list[float]
    our_losses: list[float]
    loss_difference: float
    same_examples: bool


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.split("\n")[0])
    parser.add_argument("--tools", type=int, default=20, help="tools of the catalogue (default: 20)")
    parser.add_argument("--words", type=int, default=450, help="words of a row that shares nothing (default: 450)")
    parser.add_argument("--batch", type=int, default=8, help="examples of a step (default: 8)")
    parser.add_argument(
        "--steps", type=int, default=2, help="steps of a run; one with --large-vocabulary (default: 2)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        help="runs of each, in turns; four times as many where nothing is shared (default: 1)",
    )
    parser.add_argument("--layers", type=int, default=2, help="of the models (default: 2)")
    parser.add_argument("--hidden", type=int, default=256, help="width of the models (default: 256)")
    parser.add_argument("--large-hidden", type=int, default=64, help="the same with --large-vocabulary (default: 64)")
    parser.add_argument(
        "--large-vocabulary", type=int, default=QWENS_VOCABULARY, help="of the model (default: Qwen's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="makes the rows and the models (default: 0)")
    add_output_options(parser)
    options = parser.parse_args(argv)

    figures = []
    with quiet():
        for setting in make_settings(options):
            figures.append(measure(setting, options.batch, options.seed))
    print_figures(figures, Console())
    if options.output:
        write_result(options.output, "train_step", options, [asdict(figure) for figure in figures])
    if options.plot:
        plot(figures, options.plot)


def make_settings(options: argparse.Namespace) -> list[Setting]:
    """Return the three settings, with rows for all the steps of a run."""
    count, seed = options.batch * options.steps, options.seed
    catalogue = make_tools(options.tools, seed)
    of_tools = as_text(make_rows(count, catalogue=catalogue, tools_per_row=options.tools, seed=seed))
    texts = make_texts(count, options.words, seed)
    brief = as_text(make_rows(options.batch, catalogue=briefly(catalogue), tools_per_row=options.tools, seed=seed))
    # Where TRL's step takes minutes one is enough; where the two are close more runs tell them apart.
    large = ModelSize(options.layers, options.large_hidden, options.large_vocabulary)
    small = ModelSize(options.layers, options.hidden, 0)
    return [
        Setting("step, Qwen's vocabulary", large, brief, steps=1, repeats=1),
        Setting("step, small vocabulary", small, of_tools, options.steps, options.repeats, packs=True),
        Setting("step, nothing shared", small, texts, options.steps, 4 * options.repeats, train_on="all"),
    ]


def measure(setting: Setting, batch: int, seed: int = 0) -> Figure:
    """Train with both in turns, and compare what they did."""
    tokenizer = fitted_tokenizer(setting.rows)
    size = replace(setting.size, vocabulary=max(setting.size.vocabulary, len(tokenizer)))
    rows = to_dataset(setting.rows)
    given = {"per_device_train_batch_size": batch, "seed": seed, "max_steps": setting.steps}
    ours: list[Run] = []
    trls: list[Run] = []
    _warm_up(size, tokenizer, given)
    for _ in range(setting.repeats):
        options = {**given, "train_on": setting.train_on, "group_by_prefix": False}
        with our_trainer(size.build(tokenizer, seed), tokenizer, rows, **options) as trainer:
            prepared = trainer.train_dataset
            ours.append(train(trainer))
        with trls_trainer(size.build(tokenizer, seed), tokenizer, prepared, **given) as trainer:
            trls.append(train(trainer))
        check_same_steps(ours[-1], trls[-1])
    packed = _packed_seconds(size, tokenizer, prepared, batch, seed) if setting.packs else None
    all_ours, all_trls = ([seconds for run in runs for seconds in run.seconds] for runs in (ours, trls))
    trained = sum(label != -100 for labels in prepared["labels"] for label in labels)
    return Figure(
        setting=setting.name,
        layers=size.layers,
        hidden=size.hidden,
        vocabulary=size.vocabulary,
        batch=batch,
        tokens=round(ours[0].tokens / len(ours[0].examples), 1),
        trained_tokens=round(trained / len(prepared), 1),
        computed_share=round(ours[0].computed_tokens / ours[0].tokens, 3),
        trl_seconds=round(min(all_trls), 3),
        our_seconds=round(min(all_ours), 3),
        packed_seconds=None if packed is None else round(packed, 3),
        ratio=round(min(all_trls) / min(all_ours), 2),
        cpu_ratio=round(sum(run.cpu_seconds for run in trls) / sum(run.cpu_seconds for run in ours), 2),
        goal=GOALS[setting.name],
        trl_all_seconds=[round(seconds, 3) for seconds in all_trls],
        our_all_seconds=[round(seconds, 3) for seconds in all_ours],
        trl_losses=trls[0].losses,
        our_losses=ours[0].losses,
        loss_difference=max(difference(one.losses, other.losses) for one, other in zip(ours, trls, strict=True)),
        same_examples=all(one.examples == other.examples for one, other in zip(ours, trls, strict=True)),
    )


def print_figures(figures: Sequence[Figure], console: Console) -> None:
    table = Table(title="a training step on the CPU, float32: the same examples, the same losses")
    table.add_column("", no_wrap=True)
    for heading in ("computed", "TRL (s)", "packed", "ours", "ratio", "goal", "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        table.add_row(
            figure.setting.removeprefix("step, "),
            f"{figure.computed_share:.0%}",
            f"{figure.trl_seconds:.2f}",
            "" if figure.packed_seconds is None else f"{figure.packed_seconds:.2f}",
            f"{figure.our_seconds:.2f}",
            f"{figure.ratio:.2f}x",
            f"{figure.goal:g}x",
            f"{figure.loss_difference:.0e}",
        )
    console.print(table, "computed: of the tokens, by ours; loss: the largest difference, relative", sep="\n")
    for figure in figures:
        console.print(
            f"{figure.setting}: {figure.batch} x {figure.tokens:,.0f} tokens, {figure.trained_tokens:,.0f} of them "
            f"trained; {figure.layers} layers of {figure.hidden}, vocabulary {figure.vocabulary:,}",
            highlight=False,
        )


def plot(figures: Sequence[Figure], path: Path) -> None:
    """Draw the seconds of a step."""
    groups = []
    for figure in figures:
        values = {"TRL": figure.trl_seconds, "deepfabric-trainer": figure.our_seconds}
        if figure.packed_seconds is not None:
            values = {"TRL, packed": figure.packed_seconds, **values}
        label = figure.setting.removeprefix("step, ")
        groups.append(Bars(label, values, {"deepfabric-trainer": f"{figure.ratio:.1f}x"}))
    draw_bars(path, groups, "seconds a training step of 8 examples", "{:.2f}")


def _warm_up(size: ModelSize, tokenizer: Any, options: Json) -> None:
    """Train a step of short rows with both, so that neither pays for what is loaded and allocated once."""
    rows = to_dataset(make_texts(options["per_device_train_batch_size"], 40))
    once = {**options, "max_steps": 1}
    with our_trainer(size.build(tokenizer), tokenizer, rows, **once) as trainer:
        train(trainer)
        prepared = trainer.train_dataset
    with trls_trainer(size.build(tokenizer), tokenizer, prepared, **once) as trainer:
        train(trainer)


def _packed_seconds(size: ModelSize, tokenizer: Any, prepared: Dataset, batch: int, seed: int) -> float:
    """Return the seconds of TRL's first step with packing: two examples a row, and as many in the step."""
    examples = prepared.select(range(batch))
    packing = {"packing": True, "max_length": 2 * max(map(len, examples["input_ids"]))}
    # In a batch packed rows are put behind one another, and CPUs compute all pairs of their tokens.
    one_by_one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": batch // 2}
    options = {**one_by_one, "seed": seed, "max_steps": 1}
    with trls_trainer(size.build(tokenizer, seed), tokenizer, examples, **packing, **options) as trainer:
        return train(trainer).seconds[0]


if __name__ == "__main__":
    main()
