"""What we rely on in accelerate."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.commands.launch import launch_command_parser, prepare_simple_launcher_cmd_env
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    broadcast_object_list,
    extract_model_from_parallel,
    gather,
    gather_object,
    send_to_device,
)
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.utils.data import DataLoader

from deepfabric_trainer.grouping import PrefixGroupSampler
from deepfabric_trainer.training_order import find_sampler
from tests.contract.seams.seam import Seam

STEPS = "deepfabric_trainer/steps.py"


@Seam(
    "accelerate",
    "GradientState._set_sync_gradients, which decides Accelerator.sync_gradients, and no_sync",
    STEPS,
    private=("_set_sync_gradients",),
)
def test_gradients_that_are_not_joined() -> None:
    accelerator = Accelerator(cpu=True)
    before = accelerator.sync_gradients
    try:
        accelerator.gradient_state._set_sync_gradients(False)
        assert accelerator.sync_gradients is False
        with accelerator.no_sync(torch.nn.Linear(1, 1)):
            pass
    finally:
        accelerator.gradient_state._set_sync_gradients(before)
    assert accelerator.sync_gradients is before


@Seam(
    "accelerate",
    "end_of_dataloader and remainder of the gradient state, while a prepared loader is gone through",
    "deepfabric_trainer/region_metrics.py",
)
def test_the_end_of_a_loader() -> None:
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare_data_loader(DataLoader([torch.zeros(1)] * 5, batch_size=2))
    seen = [(accelerator.gradient_state.end_of_dataloader, accelerator.gradient_state.remainder) for _ in loader]
    assert seen == [(False, 1), (False, 1), (True, 1)]


@Seam(
    "accelerate",
    "the samplers inside of a prepared loader, its set_sampler, and set_epoch, which reaches the sampler",
    "deepfabric_trainer/training_order.py",
    "deepfabric_trainer/trainer.py",
)
def test_samplers() -> None:
    accelerator = Accelerator(cpu=True)
    sampler = PrefixGroupSampler(np.array([0, 0, 1, 1]), 2, 0)
    loader = DataLoader([torch.tensor(float(number)) for number in range(4)], batch_size=2, sampler=sampler)
    prepared = accelerator.prepare_data_loader(loader)
    assert find_sampler(prepared) is sampler
    prepared.set_sampler(sampler)
    prepared.set_epoch(3)
    assert find_sampler(prepared) is sampler
    assert sampler.epoch == 3
    skipped = accelerator.skip_first_batches(prepared, 1)
    assert len(list(skipped)) == 1


_BEGUN: list[int] = []
"""The numbers of the workers that have begun in this process."""


def _begun(rows: list[str]) -> torch.Tensor:
    return torch.tensor(_BEGUN)


@Seam(
    "accelerate",
    "base_dataloader, the loader inside of a prepared one, whose worker_init_fn begins the workers of both",
    "deepfabric_trainer/loader_signals.py",
)
@pytest.mark.parametrize("dispatched", [False, True])
def test_the_loader_inside_of_a_prepared_one(dispatched: bool) -> None:
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatched))
    prepared = accelerator.prepare_data_loader(DataLoader(["a", "b"], num_workers=1, collate_fn=_begun))
    assert prepared.base_dataloader.num_workers == 1
    assert prepared.base_dataloader.worker_init_fn is None
    prepared.base_dataloader.worker_init_fn = _BEGUN.append
    assert [batch.tolist() for batch in prepared] == [[0], [0]]
    # A run that goes on from the middle of an epoch.
    assert [batch.tolist() for batch in accelerator.skip_first_batches(prepared, 1)] == [[0]]


@Seam(
    "accelerate",
    "gather, gather_object, broadcast_object_list and send_to_device of one process",
    "callbacks/_generation/turns.py",
    "callbacks/_health/processes.py",
    "deepfabric_trainer/passes.py",
    "deepfabric_trainer/resumable.py",
)
def test_gathering() -> None:
    PartialState(cpu=True)
    assert gather(torch.tensor([1])).tolist() == [1]
    assert gather_object(["a"]) == ["a"]
    assert broadcast_object_list(["a"]) == ["a"]
    moved = send_to_device({"mask": (torch.ones(1), None), "kept": "text"}, torch.device("cpu"))
    assert moved["kept"] == "text"


@Seam(
    "accelerate",
    "extract_model_from_parallel(model, keep_torch_compile=False)",
    "deepfabric_trainer/generate/mode.py",
)
def test_unwrapping() -> None:
    module = torch.nn.Linear(1, 1)
    assert extract_model_from_parallel(module, keep_torch_compile=False) is module
    assert extract_model_from_parallel(torch.compile(module, backend="eager"), keep_torch_compile=False) is module
    assert extract_model_from_parallel(torch.nn.DataParallel(module), keep_torch_compile=False) is module


@Seam(
    "accelerate",
    "should_reduce_batch_size and clear_device_cache(garbage_collection)",
    "deepfabric_trainer/passes.py",
    STEPS,
)
def test_memory() -> None:
    assert should_reduce_batch_size(RuntimeError("CUDA out of memory."))
    assert should_reduce_batch_size(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not should_reduce_batch_size(RuntimeError("other"))
    clear_device_cache(garbage_collection=True)


@Seam(
    "accelerate",
    "the names of DistributedType, and who goes first",
    "callbacks/_health/settings.py",
    "deepfabric_trainer/training_rows/examples.py",
)
def test_processes() -> None:
    assert {"NO", "DEEPSPEED", "FSDP", "MEGATRON_LM"} <= set(DistributedType.__members__)
    state = PartialState(cpu=True)
    with state.main_process_first(), state.local_main_process_first():
        assert (state.is_main_process, state.process_index, state.num_processes) == (True, 0, 1)


@Seam(
    "accelerate",
    "what `accelerate launch --cpu --num_processes 2` leaves in the environment",
    "deepfabric_trainer/launch.py",
)
def test_the_environment_of_a_launch() -> None:
    arguments: Namespace = launch_command_parser().parse_args(["--cpu", "--num_processes", "2", "script.py"])
    arguments.mixed_precision, arguments.dynamo_backend, arguments.num_machines = "no", "no", 1
    _, environment = prepare_simple_launcher_cmd_env(arguments)
    assert environment["ACCELERATE_USE_CPU"].lower() == "true"
    assert "MASTER_ADDR" in environment
