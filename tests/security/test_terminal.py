"""What strangers wrote reaches the terminal as text: no control sequences, no markup."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepfabric_trainer.cli import main
from tests.fixtures.tiny import tiny_tokenizer

HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]x[/]\r\x9b31m\u202e"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    function = {"name": f"tool{HOSTILE}", "description": HOSTILE, "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function", "function": {"name": f"other{HOSTILE}", "arguments": {HOSTILE: HOSTILE}}}
    row = {
        "messages": [
            {"role": "user", "content": HOSTILE},
            {"role": "assistant", "content": HOSTILE, "tool_calls": [call]},
            {"role": HOSTILE, "content": HOSTILE},
        ],
        "tools": [{"type": "function", "function": function}],
        HOSTILE: HOSTILE,
    }
    good = {**row, "messages": [*row["messages"][:1], {"role": "assistant", "content": HOSTILE}]}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (good, row)))
    return path


@pytest.mark.parametrize("command", ["check", "analyze", "preview"])
def test_a_command_shows_hostile_rows_as_text(command: str, rows: Path, tmp_path: Path, capsys: Any) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    main([command, str(rows), "--tokenizer", str(tmp_path / "tokenizer")])
    said = capsys.readouterr()
    shown = said.out + said.err
    assert "␛]0;owned" in shown
    assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e"} & set(shown)
    if "owned" in said.out:
        assert "[bold red]" in said.out
