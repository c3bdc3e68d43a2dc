"""The tables of docs/benchmarks.md: one for the figures of each benchmark."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Json = dict[str, Any]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns, but for the first, are aligned to the right."""
    lines = [f"| {' | '.join(headings)} |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _prepare(figures: Sequence[Json]) -> str:
    return f"{_prepare_table(figures)}\n{_differences(figures)}\n"


def _differences(figures: Sequence[Json]) -> str:
    """Say which tokens only one of the two trains."""
    sentences = []
    for who, key in (("TRL", "only_trl_trains"), ("Ours", "only_we_train")):
        counts = [
            (repr(token), count / figure["rows"]) for figure in figures[:1] for token, count in figure[key].items()
        ]
        what = ", ".join(f"`{token}` {count:g} times" for token, count in counts)
        sentences.append(f"{who} alone trains, a row, {what}." if what else f"{who} alone trains nothing.")
    reason = (
        "What TRL's labels have more is the line end behind each stop token, and an empty reasoning block where the "
        "template writes one that the prompt of inference does not have."
    )
    return "\n".join([*sentences, reason] if any(figure["only_trl_trains"] for figure in figures) else sentences)


def _prepare_table(figures: Sequence[Json]) -> str:
    headings = (
        "a row lists",
        "rows",
        "tokens a row",
        "TRL, rows/s",
        "ours, rows/s",
        "ratio",
        "same ids",
        "same labels",
    )
    return table(
        headings,
        [
            (
                figure["rows_of"],
                f"{figure['rows']:,}",
                f"{figure['tokens']:,.0f}",
                f"{figure['trl_rows_per_second']:,.1f}",
                f"{figure['our_rows_per_second']:,.1f}",
                f"{figure['ratio']:.1f}x",
                f"{figure['same_ids']:,}",
                f"{figure['same_labels']:,}",
            )
            for figure in figures
        ],
    )


def _train_step(figures: Sequence[Json]) -> str:
    figures_of_steps = table(
        ("", "model", "tokens", "computed", "TRL, s", "TRL packed, s", "ours, s", "ratio", "by CPU time", "losses"),
        [
            (
                figure["setting"].removeprefix("step, "),
                f"{figure['layers']} x {figure['hidden']}, {figure['vocabulary']:,}",
                f"{figure['batch']} x {figure['tokens']:,.0f}, {figure['trained_tokens']:,.0f} trained",
                f"{figure['computed_share']:.0%}",
                f"{figure['trl_seconds']:.2f}",
                "" if figure["packed_seconds"] is None else f"{figure['packed_seconds']:.2f}",
                f"{figure['our_seconds']:.2f}",
                f"{figure['ratio']:.2f}x",
                f"{figure['cpu_ratio']:.2f}x",
                f"{figure['loss_difference']:.0e}",
            )
            for figure in figures
        ],
    )
    notes = "Model: layers x width, vocabulary. Computed: of the tokens, those that ours sends through the model. "
    return f"{figures_of_steps}\n{notes}Losses:\nthe largest difference between the two curves, relative.\n"


def _epoch(figures: Sequence[Json]) -> str:
    rows: list[tuple[str, ...]] = []
    notes = []
    for figure in figures:
        for who, name, tokens in (("trl", "TRL", "padded_tokens"), ("our", "ours", "computed_tokens")):
            ratio = "" if who == "trl" else f"{figure['ratio']:.2f}x"
            seconds, loss = f"{figure[f'{who}_seconds']:.1f}", f"{figure[f'{who}_loss']:.3f}"
            rows.append((name, seconds, f"{figure[tokens]:,}", f"{figure['steps']}", loss, ratio))
        notes.append(
            f"{figure['rows']} rows ({figure['rows_of']}), {figure['dropped']} left out; {figure['examples']} "
            f"examples, {figure['tokens']:,} tokens, batches of {figure['batch']};\n{figure['layers']} layers of "
            f"{figure['hidden']}, a vocabulary of {figure['vocabulary']:,}. By the processor's time "
            f"{figure['cpu_ratio']:.2f}x.\n"
        )
    return table(("", "seconds", "tokens computed", "steps", "loss at the end", "ratio"), rows) + "\n" + "".join(notes)


def _memory(figures: Sequence[Json]) -> str:
    rows: list[tuple[str, ...]] = []
    for figure in figures:
        kind = "on" if figure["checkpointing"] else "off"
        budget = f"ours, `max_tokens_per_batch={figure['ours_with_budget']['budget']}`"
        for name, who, ratio in (("TRL", "trl", 1.0), ("ours", "ours", figure["ratio"])):
            rows.append((kind, name, f"{figure[who]['peak_mib']:,.0f}", f"{ratio:.2f}x"))
        peak = figure["ours_with_budget"]["peak_mib"]
        rows.append((kind, budget, f"{peak:,.0f}", f"{figure['ratio_with_budget']:.2f}x"))
    return table(("gradient checkpointing", "", "peak, MiB", "of TRL's"), rows)


def _first_step(figures: Sequence[Json]) -> str:
    return table(
        ("rows", "file", "ours: constructed", "first batch", "first step", "TRL: constructed, calculated"),
        [
            (
                f"{figure['rows']:,}",
                f"{figure['file_mib']:,.0f} MiB",
                f"{figure['constructor_seconds']:.1f} s",
                f"{figure['our_seconds']:.1f} s",
                f"{figure['step_seconds']:.1f} s",
                f"{figure['trl_calculated_seconds']:,.0f} s, from {figure['trl_measured_seconds']:.1f} s for "
                f"{figure['trl_rows']:,} rows",
            )
            for figure in figures
        ],
    )


def _validate(figures: Sequence[Json]) -> str:
    return table(
        ("a row lists", "rows", "CPU seconds", "rows/s"),
        [
            (
                figure["rows_of"],
                f"{figure['rows']:,}",
                f"{figure['cpu_seconds']:.1f}",
                f"{figure['rows_per_second']:,.0f}",
            )
            for figure in figures
        ],
    )


def _generation(figures: Sequence[Json]) -> str:
    return table(
        ("", "model", "prompts", "distinct tokens", "row by row, s", "padded batch, s", "ours, s", "ratios"),
        [
            (
                figure["setting"],
                f"{figure['layers']} x {figure['hidden']}, {figure['vocabulary']:,}",
                f"{figure['prompts']}, {figure['tokens']:,} tokens",
                f"{figure['distinct_tokens']:,}",
                f"{figure['row_by_row_seconds']:.2f}",
                f"{figure['padded_seconds']:.2f}",
                f"{figure['our_seconds']:.2f}",
                f"{figure['row_by_row_ratio']:.1f}x, {figure['padded_ratio']:.1f}x",
            )
            for figure in figures
        ],
    )


def _callbacks(figures: Sequence[Json]) -> str:
    rows: list[tuple[str, ...]] = []
    notes = []
    for figure in figures:
        taken, once = figure["milliseconds"], figure["once_seconds"]
        rows += [(name, f"{taken[name]:.2f}", f"{once[name]:.2f}") for name in taken]
        rows.append(("all", f"{sum(taken.values()):.2f}", f"{sum(once.values()):.2f}"))
        without, with_all = figure["seconds_without"], figure["seconds_with"]
        notes.append(
            f"That is {figure['share']:.2%} of {figure['steps']} steps of {figure['batch']} x {figure['tokens']:,.0f} "
            f"tokens, {figure['layers']} layers of {figure['hidden']}.\n"
            f"By the clock a step takes {without:.3f} s without callbacks and {with_all:.3f} s with them.\n"
        )
    return table(("", "a step, ms", "once, s"), rows) + "\n" + "".join(notes)


TABLES: dict[str, Callable[[Sequence[Json]], str]] = {
    "prepare": _prepare,
    "train_step": _train_step,
    "epoch": _epoch,
    "memory": _memory,
    "first_step": _first_step,
    "validate": _validate,
    "generation": _generation,
    "callbacks": _callbacks,
}
"""By the name of the benchmark."""
