"""Write docs/benchmarks.md: the latest figures of the benchmarks, from benchmarks/results.

python -m docs.make_benchmarks_page [--check]

`make bench` measures and then writes the page. How each figure is measured is said by the benchmark's own docstring.
"""

import argparse
import ast
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import GOALS
from docs.benchmark_tables import TABLES, table

Json = dict[str, Any]
Results = Mapping[str, Json]

PATH = Path(__file__).with_name("benchmarks.md")
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TITLES = {
    "prepare": "Preparing rows",
    "train_step": "A training step",
    "epoch": "An epoch",
    "memory": "Memory of a training step",
    "first_step": "From the start to the first step",
    "validate": "Validating rows",
    "generation": "Generating a sample of turns",
    "callbacks": "What callbacks add to a step",
}
"""The benchmarks in the page's order; a result's file has the name of its benchmark."""
_HEAD = """\
# Benchmarks

Made by `make bench` from `benchmarks/results`; the tests compare page and results. Each benchmark measures TRL's
`SFTTrainer` and this library in one run, on the same rows, on a CPU, with random models that are small enough for it.
What counts is the ratio between the two; the seconds are those of one machine.
"""
_LIMITS = """\
- **Preparation varies from run to run**, ours by a third on this machine: each run takes but two seconds. The figures
  are the best of five; the same code came to 7.7x on 20 of 200 tools in a run with three.
- **Rows that share nothing gain nothing.** They are computed as TRL computes them, with some more bookkeeping.
- **The head.** TRL scores every position on a CPU, and trained ones only on GPUs with Triton; ours takes the trained
  ones everywhere. So what the large vocabulary adds here is a CPU's gain. And the models here have few and narrow
  layers, in which the head weighs more than in real ones: these lie between the two vocabularies.
- **GPUs.** Nothing here was measured on one. There TRL's packing has FlashAttention, which computes no pair of tokens
  in vain; on a CPU it computes them all.
- **Models of other kinds.** With linear attention, state spaces or prompt tuning nothing can be shared, and batches
  are padded as TRL's ([which models](batches.md#which-models)).
- **Memory** is that of activations and gradients. A large model's weights and optimizer states are as large as ever.
- **`preparation="lazy"`** encodes each row again in every epoch; while the data loader's workers keep up with the
  model, nobody waits for it. TRL's time for the whole dataset is calculated from few rows.
- **Validation** is time that TRL does not spend at all.
"""


@dataclass(frozen=True)
class Goal:
    """What was to be reached, and what was.

    Args:
        work (`str`): What was done.
        goal (`str`): In words.
        measured (`str`): In the same unit.
        reached (`bool`): Whether it is as good.
    """

    work: str
    goal: str
    measured: str
    reached: bool


def page(results: Results) -> str:
    """Return the page for results by the name of their benchmark."""
    goals = list(_goals(results))
    summary = table(
        ("work", "goal", "measured", "reached"),
        [(goal.work, goal.goal, goal.measured, "yes" if goal.reached else "**no**") for goal in goals],
    )
    missed = [f"- {goal.work}: {goal.measured}; {goal.goal} was the goal.\n" for goal in goals if not goal.reached]
    parts = [_HEAD, summary] if goals else [_HEAD]
    if results:
        parts.append(_machines(results))
    parts += [_section(name, results[name]) for name in TITLES if name in results]
    parts.append("## Where it is not faster\n\n" + "".join(missed) + _LIMITS)
    return "\n".join(parts)


def load_results(folder: Path) -> dict[str, Json]:
    """Return the results in a folder by the name of their benchmark."""
    files = {name: folder / f"{name}.json" for name in TITLES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}


