from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepfabric_trainer.callbacks._sinks import spool as spool_module
from deepfabric_trainer.callbacks._sinks.spool import Message, Spool

SERVER = "https://a.example"


def messages(*numbers: int) -> list[Message]:
    return [Message("metrics", {"n": number}) for number in numbers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "spool.jsonl"


def test_keeps_messages_in_their_order(path: Path) -> None:
    spool = Spool(path, SERVER)
    assert len(spool) == 0
    spool.append(messages(3, 4))
    spool.prepend(messages(1, 2))
    spool.append(messages(5))
    assert spool.head(3) == messages(1, 2, 3)
    spool.drop(2)
    assert (len(spool), spool.head(9)) == (3, messages(3, 4, 5))
    assert Spool(path, SERVER).head(9) == messages(3, 4, 5)


def test_leaves_no_file_behind(path: Path) -> None:
    spool = Spool(path, SERVER)
    spool.prepend(messages(1))
    spool.drop(1)
    assert list(path.parent.iterdir()) == []


def test_leaves_messages_for_another_server_alone(path: Path) -> None:
    other = Spool(path, "https://b.example")
    other.append(messages(1))
    spool = Spool(path, SERVER)
    assert len(spool) == 0
    spool.append(messages(2, 3))
    spool.drop(2)
    assert Spool(path, "https://b.example").head(9) == messages(1)


def test_goes_on_behind_a_line_that_was_cut_off(path: Path) -> None:
    Spool(path, SERVER).append(messages(1))
    with open(path, "a") as file:
        file.write('{"server": "https://a.exam')
    spool = Spool(path, SERVER)
    spool.append(messages(2))
    assert spool.head(9) == messages(1, 2)


def test_grows_no_larger_than_it_may(path: Path) -> None:
    spool = Spool(path, SERVER, most_bytes=300)
    for number in range(4):
        spool.append(messages(number))
    for _ in range(3):
        with pytest.raises(OSError, match=r"spool\.jsonl has 0 MiB, and grows no further"):
            spool.append(messages(4))
    assert 200 < path.stat().st_size <= 300
    with pytest.raises(OSError, match="grows no further"):
        spool.prepend(messages(-1))
    assert spool.head(1) == messages(0)
    spool.drop(4)
    spool.append(messages(7))
    assert spool.head(9) == messages(7)


def test_dropping_reads_and_writes_a_large_file_only_a_few_times(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_SMALL", 0)
    other, spool = Spool(path, "https://b.example"), Spool(path, SERVER)
    other.append(messages(1))
    spool.append(messages(*range(1000)))
    parsed, written = [0], [0]
    parse, rewrite = spool._message, spool._rewrite

    def count(counter: list[int], call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            counter[0] += 1
            return call(*args)

        return counted

    monkeypatch.setattr(spool, "_message", count(parsed, parse))
    monkeypatch.setattr(spool, "_rewrite", count(written, rewrite))
    for start in range(0, 1000, 10):
        assert spool.head(10) == messages(*range(start, start + 10))
        spool.drop(10)
    assert len(spool) == 0
    assert parsed[0] < 10_000
    assert written[0] < 15
    assert other.head(9) == messages(1)


def test_tidied_it_holds_what_waits_and_no_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_SMALL", 0)
    spool = Spool(path, SERVER)
    spool.append(messages(*range(10)))
    spool.drop(2)
    assert Spool(path, SERVER).head(1) == messages(0), "a kill sends it again"
    spool.prepend(messages(-1))
    assert Spool(path, SERVER).head(99) == messages(-1, *range(2, 10))
    spool.drop(2)
    spool.tidy()
    assert Spool(path, SERVER).head(99) == messages(*range(3, 10))
