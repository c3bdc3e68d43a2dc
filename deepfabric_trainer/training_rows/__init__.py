"""The rows of a trainer: which are ours to encode, how, and what the log says of them."""

from deepfabric_trainer.training_rows.encoder import ModelFacts, facts_of
from deepfabric_trainer.training_rows.examples import (
    TrainerRows,
    drop_untrained,
    own_examples,
    without_assistant_only_loss,
)
from deepfabric_trainer.training_rows.kinds import (
    holds_conversations,
    is_encoded,
    rows_to_generate,
    text_column_of,
)

__all__ = [
    "ModelFacts",
    "TrainerRows",
    "drop_untrained",
    "facts_of",
    "holds_conversations",
    "is_encoded",
    "own_examples",
    "rows_to_generate",
    "text_column_of",
    "without_assistant_only_loss",
]
