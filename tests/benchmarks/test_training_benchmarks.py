"""The benchmarks that train, on so few tokens that nobody wins: what they compare is the same, and what they write."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import epoch, first_step, memory, train_step
from benchmarks.catalogue import make_rows, make_tools
from benchmarks.report import machine
from benchmarks.training import SAME_LOSS

_TINY_STEP = ("--tools", "2", "--batch", "4", "--layers", "1", "--hidden", "32")


def _result(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert set(machine()) < set(result)
    assert not {"output", "plot"} & set(result)
    return result


@pytest.mark.slow
def test_steps_of_both_have_the_same_examples_and_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, plot = tmp_path / "train_step.json", tmp_path / "train_step.png"
    tiny = (*_TINY_STEP, "--large-hidden", "32", "--large-vocabulary", "3000", "--words", "30", "--repeats", "1")
    train_step.main([*tiny, "--output", str(output), "--plot", str(plot)])
    assert "nothing shared" in capsys.readouterr().out
    assert plot.exists()
    result = _result(output)
    assert (result["benchmark"], result["batch"]) == ("train_step", 4)
    figures = {figure["setting"].removeprefix("step, "): figure for figure in result["figures"]}
    large, small, nothing = (figures[name] for name in ("Qwen's vocabulary", "small vocabulary", "nothing shared"))
    for figure in figures.values():
        assert figure["same_examples"]
        assert figure["loss_difference"] <= SAME_LOSS
        assert figure["our_losses"] == pytest.approx(figure["trl_losses"], rel=SAME_LOSS)
        assert figure["trl_seconds"] == min(figure["trl_all_seconds"])
        assert figure["ratio"] == pytest.approx(figure["trl_seconds"] / figure["our_seconds"], rel=0.1)
    assert (large["vocabulary"], len(large["our_losses"]), len(small["our_losses"])) == (3000, 1, 2)
    assert small["computed_share"] < 0.6
    assert small["packed_seconds"] > 0
    assert (nothing["computed_share"], nothing["trained_tokens"]) == (1, nothing["tokens"])


@pytest.mark.slow
@pytest.mark.parametrize("from_file", [True, False])
def test_an_epoch_trains_each_example_once(
    from_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plot, data = tmp_path / "epoch.json", tmp_path / "epoch.png", tmp_path / "rows.jsonl"
    tiny = ["--layers", "1", "--hidden", "32", "--batch", "2"]
    if from_file:
        good = make_rows(4, catalogue=make_tools(2), tools_per_row=2)
        broken = {"messages": [{"role": "user", "content": "Nobody answers."}], "tools": None}
        data.write_text("\n".join(map(json.dumps, [*good, broken])), encoding="utf-8")
        epoch.main([*tiny, "--data", str(data), "--output", str(output), "--plot", str(plot)])
    else:
        epoch.main([*tiny, "--rows", "4", "--output", str(output), "--plot", str(plot)])
    assert plot.exists()
    result = _result(output)
    (figure,) = result["figures"]
    assert ("rows.jsonl" if from_file else "rows made here") in " ".join(capsys.readouterr().out.split())
    assert result["data"] == ("rows.jsonl" if from_file else None)
    assert (figure["rows"], figure["dropped"], figure["examples"]) == ((5, 1, 4) if from_file else (4, 0, 4))
    assert figure["steps"] == 2
    assert figure["computed_tokens"] <= figure["tokens"] <= figure["padded_tokens"]
    assert figure["our_loss"] == pytest.approx(figure["trl_loss"], rel=0.05)


@pytest.mark.slow
def test_memory_of_a_step_is_less_where_rows_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plot = tmp_path / "memory.json", tmp_path / "memory.png"
    alone = memory._measure_alone
    in_processes: list[str] = []

    def measure_once_alone(who: str, *arguments: Any) -> memory.Peak:
        if in_processes:
            return memory._measure_here(who, *arguments)
        in_processes.append(who)
        return alone(who, *arguments)

    monkeypatch.setattr(memory, "_measure_alone", measure_once_alone)
    memory.main([*_TINY_STEP, "--output", str(output), "--plot", str(plot)])
    assert "passes of" in capsys.readouterr().out
    assert plot.exists()
    figures = _result(output)["figures"]
    assert [figure["checkpointing"] for figure in figures] == [True, False]
    for figure in figures:
        assert figure["loss_difference"] <= SAME_LOSS
        assert figure["ours"]["losses"] == pytest.approx(figure["trl"]["losses"], rel=SAME_LOSS)
        assert figure["ours"]["tokens"] == figure["trl"]["tokens"]
        assert figure["ours"]["laid_out_tokens"] < figure["trl"]["laid_out_tokens"]
        assert figure["ours_with_budget"]["budget"] < figure["ours"]["tokens"]
        assert figure["trl"]["peak_mib"] > 0


@pytest.mark.slow
def test_the_first_step_comes_before_all_rows_are_encoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, plot = tmp_path / "first_step.json", tmp_path / "first_step.png"
    tiny = ("--rows", "64", "--trl-rows", "8", "--tools", "2", "--catalogue", "6", "--workers", "0")
    first_step.main([*tiny, "--output", str(output), "--plot", str(plot)])
    assert "calculated" in capsys.readouterr().out
    assert plot.exists()
    (figure,) = _result(output)["figures"]
    assert (figure["rows"], figure["trl_rows"]) == (64, 8)
    assert 0 < figure["constructor_seconds"] <= figure["our_seconds"] <= figure["step_seconds"]
    assert figure["file_mib"] > 0


def test_rows_of_a_file_are_a_block_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    monkeypatch.setattr(first_step, "_BLOCK", 3)
    path = tmp_path / "rows.arrow"
    first_step.write_rows(path, 7, tools=2, catalogue=4)
    rows = Dataset.from_file(str(path))
    assert len(rows) == 7
    assert rows[6] == rows[0] != rows[1]
    assert isinstance(rows[0]["tools"], str)
