import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepfabric_trainer import DeepFabricTrainer
from deepfabric_trainer.checkpoints import begin_checkpoint
from deepfabric_trainer.cli import main
from tests.fixtures.tiny import TOOLS, tiny_tokenizer, tool_rows


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, tool_rows())), encoding="utf-8")
    return path


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_check_passes_good_rows(rows_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(rows_file)]) == 0
    assert "All 8 rows can be trained on." in capsys.readouterr().out


def test_check_names_broken_rows_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "fly", "arguments": {}}]},
        ],
        "tools": TOOLS,
    }
    path = write(tmp_path / "rows.jsonl", [*tool_rows()[:1], broken, {"messages": []}])
    assert main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "row 1, messages[1].tool_calls[0].function.name: 'fly' is called" in out
    assert "row 2, messages: the conversation is empty" in out
    assert "to fix it:" in out
    assert "2 of 3 rows are broken." in out


def test_check_prints_as_many_findings_as_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [{"messages": []}] * 5)
    assert main(["check", str(path), "--most", "2"]) == 1
    out = capsys.readouterr().out
    assert out.count("the conversation is empty") == 2
    assert "and 3 more" in out


def test_check_lets_no_rule_hide_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unanswered = {"messages": [*tool_rows()[4]["messages"], {"role": "user", "content": "?"}]}
    path = write(tmp_path / "rows.jsonl", [*[unanswered] * 5, *[{"messages": []}] * 5])
    assert main(["check", str(path), "--most", "3"]) == 1
    out = capsys.readouterr().out
    errors, warnings = out.index("format (error): the row cannot be read"), out.index("unanswered-end (warning): ")
    assert errors < warnings
    assert "row 5, messages: the conversation is empty" in out
    assert "row 0, messages[2]: the conversation ends with a user message" in out
    assert "... and 4 more" in out
    assert "(--most 10 prints all)" in out
    assert "5 of 10 rows are broken, 5 more have warnings." in out


def test_check_says_once_what_mends_several_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(write(tmp_path / "rows.jsonl", [{"messages": []}] * 5))])
    assert capsys.readouterr().out.count("to fix it: ") == 1


def test_check_counts_the_rows_of_each_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = [{"name": "fly", "arguments": {}}] * 2
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    main(["check", str(write(tmp_path / "rows.jsonl", [{"messages": messages}] * 3)), "--most", "0"])
    captured = capsys.readouterr()
    assert [line.split() for line in captured.out.splitlines() if "undeclared" in line] == [
        ["undeclared-tool", "error", "3"]
    ]
    assert "to fix it" not in captured.out
    assert captured.err == ""


def test_check_passes_rows_with_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages = [*tool_rows()[4]["messages"], {"role": "user", "content": "?"}]
    assert main(["check", str(write(tmp_path / "rows.jsonl", [{"messages": messages}]))]) == 0
    assert "All 1 rows can be trained on, 1 with warnings." in capsys.readouterr().out


def test_check_writes_every_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = write(tmp_path / "rows.jsonl", [{"messages": []}] * 5), tmp_path / "new" / "findings.jsonl"
    assert main(["check", str(path), "--most", "1", "--output", str(output)]) == 1
    findings = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [(finding["row"], finding["rule"]) for finding in findings] == [(row, "format") for row in range(5)]
    assert f"wrote 5 findings to {output}" in capsys.readouterr().out


def test_check_says_where_it_cannot_write(rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(rows_file), "--output", str(tmp_path)]) == 2
    assert f"cannot write --output {tmp_path}" in capsys.readouterr().err


