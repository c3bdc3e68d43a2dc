import logging
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deepfabric_trainer.callbacks._sinks.background_sender import BackgroundSender, Pace
from deepfabric_trainer.callbacks._sinks.deepfabric_endpoint import Endpoint, Outcome, Verdict
from deepfabric_trainer.callbacks._sinks.spool import Message, Spool
from tests.fixtures.failing_server import failing_server, hang, hang_up, status

KEY = "df-secret-0123456789"
QUICK = Pace(gather=0.02, timeout=0.5, first_pause=0.02, longest_pause=0.1, stop=2.0)


def metrics(*numbers: int) -> list[Message]:
    return [Message("metrics", {"message_id": str(number), "n": number}) for number in numbers]


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


@pytest.fixture
def spool_path(tmp_path: Path) -> Path:
    return tmp_path / "spool.jsonl"


@pytest.fixture
def make(spool_path: Path) -> Iterator[Callable[..., BackgroundSender]]:
    made: list[BackgroundSender] = []

    def make(url: str, pace: Pace = QUICK) -> BackgroundSender:
        endpoint = Endpoint(url, KEY)
        made.append(BackgroundSender(endpoint.post, Spool(spool_path, endpoint.base), pace))
        return made[-1]

    yield make
    for sender in made:
        sender.stop()


def sent(server: Any) -> list[int]:
    return [message["n"] for message in server.messages()]


def test_sends_everything_once_and_in_order(make, spool_path: Path) -> None:
    with failing_server() as server:
        sender = make(server.url)
        sender.put(Message("runs", {"n": 0}))
        for message in metrics(*range(1, 250)):
            sender.put(message)
        sender.put(Message("runs", {"n": 250}))
        sender.stop()
    assert sent(server) == list(range(251))
    assert len(server.taken) < 10
    assert not spool_path.exists()
    assert not any(thread.name == "deepfabric-sender" for thread in threading.enumerate())


@pytest.mark.parametrize("failure", [status(500), status(503), status(429), hang_up, hang(0.7)])
def test_tries_again_until_the_server_is_back(make, spool_path: Path, failure) -> None:
    with failing_server(failure, failure, failure) as server:
        sender = make(server.url)
        for message in metrics(1, 2):
            sender.put(message)
        wait_until(lambda: len(server.requests) >= 2)
        sender.put(*metrics(3))
        wait_until(lambda: len(server.messages()) == 3)
        sender.stop()
    assert sent(server) == [1, 2, 3]
    assert not spool_path.exists()


def test_honours_retry_after(make) -> None:
    with failing_server(status(429, Retry_After="0.4")) as server:
        begun = time.monotonic()
        make(server.url).put(*metrics(1))
        wait_until(lambda: bool(server.messages()))
    assert time.monotonic() - begun >= 0.4


def test_waits_longer_each_time_up_to_a_limit(make) -> None:
    with failing_server(*[status(500)] * 6) as server:
        pace = Pace(gather=0, first_pause=0.1, longest_pause=0.4)
        sender = BackgroundSender(Endpoint(server.url, KEY).post, Spool(Path("unused"), ""), pace)
    pauses = [[sender._pause(failures, None) for _ in range(50)] for failures in (1, 2, 3, 9)]
    assert [max(pause) <= limit for pause, limit in zip(pauses, (0.1, 0.2, 0.4, 0.4), strict=True)] == [True] * 4
    assert [min(pause) >= limit for pause, limit in zip(pauses, (0.05, 0.1, 0.2, 0.2), strict=True)] == [True] * 4
    assert len(set(pauses[0])) > 40


def test_what_is_refused_is_not_sent_again_and_holds_up_nothing(make, spool_path: Path, caplog) -> None:
    with failing_server(status(422), status(422)) as server:  # the batch, then the first of it alone
        sender = make(server.url)
        for message in metrics(1, 2, 3):
            sender.put(message)
        sender.stop()
    assert sent(server) == [2, 3]
    assert sender.lost == 1
    assert not spool_path.exists()
    assert [record.message for record in caplog.records] == [
        "the DeepFabric server refuses a message (HTTP status 422); it is not sent again"
    ]


def test_a_wrong_key_ends_the_sending_and_keeps_the_messages(make, spool_path: Path, caplog) -> None:
    with failing_server(status(401)) as server:
        sender = make(server.url)
        sender.put(*metrics(1))
        wait_until(spool_path.exists)
        sender.put(*metrics(2))
        sender.stop()
        assert len(server.requests) == 1
        assert "check the key" in caplog.text
        again = make(server.url)
        again.put(*metrics(3))
        again.stop()
    assert sent(server) == [1, 2, 3]


