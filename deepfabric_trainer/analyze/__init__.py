"""What is in a dataset: turns, tools, duplicates, broken rows, tokens.

`report` says what is counted; `conversations`, `duplicates` and `tokens` count it, row by row; `remarks` says in plain
words what a person should look at; `dataset` puts them together.
"""

from deepfabric_trainer.analyze.dataset import analyze_dataset
from deepfabric_trainer.analyze.report import Catalogue, DatasetReport, TokenReport

__all__ = ["Catalogue", "DatasetReport", "TokenReport", "analyze_dataset"]
