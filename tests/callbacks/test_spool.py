from pathlib import Path

import pytest

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
