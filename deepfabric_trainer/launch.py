"""What a run was launched for, where accelerate does not give it without a word.

With `--cpu`, or `use_cpu: true` in its config file, accelerate leaves the start of further processes to MPI: without
it the script runs once (accelerate 1.15). What remains of the wish is `MASTER_ADDR` in the environment, which it sets
for two processes and more, and its own command line. On CPUs it also offers no FSDP.
"""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from accelerate.utils import DistributedType

logger = logging.getLogger(__name__)

_LAUNCHERS = ("accelerate", "accelerate-launch", "launch.py")


@dataclass(frozen=True)
class AskedProcesses:
    """The processes of an `accelerate launch` command.

    Args:
        count (`int`): On all machines together.
        machines (`int`, *optional*, defaults to 1): How many machines.
        machine (`int`, *optional*, defaults to 0): The number of this one.
    """

    count: int
    machines: int = 1
    machine: int = 0


def start_cpu_processes() -> None:
    """Start the script again with as many processes as `accelerate launch` was asked for on a CPU.

    Does nothing in every other case: one process, a launcher that has started its processes, a script that was not
    started by accelerate. The new processes take the place of this one.
    """
    asked = missing_cpu_processes()
    if asked is None:
        return
    address = ["--master_addr", os.environ["MASTER_ADDR"], "--master_port", os.environ.get("MASTER_PORT", "29500")]
    machines = ["--nnodes", str(asked.machines), "--node_rank", str(asked.machine)]
    processes = ["--nproc_per_node", str(asked.count // asked.machines)]
    launcher = ["-m", "torch.distributed.run", *machines, *processes, *address]
    sys.stdout.flush()
    sys.stderr.flush()
    # Not `sys.argv`, which does not tell a module from a script.
    os.execv(sys.executable, [sys.executable, *launcher, *sys.orig_argv[1:]])


def warn_of_launch(args: Any) -> None:
    """Say in the log where the run is not what it was launched as.

    Args:
        args (`TrainingArguments`): The trainer's.
    """
    missing = missing_cpu_processes()
    if missing is not None:
        logger.warning(
            "accelerate was asked for %d processes and started this one only: with --cpu it needs MPI for more; "
            "call `deepfabric_trainer.launch.start_cpu_processes()` first, or launch the script with torchrun",
            missing.count,
        )
    asks_for_fsdp = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    is_on_cpus = args.distributed_state.distributed_type == DistributedType.MULTI_CPU
    if asks_for_fsdp and is_on_cpus and args.process_index == 0:
        logger.warning("FSDP was asked for, and accelerate has none on CPUs: each process holds the whole model")


def missing_cpu_processes() -> AskedProcesses | None:
    """Return the processes that were asked for when only this one was started; `None` when nothing is missing."""
    environment = os.environ
    if environment.get("ACCELERATE_USE_CPU", "").lower() != "true" or "MASTER_ADDR" not in environment:
        return None
    if any(name in environment for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")):
        return None
    parent = psutil.Process().parent()
    return asked_processes(parent.cmdline()) if parent is not None else None


def asked_processes(command: list[str]) -> AskedProcesses | None:
    """Return the processes of an `accelerate launch` command, on its line or in its config file, if more than one.

    Args:
        command (`list[str]`): The command and its arguments.
    """
    names = [Path(part).name for part in command]
    launcher = next((place for place, name in enumerate(names) if name in _LAUNCHERS), None)
    if launcher is None or (names[launcher] == "accelerate" and names[launcher + 1 : launcher + 2] != ["launch"]):
        return None
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    arguments = command[launcher + 1 :]
    args = launch_command_parser().parse_args(arguments[1:] if names[launcher] == "accelerate" else arguments)
    has_config = args.config_file is not None or (Path(default_config_file).is_file() and not args.cpu)
    config = load_config_from_file(args.config_file) if has_config else None

    def asked(name: str, otherwise: int) -> int:
        on_line = getattr(args, name)
        return int(getattr(config, name, otherwise) if on_line is None else on_line)

    count = asked("num_processes", 1)
    return AskedProcesses(count, asked("num_machines", 1), asked("machine_rank", 0)) if count > 1 else None
