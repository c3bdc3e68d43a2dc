"""What the benchmarks do with their figures: the goals, the JSON with the machine, and the plots."""

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

GOALS = {
    "prepare, one catalogue": 10.0,
    "prepare, own tools": 8.0,
    "step, Qwen's vocabulary": 10.0,
    "step, small vocabulary": 6.0,
    "step, nothing shared": 0.95,
    "epoch": 2.5,
    "memory": 0.4,
    "first step": 5.0,
    "generation, row by row": 6.0,
    "generation, padded batch": 4.0,
    "callbacks": 0.01,
}
"""Ratios of TRL's seconds to ours; for memory of our peak to TRL's; for the first step our seconds; for generation of
the seconds of `generate` to ours; for callbacks their share of a step."""
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "pyarrow", "numpy")
_COLORS = {"TRL": "tab:gray", "TRL, packed": "silver", "deepfabric-trainer": "tab:blue"}
_OTHER_COLORS = ("tab:cyan", "tab:olive")


@dataclass(frozen=True)
class Bars:
    """The bars of one thing that was measured.

    Args:
        label (`str`): What was measured.
        values (`dict[str, float]`): By who was measured, `"TRL"` or `"deepfabric-trainer"`, say.
        notes (`dict[str, str]`): What stands behind a bar, besides its value.
    """

    label: str
    values: dict[str, float]
    notes: dict[str, str]


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where figures go."""
    parser.add_argument("--output", type=Path, help="also write the figures as JSON to this file")
    parser.add_argument("--plot", type=Path, help="also draw them to this file (needs matplotlib)")


def write_result(
    path: Path, benchmark: str, options: argparse.Namespace, figures: Sequence[Mapping[str, Any]]
) -> None:
    """Write figures as JSON, with the options and the machine that they were taken with.

    Args:
        path (`Path`): The file.
        benchmark (`str`): Its name.
        options (`argparse.Namespace`): Of the command line; of paths, the name of the file or folder is kept.
        figures (`Sequence[Mapping[str, Any]]`): What was measured.
    """
    settings = {
        name: value.name if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in ("output", "plot")
    }
    result = {"benchmark": benchmark, **settings, **machine(), "figures": [dict(figure) for figure in figures]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return what figures depend on: the versions, the processor, the memory, and what else was running."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def draw_bars(path: Path, groups: Sequence[Bars], xlabel: str, value_format: str = "{:.1f}") -> None:
    """Draw horizontal bars, a group for each thing that was measured, on a scale of its own.

    Args:
        path (`Path`): A PNG file, say.
        groups (`Sequence[Bars]`): From top to bottom.
        xlabel (`str`): What the values are, with the unit.
        value_format (`str`, *optional*, defaults to `"{:.1f}"`): How a value is written behind its bar.
    """
    import matplotlib  # only who draws needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    others = iter(_OTHER_COLORS)
    names = list(dict.fromkeys(name for group in groups for name in group.values))
    colors = {name: _COLORS.get(name) or next(others) for name in names}
    heights = [len(group.values) for group in groups]
    chart, rows = pyplot.subplots(
        len(groups),
        squeeze=False,
        figsize=(7, 0.9 + sum(0.42 + 0.3 * height for height in heights)),
        height_ratios=[height + 0.8 for height in heights],
        layout="constrained",
        facecolor="white",
    )
    for group, axes in zip(groups, rows[:, 0], strict=True):
        for place, (name, value) in enumerate(group.values.items()):
            bar = axes.barh(place, value, height=0.8, color=colors[name])
            note = group.notes.get(name)
            words = value_format.format(value) + (f"  ({note})" if note else "")
            axes.bar_label(bar, [words], padding=3, fontsize=9)
        axes.set_yticks(range(len(group.values)), list(group.values), fontsize=9)
        axes.set_title(group.label, loc="left", fontsize=10)
        axes.invert_yaxis()
        axes.margins(x=0.45)
        axes.set_xlim(left=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    chart.get_layout_engine().set(w_pad=0.1)
    rows[-1, 0].set_xlabel(xlabel, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=110)
    pyplot.close(chart)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # only Linux has it
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
