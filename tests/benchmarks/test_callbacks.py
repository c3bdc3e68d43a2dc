import json
from pathlib import Path

import pytest

from benchmarks import callbacks
from benchmarks.report import machine
from docs.benchmark_tables import TABLES

_TINY = ("--words", "20", "--batch", "2", "--steps", "12", "--repeats", "1", "--layers", "1", "--hidden", "32")


@pytest.mark.slow
def test_time_is_taken_inside_every_callback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, plot = tmp_path / "callbacks.json", tmp_path / "callbacks.png"
    callbacks.main([*_TINY, "--output", str(output), "--plot", str(plot)])
    assert "early stopping" in capsys.readouterr().out
    assert plot.exists()
    result = json.loads(output.read_text(encoding="utf-8"))
    assert set(machine()) < set(result)
    (figure,) = result["figures"]
    names = {"health", "early stopping", "logger", "progress", "report"}
    assert set(figure["milliseconds"]) == set(figure["once_seconds"]) == names
    assert min(figure["milliseconds"].values()) > 0
    assert figure["steps"] == len(figure["all_seconds_with"]) == len(figure["all_seconds_without"]) == 11
    share = sum(figure["milliseconds"].values()) / 1000 / sum(figure["all_seconds_with"])
    assert figure["share"] == pytest.approx(figure["steps"] * share, rel=0.01)
    assert f"{figure['share']:.2%} of 11 steps" in TABLES["callbacks"](result["figures"])


def test_what_comes_once_is_counted_apart() -> None:
    watch = callbacks._Stopwatch()
    step, end = watch.timed("one", lambda: None), watch.timed("one", lambda: None, is_end=True)
    step()
    assert (watch.once["one"] > 0, watch.in_steps["one"]) == (True, 0)
    once = watch.once["one"]
    watch.on_step_end(None, None, None)
    step()
    assert (watch.once["one"], watch.in_steps["one"] > 0) == (once, True)
    end()
    assert watch.once["one"] > once
