"""How fast `validate_dataset` goes over tool-calling rows, without a tokenizer, in one process.

Run `python -m benchmarks.validate`. Two sets of rows are made from a seed: in one each row draws its tools from a
large catalogue, so that hardly two rows list the same; in the other all rows list the same tools, each row in an order
of its own. The rows are made before the clock starts, and every row owns its objects, as rows read from a file do.
"""

import argparse
import gc
import json
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.validate import validate_dataset

Json = dict[str, Any]

_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo", "lima")


@dataclass(frozen=True)
class Figure:
    """What one set of rows took.

    Args:
        rows_of (`str`): The set.
        rows (`int`): Rows that were validated.
        catalogue (`int`): Tools that they draw from.
        calls (`int`): Calls whose arguments were judged.
        seconds (`float`): Of the clock, for all rows.
        cpu_seconds (`float`): Of the processor, for all rows.
        reading_cpu_seconds (`float`): Of the processor, for `normalize_row` alone over the same rows.
        rows_per_second (`float`): By the processor's time.
        findings (`int`): As many as rows were broken on purpose.
    """

    rows_of: str
    rows: int
    catalogue: int
    calls: int
    seconds: float
    cpu_seconds: float
    reading_cpu_seconds: float
    rows_per_second: float
    findings: int


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validate", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000, help="rows of each set (default: 10000)")
    parser.add_argument("--tools", type=int, default=20, help="tools of a row (default: 20)")
    parser.add_argument("--catalogue", type=int, default=200, help="tools of the large catalogue (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="makes the rows (default: 0)")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON to this file")
    options = parser.parse_args(argv)

    figures = []
    for size in (options.catalogue, options.tools):
        rows = make_rows(options.rows, options.tools, size, random.Random(options.seed))
        figures.append(measure(f"{options.tools} tools of {size}", rows, size))
    print_figures(figures, Console())
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        settings = {key: value for key, value in vars(options).items() if key != "output"}
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        result = {"benchmark": "validate", **settings, **machine, "figures": [asdict(figure) for figure in figures]}
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(rows_of: str, rows: list[Json], catalogue: int) -> Figure:
    gc.collect()
    reading, _ = _cpu_seconds(lambda: _read(rows))
    gc.collect()
    started = time.perf_counter()
    seconds, report = _cpu_seconds(lambda: validate_dataset(rows))
    return Figure(
        rows_of=rows_of,
        rows=len(rows),
        catalogue=catalogue,
        calls=sum(len(message.get("tool_calls", ())) for row in rows for message in row["messages"]),
        seconds=round(time.perf_counter() - started, 3),
        cpu_seconds=round(seconds, 3),
        reading_cpu_seconds=round(reading, 3),
        rows_per_second=round(len(rows) / seconds, 1),
        findings=len(report.findings),
    )


def print_figures(figures: Sequence[Figure], console: Console) -> None:
    table = Table(title="validate_dataset, no tokenizer, one process")
    table.add_column("a row lists", no_wrap=True)
    for heading in ("rows", "clock (s)", "cpu (s)", "reading (s)", "rows/s", "findings"):
        table.add_column(heading, justify="right")
    for figure in figures:
        table.add_row(
            figure.rows_of,
            f"{figure.rows:,}",
            f"{figure.seconds:.2f}",
            f"{figure.cpu_seconds:.2f}",
            f"{figure.reading_cpu_seconds:.2f}",
            f"{figure.rows_per_second:,.0f}",
            f"{figure.findings:,}",
        )
    console.print(table, "reading: `normalize_row` alone over the same rows; rows/s: by the cpu's time", sep="\n")


def make_rows(count: int, tools: int, catalogue: int, rng: random.Random) -> list[Json]:
    """Return rows of two exchanges with calls and results; every hundredth has one wrong argument."""
    catalogue_texts = [json.dumps(_tool(number, rng)) for number in range(catalogue)]
    rows = []
    for number in range(count):
        listed = [json.loads(text) for text in rng.sample(catalogue_texts, tools)]
        messages: list[Json] = [{"role": "system", "content": "Answer with the help of the tools."}]
        for exchange in range(2):
            messages += _exchange(listed, f"{number}-{exchange}", rng)
        if number % 100 == 0:
            messages[2]["tool_calls"][0]["function"]["arguments"]["title"] = 7
        rows.append({"messages": messages, "tools": listed})
    return rows


def _exchange(tools: Sequence[Json], stem: str, rng: random.Random) -> list[Json]:
    calls: list[Json] = [
        {
            "id": f"call-{stem}-{number}",
            "type": "function",
            "function": {"name": tool["function"]["name"], "arguments": _value(tool["function"]["parameters"], rng)},
        }
        for number, tool in enumerate(rng.sample(tools, 2))
    ]
    results = [
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "name": call["function"]["name"],
            "content": json.dumps({"status": "ok", "items": [_words(rng, 3) for _ in range(4)]}),
        }
        for call in calls
    ]
    question = {"role": "user", "content": _words(rng, 20)}
    return [
        question,
        {"role": "assistant", "content": "", "tool_calls": calls},
        *results,
        {"role": "assistant", "content": _words(rng, 40)},
    ]


def _tool(number: int, rng: random.Random) -> Json:
    kinds: list[Callable[[], Json]] = [
        lambda: {"type": "string"},
        lambda: {"type": "integer", "minimum": 0},
        lambda: {"type": "number"},
        lambda: {"type": "boolean"},
        lambda: {"type": "string", "enum": list(rng.sample(_WORDS, 4))},
        lambda: {"type": "array", "items": {"type": "string"}},
        lambda: {"type": "object", "properties": {"key": {"type": "string"}, "on": {"type": "boolean"}}},
    ]
    properties = {"title": {"type": "string", "description": _words(rng, 6)}}
    for index in range(rng.randint(1, 6)):
        properties[f"{rng.choice(_WORDS)}_{index}"] = {**rng.choice(kinds)(), "description": _words(rng, 8)}
    required = ["title", *(name for name in properties if name != "title" and rng.random() < 0.5)]
    parameters = {"type": "object", "properties": properties, "required": required}
    name = f"{rng.choice(_WORDS)}_{rng.choice(_WORDS)}_{number}"
    return {
        "type": "function",
        "function": {"name": name, "description": _words(rng, 15), "parameters": parameters},
    }


def _value(schema: Json, rng: random.Random) -> Any:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema["type"]
    if kind == "object":
        wanted = [name for name in schema["properties"] if name in schema.get("required", ()) or rng.random() < 0.5]
        return {name: _value(schema["properties"][name], rng) for name in wanted}
    if kind == "array":
        return [_value(schema["items"], rng) for _ in range(3)]
    values = {"string": _words(rng, 3), "integer": rng.randint(0, 99), "number": rng.random(), "boolean": True}
    return values[kind]


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(_WORDS, k=count))


def _read(rows: list[Json]) -> None:
    for row in rows:
        normalize_row(row)


def _cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


if __name__ == "__main__":
    main()
