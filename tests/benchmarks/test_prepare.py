import json
from pathlib import Path

import pytest

from benchmarks.prepare import main
from benchmarks.prepare_memory import measure_memory


@pytest.mark.slow
def test_it_compares_with_trl_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "prepare.json"
    main(["--rows", "4", "--tools", "3", "--catalogue", "6", "--repeats", "1", "--output", str(output)])
    assert "3 of 6" in " ".join(capsys.readouterr().out.split())
    result = json.loads(output.read_text(encoding="utf-8"))
    assert (result["benchmark"], result["rows"]) == ("prepare", 4)
    assert [figure["rows_of"] for figure in result["figures"]] == ["one catalogue of 3", "3 of 6"]
    for figure in result["figures"]:
        assert figure["same_ids"] == 4
        assert not figure["only_we_train"]
        # The template's empty reasoning block is what inference shows, and the newline comes after the stop token.
        assert set(figure["only_trl_trains"]) <= {"<think>", "</think>", "\n", "\n\n"}
        assert figure["trl_rows_per_second"] > 0
        assert figure["our_rows_per_second"] > 0


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    memory = measure_memory(20, tools=3, catalogue=6)
    assert memory.rows == 20
    assert 0 < memory.peak_own_mib <= memory.peak_mib
    assert memory.prepared_mib > 0
