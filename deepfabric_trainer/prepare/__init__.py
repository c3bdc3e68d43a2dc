"""From a dataset of rows to a dataset of encoded examples, with an account of every row.

`dataset` is the public part; `rows` checks and encodes one row, `report` counts what became of all and says it.
"""

from deepfabric_trainer.prepare.dataset import encode_dataset, prepare_dataset, stream_dataset, tolerated_by
from deepfabric_trainer.prepare.report import (
    OnInvalid,
    PreparationReport,
    RejectedRow,
    parse_on_invalid,
    settle,
    write_rejected,
)

__all__ = [
    "OnInvalid",
    "PreparationReport",
    "RejectedRow",
    "encode_dataset",
    "parse_on_invalid",
    "prepare_dataset",
    "settle",
    "stream_dataset",
    "tolerated_by",
    "write_rejected",
]