def test_the_next_run_sends_what_the_last_could_not(make, spool_path: Path) -> None:
    with failing_server() as server:
        url, port = server.url, server.port
    sender = make(url)
    for message in metrics(1, 2, 3):
        sender.put(message)
    begun = time.monotonic()
    sender.stop()
    assert time.monotonic() - begun < 10
    assert len(spool_path.read_text().splitlines()) == 3
    with failing_server(port=port) as server:
        sender = make(url)
        sender.put(*metrics(4))
        sender.stop()
    assert sent(server) == [1, 2, 3, 4]
    assert not spool_path.exists()


def test_a_server_that_hangs_holds_up_nobody(make, spool_path: Path) -> None:
    with failing_server(hang(1.5)) as server:
        sender = make(server.url, Pace(gather=0.0, timeout=10, stop=0.2))
        begun = time.perf_counter()
        for message in metrics(*range(20)):
            sender.put(message)
        assert time.perf_counter() - begun < 1
        wait_until(lambda: bool(server.requests))
        begun = time.perf_counter()
        sender.stop()
        assert time.perf_counter() - begun < 1.3
        waiting = Spool(spool_path, server.url).head(99)
        assert [message.body["n"] for message in waiting] == list(range(20))
        time.sleep(1.5)  # the thread that hung finds that it was given up
        assert Spool(spool_path, server.url).head(99) == waiting


def test_the_oldest_go_to_disk_when_memory_is_full(make, spool_path: Path) -> None:
    with failing_server(hang(0.6)) as server:
        sender = make(server.url, Pace(gather=0.0, timeout=10, capacity=10, batch=4, stop=5))
        sender.put(*metrics(0))
        wait_until(lambda: bool(server.requests))
        for message in metrics(*range(1, 31)):
            sender.put(message)
        assert len(sender._queue) <= 10
        assert sender.spooled >= 20
        wait_until(lambda: len(server.messages()) >= 30)
        sender.stop()
    assert sent(server)[-30:] == list(range(1, 31))


def test_the_order_holds_when_a_message_fails_after_younger_ones_went_to_disk(make) -> None:
    with failing_server(hang(0.3), status(500)) as server:
        sender = make(server.url, Pace(gather=0.0, timeout=0.2, first_pause=0.05, capacity=10, stop=5))
        sender.put(*metrics(0))
        wait_until(lambda: bool(server.requests))
        for message in metrics(*range(1, 31)):
            sender.put(message)
        wait_until(lambda: len(server.messages()) >= 31)
        sender.stop()
    assert sent(server) == list(range(31))


def test_takes_more_after_it_was_stopped(make) -> None:
    with failing_server() as server:
        sender = make(server.url)
        sender.put(*metrics(1))
        sender.stop()
        sender.put(*metrics(2))
        sender.stop()
    assert sent(server) == [1, 2]


def test_a_disk_that_takes_nothing_is_named_once(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "spool.jsonl", "x")
    sender = BackgroundSender(lambda *_: Outcome(Verdict.RETRY, "down"), spool, QUICK)
    for message in metrics(1, 2, 3):
        sender.put(message)
    wait_until(lambda: sender.lost + len(sender._queue) == 3)
    sender.stop()
    assert sender.lost == 3
    assert sum("the disk does not take them" in record.message for record in caplog.records) == 1


def test_a_forked_process_sends_nothing_and_ends(make) -> None:
    with failing_server() as server:
        sender = make(server.url)
        sender.put(*metrics(1))
        child = multiprocessing.get_context("fork").Process(target=lambda: (sender.put(*metrics(2)), sender.stop()))
        child.start()
        child.join(10)
        assert child.exitcode == 0
        sender.stop()
    assert sent(server) == [1]


def test_the_key_is_written_nowhere(make, spool_path: Path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    with failing_server(status(500), status(401)) as server:
        sender = make(server.url)
        sender.put(*metrics(1))
        wait_until(lambda: len(server.requests) == 2)
        sender.stop()
    assert KEY not in caplog.text + spool_path.read_text() + repr(vars(sender))


@pytest.mark.slow
def test_a_process_that_crashes_sends_what_it_had_gathered(tmp_path: Path) -> None:
    code = """
import sys
import time
from deepfabric_trainer.callbacks._sinks.background_sender import BackgroundSender, Pace
from deepfabric_trainer.callbacks._sinks.deepfabric_endpoint import Endpoint
from deepfabric_trainer.callbacks._sinks.spool import Message, Spool
key, url, spool = sys.argv[1:]
sender = BackgroundSender(Endpoint(url, key).post, Spool(spool, url), Pace(gather=600))
for number in range(3):
    sender.put(Message("metrics", {"n": number}))
    while not sender.sent:  # the first goes at once, the others gather
        time.sleep(0.01)
raise RuntimeError("out of memory")
"""
    with failing_server() as server:
        command = [sys.executable, "-c", code, KEY, server.url, str(tmp_path / "spool.jsonl")]
        done = subprocess.run(command, capture_output=True, text=True)
    assert "out of memory" in done.stderr
    assert sent(server) == [0, 1, 2]
