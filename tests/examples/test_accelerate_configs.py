"""The configs say to accelerate what their comments say to the reader."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

FOLDER = Path(__file__).parents[2] / "examples" / "accelerate"
TYPES = {
    "ddp_cpu.yaml": DistributedType.MULTI_CPU,
    "ddp.yaml": DistributedType.MULTI_GPU,
    "fsdp1.yaml": DistributedType.FSDP,
    "fsdp2.yaml": DistributedType.FSDP,
    "deepspeed_zero2.yaml": DistributedType.DEEPSPEED,
    "deepspeed_zero3.yaml": DistributedType.DEEPSPEED,
}


def launched_with(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what `accelerate launch` makes of a config."""
    monkeypatch.setattr("sys.argv", ["accelerate"])
    arguments = ["--config_file", str(FOLDER / name), "--main_process_port", "0", "script.py"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of machines without a GPU
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return args


def test_every_config_is_loaded() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(TYPES)
    for name, kind in TYPES.items():
        config = load_config_from_file(str(FOLDER / name))
        assert config.distributed_type == kind
        assert config.num_processes > 1
        assert config.use_cpu == (name == "ddp_cpu.yaml")


def test_processes_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    _, environment = prepare_simple_launcher_cmd_env(launched_with("ddp_cpu.yaml", monkeypatch))
    assert environment["ACCELERATE_USE_CPU"] == "True"
    assert environment["MASTER_ADDR"] == "127.0.0.1"


def test_a_process_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    args = launched_with("ddp.yaml", monkeypatch)
    assert args.multi_gpu
    assert prepare_multi_gpu_env(args)["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert args.nproc_per_node == "8"


@pytest.mark.parametrize(("version", "reshard"), [("1", "full_shard"), ("2", "true")])
def test_weights_spread_by_fsdp(version: str, reshard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = launched_with(f"fsdp{version}.yaml", monkeypatch)
    environment = prepare_multi_gpu_env(args)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == version
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == reshard
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = launched_with(f"deepspeed_zero{stage}.yaml", monkeypatch)
    args.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(args)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == str(stage == "3").lower()
