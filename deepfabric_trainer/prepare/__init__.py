"""From a dataset of rows to a dataset of encoded examples, with an account of every row.

`dataset` is the public part. `reading` makes rows of Arrow tables, by whose `content` equal tools are told. `rows`
checks and encodes one row. `writing` makes tables of examples, and `accounts` what they carry along, of which `report`
counts what became of all rows and says it. `cache` names prepared rows, and `pages` keeps large files out of memory.
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
