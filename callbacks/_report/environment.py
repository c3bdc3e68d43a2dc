"""What a run was started with: settings, versions, machine; without credentials."""

import dataclasses
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from deepfabric_trainer.callbacks._report.text import cut
from deepfabric_trainer.redaction import redacted, redacted_command

_PACKAGES = ("deepfabric-trainer", "torch", "transformers", "trl", "accelerate", "datasets", "peft")
_SAID_ELSEWHERE = {"output_dir", "accelerator_config", "deepspeed_plugin", "local_rank", "_n_gpu"}
_LONGEST = 300
"""Characters shown of a setting."""


def non_default_settings(args: Any) -> dict[str, str]:
    """Return the training arguments that are not the default of their class, as text and without credentials.

    Args:
        args (`TrainingArguments`): A dataclass.

    Returns:
        `dict[str, str]`: By name. What `__post_init__` settles is named, too, where it is not the field's default.
    """
    settings = {}
    for field in dataclasses.fields(args):
        value = getattr(args, field.name, None)
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if field.name in _SAID_ELSEWHERE or _plain(value) == _plain(made):
            continue
        settings[field.name] = cut(str(redacted(field.name, _plain(value))), _LONGEST).text
    return dict(sorted(settings.items()))


def describe_environment(args: Any, model: Any = None) -> dict[str, str]:
    """Return versions, model, device, processes, memory, commit and command line.

    Args:
        args (`TrainingArguments`): Give device and processes.
        model (`PreTrainedModel`, *optional*): The model that is trained.

    Returns:
        `dict[str, str]`: By name; what cannot be found out is left out.
    """
    facts = {
        "model": _model(model),
        "device": _device(args),
        "processes": str(getattr(args, "world_size", 1)),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "git commit": _commit(),
        "command": " ".join(redacted_command([os.path.basename(sys.executable), *sys.argv])),
    }
    return {name: cut(fact, _LONGEST).text for name, fact in facts.items() if fact}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value


def _model(model: Any) -> str:
    if model is None:
        return ""
    parameters = list(model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    name = getattr(getattr(model, "config", None), "name_or_path", "") or "no name"
    return f"{name} ({type(model).__name__}, {total:,} parameters, {trained:,} trained)"


def _device(args: Any) -> str:
    device = torch.device(getattr(args, "device", "cpu"))
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.get_device_name(device)} ({memory / 2**30:.0f} GiB), one a process"
    return f"{device.type}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """Return the commit that the script's folder is at, and whether files differ from it."""
    folder = Path(sys.argv[0]).resolve().parent if sys.argv[0] else Path.cwd()
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}, with changes" if changed else commit


def _git(folder: Path, *words: str) -> str:
    # Without the option `status` may lock the index, and a commit made meanwhile fails.
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