def test_check_prints_what_is_in_the_rows_and_not_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = {"name": "[bold]x[/bold]", "arguments": {}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    main(["check", str(write(tmp_path / "rows.jsonl", [{"messages": messages, "tools": TOOLS}]))])
    assert "'[bold]x[/bold]' is called" in capsys.readouterr().out


def test_check_with_a_tokenizer_finds_what_its_template_drops(
    tmp_path: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "dropping")
    assert main(["check", str(rows_file), "--tokenizer", str(tmp_path / "dropping")]) == 1
    assert "the chat template leaves out 'get_weather'" in capsys.readouterr().out


def test_preview_marks_trained_text_without_colour(
    rows_file: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", str(rows_file), "--tokenizer", str(tokenizer_folder), "--row", "1"]) == 0
    out = capsys.readouterr().out
    assert "⟦tool_name:get_weather⟧" in out
    assert '⟦tool_arguments:{"city": "Oslo", "days": 2}⟧' in out
    assert "⟦stop:<|im_end|>⟧" in out
    assert "untrained tokens ..." in out
    assert "trained (" in out


def test_preview_shows_colours_where_the_terminal_has_them(
    rows_file: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["preview", str(rows_file), "--tokenizer", str(tokenizer_folder), "--full"])
    out = capsys.readouterr().out
    assert "\x1b[1;33mget_weather\x1b[0m" in out
    assert "⟦" not in out
    assert "untrained tokens ..." not in out


WRONG: list[tuple[str, bytes | None, str]] = [
    ("rows.jsonl", None, "there is no file"),
    ("rows.jsonl", b"", "the file is empty"),
    ("rows.jsonl", b'{"messages": []}\n{"messages": [\n', "line 2: not JSON"),
    ("rows.jsonl", b'{"text": "a"}\n', "no row has `messages`, only `text`"),
    ("rows.parquet", None, "there is no file"),
    ("rows.parquet", b"PAR1 not at all", "not a Parquet file"),
    ("rows.json", b"[]", "the list of rows is empty"),
    ("rows.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    ("nowhere", None, "cannot load the dataset"),
]


@pytest.mark.parametrize(("name", "content", "words"), WRONG)
@pytest.mark.parametrize("command", ["check", "preview"])
def test_files_that_cannot_be_used_give_one_line_and_exit_code_2(
    tmp_path: Path,
    tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    content: bytes | None,
    words: str,
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    options = ["--tokenizer", str(tokenizer_folder)] if command == "preview" else []
    assert main([command, str(path), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.startswith("deepfabric-trainer: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--tokenizer", "{tmp}/nowhere"], "cannot load the tokenizer"), (["--row", "99"], "--row is 99")],
)
def test_other_wrong_options_give_one_line_and_exit_code_2(
    tmp_path: Path,
    rows_file: Path,
    tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    given = [option.format(tmp=tmp_path) for option in options]
    if "--tokenizer" not in given:
        given += ["--tokenizer", str(tokenizer_folder)]
    assert main(["preview", str(rows_file), *given]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1


@pytest.fixture
def model_folder(tmp_path: Path, make_tiny_model: Any) -> Path:
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_train_trains_from_a_yaml_file_and_saves_the_model(
    tmp_path: Path, rows_file: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "max_steps: 2\nreport_to: none\nuse_cpu: true\nbf16: false\neval_strategy: steps\neval_steps: 2\n"
    )
    code = main(
        [
            "train",
            "--config",
            str(config),
            "--dataset_name_or_path",
            str(rows_file),
            "--eval_dataset_name_or_path",
            str(rows_file),
            "--eval_generations",
            "2",
            "--max_new_tokens",
            "4",
            "--model_name_or_path",
            str(model_folder),
            "--output_dir",
            str(tmp_path / "out"),
        ]
    )
    assert code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "eval_tool_call_exact_match" in capsys.readouterr().out


def test_train_with_broken_rows_gives_the_reason_and_exit_code_2(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "?"}]}])
    options = ["--dataset_name_or_path", str(path), "--model_name_or_path", str(model_folder)]
    assert main(["train", *options, "--output_dir", str(tmp_path / "out"), "--use_cpu", "--bf16", "false"]) == 2
    assert "1 of 1 rows cannot be trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "no model is given"),
        (["--model_name_or_path", "{tmp}/nowhere"], "cannot load the model"),
        (["--config", "{tmp}/none.yaml"], "cannot read the settings"),
    ],
)
def test_train_with_wrong_options_gives_one_line_and_exit_code_2(
    tmp_path: Path, rows_file: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    given = [option.format(tmp=tmp_path) for option in options]
    base = ["--dataset_name_or_path", str(rows_file), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    assert main(["train", *base, "--bf16", "false", *given]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["preview", "--help"], ["train", "--help"]])
def test_every_command_explains_itself(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "deepfabric_trainer", *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "usage: deepfabric-trainer" in run.stdout


def test_analyze_prints_what_is_in_a_dataset(
    rows_file: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(rows_file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("8 rows, 21 messages")
    assert "tokens" not in out
    assert main(["analyze", str(rows_file), "--tokenizer", str(tokenizer_folder)]) == 0
    assert "in 8 examples" in capsys.readouterr().out


def test_analyze_prints_json(rows_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", str(rows_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calls_by_tool"] == {"get_weather": 7, "send_mail": 1}


@pytest.mark.slow
def test_train_that_is_interrupted_gives_130_and_goes_on_with_resume(
    tmp_path: Path,
    rows_file: Path,
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--dataset_name_or_path", str(rows_file), "--model_name_or_path", str(model_folder), "--use_cpu"]
    options += ["--output_dir", str(tmp_path / "out"), "--bf16", "false", "--report_to", "none", "--max_steps", "3"]
    step = DeepFabricTrainer.training_step

    def interrupted(self: Any, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    begin_checkpoint(tmp_path / "out" / "checkpoint-2")  # killed in its first save
    with monkeypatch.context() as patch:
        patch.setattr(DeepFabricTrainer, "training_step", interrupted)
        assert main(["train", *options, "--resume"]) == 130
    assert "deepfabric-trainer: SIGINT ended the training after step 1 of 3" in capsys.readouterr().err
    assert main(["train", *options, "--resume"]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["events"][-1]["kind"] == "resumed"
