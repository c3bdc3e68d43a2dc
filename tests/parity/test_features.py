from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import SFTTrainer

from deepfabric_trainer import DeepFabricTrainer
from tests.parity.features import FEATURES, Feature
from tests.parity.runs import assert_same_history, assert_same_weights, make_trainer, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # TRL warns of many of its own features, in both runs
]


def rows_of(dataset: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in (dataset.with_format(None) if isinstance(dataset, Dataset) else dataset)]


def assert_same_rows(found: Any, expected: Any) -> None:
    """Require the same values in all columns of the expected rows; there may be more columns."""
    found_rows, expected_rows = rows_of(found), rows_of(expected)
    assert len(found_rows) == len(expected_rows)
    names = expected_rows[0].keys()
    assert found_rows[0].keys() >= names >= {"input_ids", "labels"}
    for found_row, expected_row in zip(found_rows, expected_rows, strict=True):
        assert {name: found_row[name] for name in names} == {name: expected_row[name] for name in names}


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_a_run_is_that_of_sft_trainer(feature: Feature, tmp_path: Path) -> None:
    # One after the other: what is drawn in a run follows from the seed at its beginning.
    expected, found = (
        train(make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__))
        for trainer_class in (SFTTrainer, DeepFabricTrainer)
    )
    assert_same_rows(found.trainer.train_dataset, expected.trainer.train_dataset)
    assert len(expected.history) >= 3
    assert_same_history(found.history, expected.history)
    assert_same_weights(found.weights, expected.weights)
