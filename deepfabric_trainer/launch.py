"""The processes that `accelerate launch --cpu` was asked for.

With `--cpu` accelerate leaves the start of further processes to MPI: without it, `--num_processes 2` runs the script
once and says nothing (accelerate 1.15). What remains of the wish is `MASTER_ADDR` in the environment, which it sets
for two processes and more, and its own command line.
"""

import logging
import os
import sys

import psutil

logger = logging.getLogger(__name__)


def start_cpu_processes() -> None:
    """Start the script again with as many processes as `accelerate launch --cpu --num_processes N` was asked for.

    Does nothing in every other case: one process, a launcher that has started its processes, a script that was not
    started by accelerate. The new processes take the place of this one.
    """
    count = missing_cpu_processes()
    if count is None:
        return
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    address = ["--master_addr", os.environ["MASTER_ADDR"], "--master_port", os.environ.get("MASTER_PORT", "29500")]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *launcher, *address, *sys.argv])


def warn_of_missing_cpu_processes() -> None:
    """Say in the log when more processes were asked for than started."""
    missing = missing_cpu_processes()
    if missing is not None:
        logger.warning(
            "accelerate was asked for %d processes and started this one only: with --cpu it needs MPI for more; "
            "call `deepfabric_trainer.launch.start_cpu_processes()` first, or launch the script with torchrun",
            missing,
        )


def missing_cpu_processes() -> int | None:
    """Return how many processes were asked for when only this one was started; `None` when nothing is missing."""
    environment = os.environ
    if environment.get("ACCELERATE_USE_CPU", "").lower() != "true" or "MASTER_ADDR" not in environment:
        return None
    if any(name in environment for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")):
        return None
    parent = psutil.Process().parent()
    return asked_processes(parent.cmdline()) if parent is not None else None


def asked_processes(command: list[str]) -> int | None:
    """Return the `--num_processes` of an `accelerate launch` command line, when it is more than one.

    Args:
        command (`list[str]`): The command and its arguments.
    """
    if "launch" not in command:
        return None
    # What follows the script are its own arguments.
    script = next((position for position, argument in enumerate(command) if argument.endswith(".py")), len(command))
    for position, argument in enumerate(command[:script]):
        name, _, value = argument.partition("=")
        if name.replace("-", "_") == "__num_processes":
            value = value or next(iter(command[position + 1 :]), "")
            return int(value) if value.isdigit() and int(value) > 1 else None
    return None