def _goals(results: Results) -> Iterable[Goal]:
    for figure in _figures(results, "prepare"):
        kind = "one catalogue" if figure["rows_of"].startswith("one") else "own tools"
        yield _ratio(f"preparation, a row lists {figure['rows_of']}", GOALS[f"prepare, {kind}"], figure["ratio"])
    for figure in _figures(results, "train_step"):
        yield _ratio(f"training {figure['setting']}", figure["goal"], figure["ratio"])
    for figure in _figures(results, "epoch"):
        yield _ratio(f"epoch over {figure['rows_of']}", figure["goal"], figure["ratio"])
    for figure in _figures(results, "memory"):
        kind = "with" if figure["checkpointing"] else "without"
        goal, ratio = figure["goal"], figure["ratio"]
        work = f"peak memory of a step, {kind} gradient checkpointing"
        yield Goal(work, f"{goal:g}x or less", f"{ratio:.2f}x", ratio <= goal)
    for figure in _figures(results, "first_step"):
        goal, seconds = figure["goal"], figure["our_seconds"]
        work = f"start to first batch, {figure['rows']:,} rows"
        yield Goal(work, f"under {goal:g} s", f"{seconds:.1f} s", seconds < goal)
    for figure in _figures(results, "generation")[:1]:
        for way, key in (("row by row", "row_by_row_ratio"), ("padded batch", "padded_ratio")):
            yield _ratio(f"generation, against {way}", GOALS[f"generation, {way}"], figure[key])
    for figure in _figures(results, "callbacks"):
        goal, share = figure["goal"], figure["share"]
        yield Goal("callbacks, of a step", f"under {goal:.0%}", f"{share:.2%}", share < goal)


def _ratio(work: str, goal: float, ratio: float) -> Goal:
    return Goal(work, f"{goal:g}x", f"{ratio:.1f}x" if ratio >= 1.1 else f"{ratio:.2f}x", ratio >= goal)


def _figures(results: Results, name: str) -> list[Json]:
    return results[name]["figures"] if name in results else []


def _machines(results: Results) -> str:
    """Return what the figures were taken on; a benchmark that ran elsewhere, or before, has a line of its own."""
    by_machine: dict[str, list[str]] = {}
    for name in TITLES:
        if name in results:
            by_machine.setdefault(_machine(results[name]), []).append(f"`{name}`")
    if len(by_machine) == 1:
        return f"Measured on {next(iter(by_machine))}.\n"
    return "Measured on\n\n" + "".join(f"- {', '.join(names)}: {words}\n" for words, names in by_machine.items())


def _machine(result: Json) -> str:
    parts = [f"{result['cpus']} cores of {result['cpu']}"] if "cpu" in result else []
    parts += [f"{result['memory_gib']:g} GiB of memory"] if "memory_gib" in result else []
    parts.append(f"Python {result['python']}")
    versions = result.get("versions", {})
    parts += [f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "datasets") if name in versions]
    return ", ".join(parts) + (f"; {result['date']}" if "date" in result else "")


def _section(name: str, result: Json) -> str:
    parts = [f"## {TITLES[name]}\n", _docstring(name), TABLES[name](result["figures"])]
    if "load_average" in result:
        parts.append(f"Load of the machine when it was done: {result['load_average'][0]:.1f}.\n")
    if (Path(__file__).parent / "benchmarks" / f"{name}.png").exists():
        parts.append(f"![{TITLES[name]}](benchmarks/{name}.png)\n")
    return "\n".join(parts)


def _docstring(name: str) -> str:
    """Return how a benchmark measures, in its own words, without importing what it measures."""
    source = (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    if docstring is None:
        raise ValueError(f"benchmarks/{name}.py does not say how it measures")
    return docstring.strip() + "\n"


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page differs")
    arguments = parser.parse_args()
    old = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    new = page(load_results(BENCHMARKS / "results"))
    if new == old:
        return 0
    print(f"{'differs' if arguments.check else 'written'}: {PATH.name}")
    if not arguments.check:
        PATH.write_text(new, encoding="utf-8")
    return int(arguments.check)


if __name__ == "__main__":
    sys.exit(main())
