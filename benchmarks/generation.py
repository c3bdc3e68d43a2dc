"""How fast a sample of turns is generated: row by row, in a padded batch, and with what prompts share computed once.

Run `python -m benchmarks.generation`. The same prompts are continued greedily by the same random model, in float32 on
the CPU: one by one and in one left-padded batch with `generate` of `transformers`, and with this library's, as its
callback does it. The three take turns, the fastest run of each counts, and the benchmark fails unless all generate the
same tokens. No row ends early, so that all compute as many.

Two settings of 16 prompts: all behind 1,000 tokens that they share; and four behind each of four catalogues of 800
tokens, all of them below 200 tokens of a system message, as in a sample of rows with different tools. The tokens are
drawn at random, which makes no difference to what is computed. `--model FOLDER` takes a real model in its place.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, starmap, takewhile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.report import GOALS, Bars, add_output_options, draw_bars, write_result
from benchmarks.tokenizer import small_tokenizer
from benchmarks.training import ModelSize, quiet
from deepfabric_trainer.generate import generate_with_shared_prefix, generation_mode
from deepfabric_trainer.generate.plain import generate_plain

Tokens = list[list[int]]
_OWN = (20, 60)
"""The tokens that a prompt has of its own, at least and at most."""


@dataclass(frozen=True)
class Figure:
    """What one setting took.

    Args:
        setting (`str`): Which prompts.
        layers (`int`): Of the model.
        hidden (`int`): The model's width.
        vocabulary (`int`): The model's.
        prompts (`int`): How many.
        tokens (`int`): Of all prompts.
        distinct_tokens (`int`): Of these, counting once what prompts share.
        new_tokens (`int`): Generated for each prompt.
        row_by_row_seconds (`float`): Of the clock, the fastest run.
        padded_seconds (`float`): The same of one padded batch.
        our_seconds (`float`): The same of ours.
        row_by_row_ratio (`float`): Row by row to ours.
        padded_ratio (`float`): The padded batch to ours.
        all_seconds (`dict[str, list[float]]`): Of every run.
    """

    setting: str
    layers: int
    hidden: int
    vocabulary: int
    prompts: int
    tokens: int
    distinct_tokens: int
    new_tokens: int
    row_by_row_seconds: float
    padded_seconds: float
    our_seconds: float
    row_by_row_ratio: float
    padded_ratio: float
    all_seconds: dict[str, list[float]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=16, help="how many (default: 16)")
    parser.add_argument("--shared", type=int, default=1000, help="tokens before a prompt's own (default: 1000)")
    parser.add_argument("--new-tokens", type=int, default=32, help="generated for each prompt (default: 32)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each, in turns (default: 2)")
    parser.add_argument("--layers", type=int, default=6, help="of the model (default: 6)")
    parser.add_argument("--hidden", type=int, default=512, help="width of the model (default: 512)")
    parser.add_argument("--model", type=Path, help="a model to load in place of a random one")
    parser.add_argument("--seed", type=int, default=0, help="makes the prompts and the model (default: 0)")
    add_output_options(parser)
    options = parser.parse_args(argv)

    with quiet():
        model = load_model(options)
        figures = [
            measure(setting, model, prompts, options.new_tokens, options.repeats)
            for setting, prompts in make_prompts(
                options.prompts, options.shared, model.config.vocab_size, options.seed
            ).items()
        ]
    print_figures(figures, Console())
    if options.output:
        write_result(options.output, "generation", options, [asdict(figure) for figure in figures])
    if options.plot:
        plot(figures, options.plot)


def load_model(options: argparse.Namespace) -> Any:
    """Return the model that is named, or a random one."""
    if options.model is not None:
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    return ModelSize(options.layers, options.hidden, 0).build(small_tokenizer(), options.seed).eval()


def make_prompts(count: int, shared: int, vocabulary: int, seed: int = 0) -> dict[str, Tokens]:
    """Return the prompts of each setting."""
    rng = random.Random(f"prompts {seed}")

    def draw(length: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(length)]

    own = [draw(rng.randint(*_OWN)) for _ in range(count)]
    system = draw(shared // 5)
    catalogues = [[*system, *draw(shared - len(system))] for _ in range(4)]
    return {
        "one catalogue": [catalogues[0] + tokens for tokens in own],
        "four catalogues": [catalogues[number % 4] + tokens for number, tokens in enumerate(own)],
    }


def measure(setting: str, model: Any, prompts: Tokens, new_tokens: int, repeats: int) -> Figure:
    """Generate with all three in turns, and compare what they say.

    Raises:
        RuntimeError: If they do not say the same.
    """
    options = {"max_new_tokens": new_tokens, "stop_token_ids": [], "pad_token_id": 0}

    def row_by_row() -> Tokens:
        with generation_mode(model) as ready, torch.no_grad():
            return [generate_plain(ready, [prompt], **options)[0] for prompt in prompts]

    def padded() -> Tokens:
        with generation_mode(model) as ready, torch.no_grad():
            return generate_plain(ready, prompts, **options)

    def ours() -> Tokens:
        return generate_with_shared_prefix(model, prompts, batch_size=len(prompts), **options)

    contenders: dict[str, Callable[[], Tokens]] = {"row by row": row_by_row, "padded batch": padded, "ours": ours}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    generated: dict[str, Tokens] = {}
    generate_with_shared_prefix(model, [prompt[-8:] for prompt in prompts], batch_size=len(prompts), **options)
    for _ in range(repeats):
        for name, generate in contenders.items():
            started = time.perf_counter()
            generated[name] = generate()
            seconds[name].append(round(time.perf_counter() - started, 3))
        if any(tokens != generated["ours"] for tokens in generated.values()):
            raise RuntimeError(f"{setting}: the three ways do not generate the same tokens")
    best = {name: min(times) for name, times in seconds.items()}
    return Figure(
        setting=setting,
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        vocabulary=model.config.vocab_size,
        prompts=len(prompts),
        tokens=sum(map(len, prompts)),
        distinct_tokens=sum(map(len, prompts)) - sum(starmap(_common, pairwise(sorted(prompts)))),
        new_tokens=new_tokens,
        row_by_row_seconds=best["row by row"],
        padded_seconds=best["padded batch"],
        our_seconds=best["ours"],
        row_by_row_ratio=round(best["row by row"] / best["ours"], 2),
        padded_ratio=round(best["padded batch"] / best["ours"], 2),
        all_seconds=seconds,
    )


def print_figures(figures: Sequence[Figure], console: Console) -> None:
    table = Table(title="generating a sample of turns on the CPU, float32: the same tokens")
    table.add_column("", no_wrap=True)
    for heading in ("row by row (s)", "padded (s)", "ours (s)", "ratios"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        table.add_row(
            figure.setting,
            f"{figure.row_by_row_seconds:.2f}",
            f"{figure.padded_seconds:.2f}",
            f"{figure.our_seconds:.2f}",
            f"{figure.row_by_row_ratio:.1f}x, {figure.padded_ratio:.1f}x",
        )
    console.print(table)
    console.print(
        f"goals for one catalogue: {GOALS['generation, row by row']:g}x and {GOALS['generation, padded batch']:g}x"
    )
    for figure in figures:
        console.print(
            f"{figure.setting}: {figure.prompts} prompts of {figure.tokens:,} tokens, {figure.distinct_tokens:,} of "
            f"them distinct; {figure.layers} layers of {figure.hidden}, vocabulary {figure.vocabulary:,}",
            highlight=False,
        )


def plot(figures: Sequence[Figure], path: Path) -> None:
    """Draw the seconds of a measurement."""
    groups = [
        Bars(
            figure.setting,
            {
                "row by row": figure.row_by_row_seconds,
                "padded batch": figure.padded_seconds,
                "deepfabric-trainer": figure.our_seconds,
            },
            {"deepfabric-trainer": f"{figure.row_by_row_ratio:.1f}x and {figure.padded_ratio:.1f}x"},
        )
        for figure in figures
    ]
    draw_bars(path, groups, f"seconds for {figures[0].prompts} prompts", "{:.2f}")


def _common(one: list[int], other: list[int]) -> int:
    """Return how many tokens two prompts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


if __name__ == "__main__":
    main()
