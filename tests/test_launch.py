import pytest

from deepfabric_trainer.launch import asked_processes, missing_cpu_processes


@pytest.mark.parametrize(
    ("command", "count"),
    [
        ("python accelerate launch --num_processes 2 --cpu script.py", 2),
        ("python accelerate launch --num-processes=3 --cpu script.py", 3),
        ("python accelerate launch --num_processes 1 --cpu script.py", None),
        ("python accelerate launch --cpu script.py", None),
        ("bash script.sh --num_processes 2", None),
        ("python accelerate launch --num_processes", None),
        ("python accelerate launch --cpu script.py --num_processes 4", None),
    ],
)
def test_the_wish_is_read_from_accelerates_command_line(command: str, count: int | None) -> None:
    assert asked_processes(command.split()) == count


def test_nothing_is_missing_in_a_process_that_accelerate_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert missing_cpu_processes() is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert missing_cpu_processes() is None, "the parent is no `accelerate launch`"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert missing_cpu_processes() is None
