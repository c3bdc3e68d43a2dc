import json
import resource
from pathlib import Path

import pytest

from deepfabric_trainer.callbacks._sinks.run_file import RunFile


def lines(run_id: str, *steps: int) -> list[bytes]:
    return [json.dumps({"run_id": run_id, "step": step}).encode() + b"\n" for step in steps]


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def test_a_new_run_gives_an_earlier_ones_file_its_name(path: Path) -> None:
    RunFile(path, "a").append(lines("a", 1, 2))
    new = RunFile(path, "b")
    assert new.set_aside() == "metrics.a.jsonl"
    new.append(lines("b", 1))
    assert (steps(path), steps(path.with_name("metrics.a.jsonl"))) == ([1], [1, 2])


def test_sets_aside_nothing_where_nothing_is(path: Path) -> None:
    assert RunFile(path, "a").set_aside() is None


def test_never_writes_over_a_file_that_was_set_aside(path: Path) -> None:
    for _ in range(3):
        path.write_bytes(b"somebody else's\n")
        RunFile(path, "a").set_aside()
    assert names(path) == ["metrics.unknown.2.jsonl", "metrics.unknown.3.jsonl", "metrics.unknown.jsonl"]


def test_a_run_whose_file_is_set_aside_meanwhile_goes_on_in_it(path: Path) -> None:
    first, second = RunFile(path, "a"), RunFile(path, "b")
    first.append(lines("a", 1))
    second.set_aside()
    second.append(lines("b", 1))
    first.append(lines("a", 2))
    second.append(lines("b", 2))
    assert (steps(path), steps(path.with_name("metrics.a.jsonl"))) == ([1, 2], [1, 2])


def test_a_line_that_a_full_disk_cuts_off_takes_no_other_with_it(path: Path) -> None:
    file, (first, second, third) = RunFile(path, "a"), lines("a", 1, 2, 3)
    file.append([first])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(first) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            file.append([second])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.append([third])
    assert path.read_bytes() == first + second[:5] + b"\n" + third


def test_a_file_that_took_nothing_at_first_is_still_its_own(path: Path) -> None:
    file = RunFile(path, "a")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            file.append(lines("a", 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.append(lines("a", 2))
    assert (names(path), steps(path)) == (["metrics.jsonl"], [2])


def test_does_not_write_into_a_file_that_it_has_not_begun(path: Path) -> None:
    RunFile(path, "a").append(lines("a", 1))
    RunFile(path, "b").append(lines("b", 9))
    assert (steps(path), steps(path.with_name("metrics.b.jsonl"))) == ([1], [9])


def test_begins_a_file_that_was_deleted_anew(path: Path) -> None:
    file = RunFile(path, "a")
    file.append(lines("a", 1))
    path.unlink()
    file.append(lines("a", 2))
    assert steps(path) == [2]


def test_a_resumed_run_moves_later_lines_aside_and_goes_on(path: Path) -> None:
    RunFile(path, "a").append(lines("a", 1, 2, 3, 4))
    resumed = RunFile(path, "b")
    assert resumed.go_on_from(2) == ("a", 2)
    resumed.append(lines("b", 3))
    assert steps(path) == [1, 2, 3]
    assert steps(path.with_name("metrics.superseded.jsonl")) == [3, 4]
    assert names(path) == ["metrics.jsonl", "metrics.superseded.jsonl"]
    assert RunFile(path, "c").go_on_from(2) == ("b", 1)
    assert steps(path.with_name("metrics.superseded.jsonl")) == [3, 4, 3]


def test_a_resumed_run_moves_a_line_that_was_cut_off_aside(path: Path) -> None:
    path.write_bytes(b"".join(lines("a", 1)) + b'{"run_id": "a", "st')
    resumed = RunFile(path, "b")
    assert resumed.go_on_from(5) == ("a", 1)
    resumed.append(lines("b", 6))
    assert steps(path) == [1, 6]
    assert path.with_name("metrics.superseded.jsonl").read_bytes() == b'{"run_id": "a", "st\n'


def test_a_resumed_run_without_a_file_begins_one(path: Path) -> None:
    file = RunFile(path, "a")
    assert file.go_on_from(3) == (None, 0)
    file.append(lines("a", 4))
    assert names(path) == ["metrics.jsonl"]
