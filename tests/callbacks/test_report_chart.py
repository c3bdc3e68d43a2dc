import math

import pytest

from deepfabric_trainer.callbacks._report.chart import (
    MOST_BUCKETS,
    MOST_ROWS,
    Line,
    Mark,
    draw,
    nice_ticks,
    short,
    thinned,
)


def test_a_line_in_its_place():
    chart = draw(
        "Share",
        [Line("exact", [(0, 0.0), (50, 1.0)], low=[0.0, 0.5], high=[0.5, 1.0], dotted=True)],
        last_step=100,
        share=True,
    )
    assert chart.lines[0].path == "M0.00 98.11L50.00 3.77"
    assert chart.lines[0].band == "M0.00 50.94L50.00 3.77L50.00 50.94L0.00 98.11Z"
    assert [title for _, _, title in chart.lines[0].dots] == ["exact 0 at step 0", "exact 1 at step 50"]
    assert [tick.label for tick in chart.x_ticks] == ["0", "25", "50", "75", "100"]
    assert chart.rows == [["0", "0 (0–0.5)"], ["50", "1 (0.5–1)"]]
    assert chart.description == "exact: 0 at step 0, 1 at step 50, between 0 and 1."


@pytest.mark.parametrize(("last_step", "labels"), [(2, ["0", "1", "2"]), (1, ["0", "1"]), (10, ["0", "5", "10"])])
def test_a_step_is_a_whole_number(last_step, labels):
    chart = draw("Loss", [Line("loss", [(1, 2.0)])], last_step=last_step)
    assert [tick.label for tick in chart.x_ticks] == labels


def test_nothing_to_draw():
    assert draw("Loss", [Line("loss", []), Line("other", [(1, math.nan)])], last_step=10) is None


def test_values_that_are_not_finite_are_marked():
    chart = draw("Loss", [Line("loss", [(0, 2.0), (5, math.nan), (10, 1.0)])], last_step=10)
    assert chart.lines[0].broken == [(50.0, "NaN")]
    assert chart.lines[0].path.count("L") == 1


def test_a_spike_survives_thinning():
    points = [(step, 1.0) for step in range(100_000)]
    points[54_321] = (54_321, 99.0)
    kept = thinned(points)
    assert (54_321, 99.0) in kept
    assert len(kept) <= 2 * MOST_BUCKETS + 2
    assert kept == sorted(kept)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]


def test_the_table_of_a_long_line():
    chart = draw("Loss", [Line("loss", [(step, 1.0) for step in range(1000)])], last_step=999)
    assert len(chart.rows) == MOST_ROWS
    assert chart.left_out == 1000 - MOST_ROWS
    assert (chart.rows[0][0], chart.rows[-1][0]) == ("0", "999")


def test_a_wide_range_is_logarithmic_where_it_may_be():
    line = Line("loss", [(0, 0.01), (10, 1000.0)])
    assert draw("Loss", [line], last_step=10, may_be_log=True).notes == ["The axis is logarithmic."]
    assert draw("Loss", [line], last_step=10).notes == []


def test_marks():
    chart = draw("Loss", [Line("loss", [(0, 1.0), (10, 2.0)])], last_step=10, marks=[Mark(5, "!", "spike")])
    assert [at for at, _ in chart.marks] == [50.0]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e300])
def test_a_constant(value):
    chart = draw("x", [Line("x", [(1, value), (2, value)])], last_step=2, may_be_log=True)
    assert chart.lines[0].path


def test_ticks_and_numbers():
    assert nice_ticks(0, 1, 4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert nice_ticks(3, 3, 4) == [3]
    shown = [short(value) for value in (0.25, 2.4e-5, 13_200, 2_500_000, -math.inf, math.nan)]
    assert shown == ["0.25", "2.4e-05", "13.2k", "2.5M", "-∞", "NaN"]
