import json
from pathlib import Path

import pytest

from tests.fixtures.conversations import STYLES
from tests.fixtures.templates import ALL, frozen_clock, recorded_templates
from tests.golden import make_encodings, make_trl_labels


@recorded_templates
@pytest.mark.parametrize("name", ALL)
def test_encodings_are_as_recorded(name: str) -> None:
    recorded = json.loads(make_encodings.path_of(name).read_text(encoding="utf-8"))
    with frozen_clock():
        assert make_encodings.encoding_of(name) == recorded
    assert list(recorded) == list(STYLES)


@recorded_templates
def test_no_encoding_is_recorded_of_a_template_that_is_gone() -> None:
    assert sorted(path.stem for path in make_encodings.FOLDER.iterdir()) == ALL


@recorded_templates
@pytest.mark.parametrize("name", make_trl_labels.TRAINING)
def test_labels_differ_from_trls_for_the_recorded_reasons_only(name: str) -> None:
    recorded = json.loads(make_trl_labels.PATH.read_text(encoding="utf-8"))
    with frozen_clock():
        assert make_trl_labels.differences(name) == recorded[name]


def test_a_difference_without_a_reason_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_trl_labels, "_trained_by_trl", lambda example, *_: [1] * len(example.labels))
    with pytest.raises(AssertionError, match="no reason is known"):
        make_trl_labels.differences("qwen3_training")


@pytest.mark.parametrize("module", [make_encodings, make_trl_labels])
def test_the_scripts_write_nothing_when_they_check(
    module: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["make", "--check"])
    monkeypatch.setattr(make_encodings, "FOLDER", tmp_path)
    monkeypatch.setattr(make_encodings, "ALL", ["qwen3"])
    monkeypatch.setattr(make_trl_labels, "PATH", tmp_path / "labels.json")
    monkeypatch.setattr(make_trl_labels, "TRAINING", ["qwen3_training"])
    assert module.main() == 1  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out.startswith("differs: ")
    monkeypatch.setattr("sys.argv", ["make"])
    module.main()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir())
