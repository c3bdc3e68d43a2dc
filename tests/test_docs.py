import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from deepfabric_trainer.validate import Rule
from docs import make_template_table
from tests.fixtures.tiny import call, tiny_model, tiny_tokenizer, tool_rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_readmes_code_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    for name in ("train", "eval"):
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, tool_rows())))
    tokenizer = tiny_tokenizer()
    names: dict[str, Any] = {"model": tiny_model(tokenizer), "tokenizer": tokenizer, "rows": tool_rows()}
    for block in blocks:
        on_cpu = block.replace('SFTConfig("runs/plain", ', 'SFTConfig("runs/plain", use_cpu=True, report_to="none", ')
        exec(on_cpu.replace('output_dir="runs/first"', 'output_dir="runs/first", report_to="none"'), names)
    best = names["trainer"]
    assert best.train_dataset is not None
    assert (tmp_path / "runs" / "first").is_dir()


def run_only_block(page: str, config: str, options: str) -> dict[str, Any]:
    """Run the code of a page, with more options behind the beginning of its config; return its names."""
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    tokenizer = tiny_tokenizer()
    names = {"model": tiny_model(tokenizer), "tokenizer": tokenizer, "rows": tool_rows(), "Dataset": Dataset}
    assert config in block
    exec(block.replace(config, config + options), names)
    return names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_code_on_the_page_of_batches_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = run_only_block(page, '("runs/own", ', 'use_cpu=True, report_to="none", ')
    assert names["trainer"].state.global_step == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_code_on_the_page_of_generation_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = run_only_block(page, '"runs/measured",', ' use_cpu=True, bf16=False, report_to="none",')
    assert [result.step for result in names["generation"].results] == [0, 2]
    metrics = {key for result in names["generation"].results for key in result.metrics}
    for name in re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE))):
        assert any(key.endswith(name) for key in metrics), f"the page names the metric {name}"


def test_the_code_on_the_page_of_tool_calls_gives_what_it_says() -> None:
    page = (ROOT / "docs" / "tool-calls.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "tools": tool_rows()[0]["tools"]}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(block, names)
    assert names["parsed"].tool_calls == [call("get_weather", city="Rome")]
    assert names["score"].exact_match == 1
    assert names["summary"]["exact_match_low"] == pytest.approx(0.2065, abs=1e-4)
    assert names["summary"]["overall_score"] == pytest.approx(1.0)
    assert (names["table"].tools[0].right, names["table"].confusions) == (1, [])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_code_on_the_page_of_logging_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run_only_block(page, '("runs/logged", ', "use_cpu=True, ")
    for name in ("metrics", "events"):
        lines = (tmp_path / "runs" / "logged" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        fields = {field for line in lines for field in json.loads(line)}
        assert {field for field in fields if f"`{field}`" not in page} == set()


def test_the_readmes_row_is_a_good_row() -> None:
    from deepfabric_trainer import validate_dataset

    (block,) = re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL)
    assert validate_dataset([json.loads(block)]).findings == []


def test_paths_that_the_documents_name_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for path in re.findall(r"(?:deepfabric_trainer|examples|callbacks|collators)/[\w/.-]+", text):
            assert (ROOT / path.rstrip(".")).exists(), f"{document} names {path}"
        for link in re.findall(r"\]\((docs/[\w/.-]+)", text):
            assert (ROOT / link).exists(), f"{document} links to {link}"


def test_the_table_of_templates_is_what_the_encoder_does() -> None:
    page = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")
    assert make_template_table.trl_section() in page


def test_the_table_of_real_tokenizers_is_what_the_encoder_does(assets: Path) -> None:
    page = (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")
    assert page.endswith(make_template_table.real_section(assets))


def test_a_reason_without_words_is_no_silent_cell() -> None:
    with pytest.raises(ValueError, match="add them to _SHORT"):
        make_template_table.cell({"rejected": "something new"}, [])


def test_the_page_of_rules_lists_every_rule_with_its_meaning() -> None:
    page = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)` \| .* \| (.*) \|$", page, flags=re.MULTILINE) == [
        (rule.value, rule.meaning) for rule in Rule
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_code_on_the_page_of_resuming_begins_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "resume.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    options = 'use_cpu=True, bf16=False, report_to="none", '
    run_only_block(page, '("runs/long", ', options)
    names = run_only_block(page.replace("max_steps=2", "max_steps=3"), '("runs/long", ', options)
    assert [entry["step"] for entry in names["trainer"].state.log_history][-1] == 3
    assert [event["kind"] for event in json.loads(Path("runs/long/metrics.json").read_text())["events"]] == ["resumed"]
