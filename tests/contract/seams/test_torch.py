"""What we rely on in torch."""

import inspect

import torch
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState
from torch.utils.data import DataLoader

from tests.contract.seams.seam import Seam


@Seam(
    "torch",
    "Module._compiled_call_impl and the `_schedulers` and `_last_lr` of schedules",
    "deepfabric_trainer/generate/mode.py",
    "callbacks/_health/rollback.py",
    private=("_compiled_call_impl", "_schedulers"),
)
def test_torch() -> None:
    module = torch.nn.Linear(1, 1)
    assert module._compiled_call_impl is None
    module.compile(backend="eager")
    assert module._compiled_call_impl is not None
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    parts = [torch.optim.lr_scheduler.ConstantLR(optimizer) for _ in range(2)]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[1])
    assert schedule._schedulers == parts
    assert len(parts[0].base_lrs) == len(parts[0]._last_lr) == 1


_BEGUN: list[int] = []
"""The numbers of the workers that have begun in this process."""


def _begun(rows: list[str]) -> list[int]:
    return list(_BEGUN)


@Seam(
    "torch",
    "DataLoader.worker_init_fn, which may be set until the workers start, and is called in each with its number",
    "deepfabric_trainer/loader_signals.py",
)
def test_workers() -> None:
    loader = DataLoader(["a", "b"], num_workers=2, collate_fn=_begun)
    assert (loader.num_workers, loader.worker_init_fn) == (2, None)
    loader.worker_init_fn = _BEGUN.append
    assert list(loader) == [[0], [1]]
    assert _BEGUN == []


@Seam(
    "torch",
    "what FSDP's second version knows of its modules: their state, and how groups of weights are spread again",
    "deepfabric_trainer/generate/sharded.py",
    private=("_get_fsdp_state", "_lazy_init", "_fsdp_param_groups"),
)
def test_fsdp() -> None:
    """That generation works with it is tested on two processes, in `tests/processes`."""
    assert list(inspect.signature(FSDPModule._get_fsdp_state).parameters) == ["self"]
    assert list(inspect.signature(FSDPState._lazy_init).parameters) == ["self"]
    assert FSDPState()._fsdp_param_groups == []
    assert "post_forward_mesh_info" in inspect.signature(FSDPParamGroup).parameters
    whole = inspect.signature(FullyShardedDataParallel.summon_full_params).parameters
    assert {"module", "writeback"} <= set(whole)
