"""The rules a row must satisfy. `report` names them, `rules` checks a conversation, `dataset` goes over the rows."""

from deepfabric_trainer.validate.dataset import validate_dataset
from deepfabric_trainer.validate.report import Finding, Rule, Severity, ValidationReport

__all__ = ["Finding", "Rule", "Severity", "ValidationReport", "validate_dataset"]
