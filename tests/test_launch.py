import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType

from deepfabric_trainer.launch import AskedProcesses, asked_processes, missing_cpu_processes, warn_of_launch

CONFIG = Path(__file__).parents[1] / "examples" / "accelerate" / "ddp_cpu.yaml"


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("python accelerate launch --num_processes 2 --cpu script.py", AskedProcesses(2)),
        ("python /bin/accelerate launch --num-processes=3 --cpu script.py", AskedProcesses(3)),
        ("python accelerate-launch --num_processes 2 --cpu script.py", AskedProcesses(2)),
        ("python accelerate/commands/launch.py --num_processes 2 --cpu script.py", AskedProcesses(2)),
        (f"python accelerate launch --config_file {CONFIG} script.py", AskedProcesses(2)),
        (f"python accelerate launch --config_file {CONFIG} --num_processes 4 script.py", AskedProcesses(4)),
        (
            "python accelerate launch --cpu --num_machines 2 --machine_rank 1 --num_processes 4 script.py",
            AskedProcesses(4, machines=2, machine=1),
        ),
        ("python accelerate launch --num_processes 1 --cpu script.py", None),
        ("python accelerate launch --cpu script.py", None),
        ("python accelerate env --num_processes 2", None),
        ("bash script.sh --num_processes 2", None),
        ("python accelerate launch --cpu script.py --num_processes 4", None),
        ("python accelerate launch --cpu -m package.module --num_processes 4", None),
    ],
)
def test_the_wish_is_read_from_accelerates_command(command: str, asked: AskedProcesses | None) -> None:
    assert asked_processes(command.split()) == asked


def test_nothing_is_missing_in_a_process_that_accelerate_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert missing_cpu_processes() is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert missing_cpu_processes() is None, "the parent is no `accelerate launch`"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert missing_cpu_processes() is None


@pytest.mark.parametrize("way", ["by the trainer", "by the launcher"])
def test_fsdp_that_accelerate_does_not_give_is_missed(
    way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(kind: DistributedType, fsdp: bool) -> list[str]:
        caplog.clear()
        args: Any = SimpleNamespace(
            fsdp=fsdp, process_index=0, distributed_state=SimpleNamespace(distributed_type=kind)
        )
        with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
            warn_of_launch(args)
        return [record.message for record in caplog.records]

    if way == "by the launcher":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    (warning,) = warnings(DistributedType.MULTI_CPU, way == "by the trainer")
    assert "accelerate has none on CPUs" in warning
    assert not warnings(DistributedType.MULTI_GPU, way == "by the trainer")
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not warnings(DistributedType.MULTI_CPU, fsdp=False)
