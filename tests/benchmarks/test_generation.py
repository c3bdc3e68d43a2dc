import json
from pathlib import Path

import pytest

from benchmarks import generation
from benchmarks.report import machine
from deepfabric_trainer.generate.prefix_tree import build_prefix_tree
from docs.benchmark_tables import TABLES

_TINY = ("--prompts", "8", "--shared", "100", "--new-tokens", "3", "--layers", "1", "--hidden", "32")


def test_all_three_generate_the_same_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, plot = tmp_path / "generation.json", tmp_path / "generation.png"
    generation.main([*_TINY, "--output", str(output), "--plot", str(plot)])
    assert "four catalogues" in capsys.readouterr().out
    assert plot.exists()
    result = json.loads(output.read_text(encoding="utf-8"))
    assert set(machine()) < set(result)
    one, four = result["figures"]
    assert one["tokens"] == four["tokens"]
    assert one["distinct_tokens"] == one["tokens"] - 7 * 100
    assert four["distinct_tokens"] == four["tokens"] - 7 * 20 - 4 * 80
    for figure in result["figures"]:
        assert figure["our_seconds"] == min(figure["all_seconds"]["ours"])
        ratio = figure["padded_seconds"] / figure["our_seconds"]
        assert figure["padded_ratio"] == pytest.approx(ratio, abs=0.01)
        assert figure["setting"] in TABLES["generation"](result["figures"])


def test_prompts_share_what_the_setting_says() -> None:
    for setting, nodes in (("one catalogue", 1), ("four catalogues", 4)):
        prompts = generation.make_prompts(16, 1000, 4096)[setting]
        tree = build_prefix_tree(prompts)
        assert len(set(tree.nodes)) == nodes
        assert {node.length for node in tree.nodes if node} == {1000}


def test_other_tokens_are_an_error(monkeypatch: pytest.MonkeyPatch, tiny_model: object) -> None:
    monkeypatch.setattr(generation, "generate_with_shared_prefix", lambda *args, **options: [[1, 2, 3]])
    with pytest.raises(RuntimeError, match="do not generate the same tokens"):
        generation.measure("one", tiny_model, [[1, 2, 3] * 9], 3, 1)


def test_a_single_prompt_shares_nothing(tiny_model: object) -> None:
    assert generation.measure("one", tiny_model, [[1, 2, 3] * 9], 1, 1).distinct_tokens == 27
