"""A plugin of pytest that puts `DeepFabricTrainer` where tests import `SFTTrainer` from."""

import trl

from deepfabric_trainer import DeepFabricTrainer


def pytest_configure() -> None:
    # Before any test module is imported; `trl.trainer.sft_trainer` keeps its own, which ours is made of.
    for module in (trl, trl.trainer):
        module.SFTTrainer = DeepFabricTrainer
