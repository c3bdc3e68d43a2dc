"""Where the lines, ticks and marks of a chart go; a template draws them as SVG.

Everything is in per cent of the plot, so that the drawing stretches to any screen while its letters keep their size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from statistics import fmean

MOST_BUCKETS = 250
"""Of a long line the lowest and highest value of so many stretches are drawn: no spike is lost."""
MOST_ROWS = 40
"""Rows of the table behind a chart."""
_SMOOTHED_FROM = 120
"""Points from which a line of means is drawn over a noisy one."""
_SMOOTH_BUCKETS = 50
_LOG_RANGE = 200.0
"""Times the smallest value the largest may be on a linear axis, where the quantity allows a logarithmic one."""

Point = tuple[int, float]


@dataclass(frozen=True)
class Line:
    """A metric over the steps.

    Args:
        label (`str`): What it is.
        points (`Sequence[tuple[int, float]]`): Steps and values, ascending; NaN where there is none.
        low (`Sequence[float]`): Lower bounds of the points, or nothing.
        high (`Sequence[float]`): Upper bounds.
        dotted (`bool`): Whether each point is a mark of its own, such as an evaluation.
    """

    label: str
    points: Sequence[Point]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dotted: bool = False


@dataclass(frozen=True)
class Mark:
    """Something at a step.

    Args:
        step (`int`): When.
        label (`str`): One character or a word that is shown.
        title (`str`): The whole of it.
    """

    step: int
    label: str
    title: str


@dataclass(frozen=True)
class Tick:
    """A label on an axis, at so many per cent from the left or from the top."""

    at: float
    label: str


@dataclass(frozen=True)
class DrawnLine:
    """A line in its place."""

    label: str
    last: str
    path: str
    faint: str
    band: str
    dots: list[tuple[float, float, str]]
    broken: list[tuple[float, str]]
    """Where values are not finite: per cent from the left, and what stands there."""


@dataclass(frozen=True)
class Chart:
    """A chart in its place, its table, and its description in words."""

    title: str
    description: str
    lines: list[DrawnLine]
    y_ticks: list[Tick]
    x_ticks: list[Tick]
    marks: list[tuple[float, Mark]]
    columns: list[str]
    rows: list[list[str]]
    left_out: int
    notes: list[str] = field(default_factory=list)


def draw(
    title: str,
    lines: Sequence[Line],
    *,
    last_step: int,
    marks: Sequence[Mark] = (),
    share: bool = False,
    may_be_log: bool = False,
    from_zero: bool = False,
) -> Chart | None:
    """Put a chart together.

    Args:
        title (`str`): Its heading.
        lines (`Sequence[Line]`): What to draw; lines without points are left out.
        last_step (`int`): Where the axis ends.
        marks (`Sequence[Mark]`, *optional*): What to mark on it.
        share (`bool`): Whether the values are shares, on an axis from 0 to 1.
        may_be_log (`bool`): Whether a wide range may be drawn on a logarithmic axis.
        from_zero (`bool`): Whether the axis begins at 0 at the latest.

    Returns:
        `Chart`: `None` when no line has a finite value.
    """
    lines = [line for line in lines if any(math.isfinite(value) for _, value in line.points)]
    if not lines:
        return None
    end = max([last_step, 1, *(line.points[-1][0] for line in lines)])
    finite = [value for line in lines for value in _values(line) if math.isfinite(value)]
    axis = _Axis.of_share() if share else _Axis.of([0.0, *finite] if from_zero else finite, may_be_log)
    columns, rows, left_out = _table(lines)
    return Chart(
        title=title,
        description=". ".join(_in_words(line) for line in lines) + ".",
        lines=[_drawn(line, axis, end) for line in lines],
        y_ticks=[Tick(axis.place(value), short(value)) for value in axis.ticks],
        x_ticks=[
            Tick(100 * step / end, f"{int(step):,}")
            for step in nice_ticks(0, end, 4)
            if step <= end and step == int(step)  # there is no half a step
        ],
        marks=[(100 * min(mark.step, end) / end, mark) for mark in marks],
        columns=columns,
        rows=rows,
        left_out=left_out,
        notes=["The axis is logarithmic."] if axis.log else [],
    )


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: list[float]
    log: bool = False

    @classmethod
    def of_share(cls) -> "_Axis":
        return cls(-0.02, 1.04, [0.0, 0.25, 0.5, 0.75, 1.0])

    @classmethod
    def of(cls, values: Sequence[float], may_be_log: bool) -> "_Axis":
        low, high = min(values), max(values)
        if may_be_log and low > 0 and high > _LOG_RANGE * low:
            exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            step = max(1, math.ceil(len(exponents) / 5))
            ticks = [10.0**exponent for exponent in exponents if exponent % step == 0]
            return cls(low / 1.3, high * 1.5, [tick for tick in ticks if low / 1.3 <= tick <= high * 1.5], True)
        low = 0.0 if 0 <= low < 0.5 * high else low
        spread = (high - low) or abs(high) or 1.0
        ticks = nice_ticks(low, high + 0.04 * spread, 4)
        return cls(low - 0.03 * spread, max(high + 0.08 * spread, ticks[-1]), ticks)

    def place(self, value: float) -> float:
        """Return how many per cent from the top a value stands."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return round(100 * (1 - (value - low) / (high - low)), 2)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about so many round numbers between two, both ends included where they are round."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)] or [low]


