"""What loaders leave of the random numbers of the run that they load for."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from deepfabric_trainer.loader_seeds import draw_apart


def drawn(loader: DataLoader[int]) -> bool:
    """Tell whether a pass over a loader draws a random number."""
    before = torch.get_rng_state()
    assert len(list(loader)) == 2
    return not torch.equal(torch.get_rng_state(), before)


def test_processes_that_persist_leave_the_random_numbers_of_a_run_alone() -> None:
    loader = DataLoader(range(2), num_workers=1, persistent_workers=True)  # type: ignore[arg-type]
    draw_apart(loader, seed=0)
    assert not drawn(loader)
    assert not drawn(loader)


def test_other_loaders_draw_as_they_do_without_us() -> None:
    for loader in (DataLoader(range(2)), DataLoader(range(2), num_workers=1)):  # type: ignore[arg-type]
        draw_apart(loader, seed=0)
        assert loader.generator is None
        assert drawn(loader)


def test_accelerates_loaders_are_reached_and_generators_of_a_user_stay() -> None:
    own = torch.Generator()
    for generator in (None, own):
        plain = DataLoader(range(2), num_workers=1, persistent_workers=True, generator=generator)  # type: ignore[arg-type]
        loader = Accelerator(cpu=True).prepare_data_loader(plain)
        draw_apart(loader, seed=0)
        draw_apart(loader, seed=0)
        assert loader.base_dataloader.generator is not None
        assert (loader.base_dataloader.generator is own) is (generator is own)
