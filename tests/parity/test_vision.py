from pathlib import Path

import pytest
from trl import SFTTrainer

from deepfabric_trainer import DeepFabricTrainer
from tests.parity.features import EVALUATES, Feature, lora
from tests.parity.runs import assert_same_history, assert_same_weights, make_trainer, train

pytest.importorskip("PIL")

from tests.parity.vision import rows_with_pictures, seeing_model, seeing_processor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # TRL warns of many of its own features, in both runs
]


@pytest.mark.parametrize("peft", [False, True], ids=["all weights", "LoRA"])
def test_rows_with_pictures_go_trls_way(peft: bool, tmp_path: Path) -> None:
    feature = Feature(
        "pictures",
        rows_with_pictures,
        {**EVALUATES, "max_length": None},
        lambda: {
            "processing_class": seeing_processor(),
            "eval_dataset": rows_with_pictures(),
            **(lora()() if peft else {}),
        },
        seeing_model,
    )
    expected, found = (
        train(make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__))
        for trainer_class in (SFTTrainer, DeepFabricTrainer)
    )
    assert found.trainer.train_dataset.to_list() == rows_with_pictures().to_list()
    assert type(found.trainer.data_collator) is type(expected.trainer.data_collator)
    assert_same_history(found.history, expected.history)
    assert_same_weights(found.weights, expected.weights)