def short(value: float) -> str:
    """Return a number in few characters: `0.25`, `2.4e-05`, `13.2k`."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}" if abs(value) < 1e12 else f"{value:.2e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}"


def thinned(points: Sequence[Point], buckets: int = MOST_BUCKETS) -> list[Point]:
    """Return the lowest and the highest point of each of so many stretches, in their order; all of a short line."""
    if len(points) <= 2 * buckets:
        return list(points)
    kept = [points[0]]
    for start, stop in _stretches(len(points), buckets):
        stretch = points[start:stop]
        kept += sorted({min(stretch, key=itemgetter(1)), max(stretch, key=itemgetter(1))})
    return [*kept, points[-1]]


def _stretches(length: int, count: int) -> list[tuple[int, int]]:
    bounds = [length * index // count for index in range(count + 1)]
    return [(start, stop) for start, stop in pairwise(bounds) if stop > start]


def _values(line: Line) -> list[float]:
    return [*(value for _, value in line.points), *line.low, *line.high]


def _drawn(line: Line, axis: _Axis, end: int) -> DrawnLine:
    finite = [point for point in line.points if math.isfinite(point[1])]
    broken = [(round(100 * step / end, 2), short(value)) for step, value in line.points if not math.isfinite(value)]
    path = _path(thinned(finite), axis, end)
    smoothed = not line.dotted and len(finite) >= _SMOOTHED_FROM
    dotted = len(finite) == 1 or (line.dotted and len(finite) <= MOST_BUCKETS)
    dots = [
        (round(100 * step / end, 2), axis.place(value), f"{line.label} {short(value)} at step {step:,}")
        for step, value in (finite if dotted else ())
    ]
    return DrawnLine(
        label=line.label,
        last=short(line.points[-1][1]),
        path=_path(_means(finite), axis, end) if smoothed else path,
        faint=path if smoothed else "",
        band=_band(line, axis, end),
        dots=dots,
        broken=broken[:MOST_BUCKETS],
    )


def _path(points: Sequence[Point], axis: _Axis, end: int) -> str:
    return "M" + "L".join(f"{100 * step / end:.2f} {axis.place(value):.2f}" for step, value in points)


def _means(points: Sequence[Point]) -> list[Point]:
    stretches = [points[start:stop] for start, stop in _stretches(len(points), _SMOOTH_BUCKETS)]
    middle = [(stretch[len(stretch) // 2][0], fmean(value for _, value in stretch)) for stretch in stretches]
    return [(points[0][0], middle[0][1]), *middle, (points[-1][0], middle[-1][1])]


def _band(line: Line, axis: _Axis, end: int) -> str:
    if not line.low or len(line.points) < 2:
        return ""
    steps = [step for step, _ in line.points]
    upper = _path(list(zip(steps, line.high, strict=True)), axis, end)
    lower = _path(list(zip(reversed(steps), reversed(line.low), strict=True)), axis, end)
    return f"{upper}L{lower[1:]}Z"


def _in_words(line: Line) -> str:
    finite = [point for point in line.points if math.isfinite(point[1])]
    (first_step, first), (last_step, last) = finite[0], finite[-1]
    if len(finite) == 1:
        return f"{line.label}: {short(first)} at step {first_step:,}"
    low, high = min(value for _, value in finite), max(value for _, value in finite)
    return (
        f"{line.label}: {short(first)} at step {first_step:,}, {short(last)} at step {last_step:,}, "
        f"between {short(low)} and {short(high)}"
    )


def _table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]], int]:
    at_step = [{step: at for at, (step, _) in enumerate(line.points)} for line in lines]
    steps = sorted({step for known in at_step for step in known})
    count = min(len(steps), MOST_ROWS)
    shown = [steps[index * (len(steps) - 1) // max(1, count - 1)] for index in range(count)]
    rows = [
        [f"{step:,}", *(_cell(line, known.get(step)) for line, known in zip(lines, at_step, strict=True))]
        for step in shown
    ]
    return ["step", *(line.label for line in lines)], rows, len(steps) - count


def _cell(line: Line, at: int | None) -> str:
    if at is None:
        return ""
    value = short(line.points[at][1])
    return f"{value} ({short(line.low[at])}–{short(line.high[at])})" if line.low else value
