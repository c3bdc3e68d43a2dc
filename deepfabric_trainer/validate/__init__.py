"""The rules a row must satisfy.

`report` names them. `turns`, `tools`, `calls`, `call_in_text` and `control_tokens` check a conversation,
`conversation` puts them together, and `dataset` goes over the rows. `parameters` judges arguments by JSON Schemas as
strangers write them: `mending` takes out what is not valid, `plain` decides what needs no library.
"""

from deepfabric_trainer.validate.dataset import validate_dataset
from deepfabric_trainer.validate.report import Finding, Rule, Severity, ValidationReport

__all__ = ["Finding", "Rule", "Severity", "ValidationReport", "validate_dataset"]
