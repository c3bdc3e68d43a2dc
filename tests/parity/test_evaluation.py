from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.parity.features import NLL, Feature, rows
from tests.parity.runs import (
    TRAINERS,
    assert_same_metrics,
    make_trainer,
)
from tests.parity.samples import CHATS, QUESTIONS, TEXTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # TRL warns of many of its own features, in both runs
]


@pytest.mark.parametrize("columns", [TEXTS, QUESTIONS, CHATS], ids=["text", "prompt-completion", "messages"])
def test_evaluation_before_training_and_predictions(columns: Any, tmp_path: Path) -> None:
    feature = Feature("evaluation", rows(columns), NLL, lambda: {"eval_dataset": Dataset.from_list(columns[:3])})
    trainers = [make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__) for trainer_class in TRAINERS]
    expected, found = (trainer.evaluate() for trainer in trainers)
    assert_same_metrics(found, expected)
    expected, found = (
        trainer.evaluate(Dataset.from_list(columns[3:]), metric_key_prefix="test") for trainer in trainers
    )
    assert_same_metrics(found, expected)
    theirs, ours = (trainer.predict(trainer.eval_dataset) for trainer in trainers)
    assert ours.predictions == pytest.approx(theirs.predictions, rel=1e-4, abs=1e-6)
    assert ours.label_ids.tolist() == theirs.label_ids.tolist()
    assert_same_metrics(ours.metrics, theirs.metrics)
