"""What the processes of a run have found, put together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object

from deepfabric_trainer.callbacks._health.findings import Finding


def gather_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Return what any process has found: of each kind what the process says that sees it most clearly.

    All processes call it at the same point of the run, and get the same. While nothing is found anywhere it costs them
    the exchange of one number.

    Args:
        findings (`Sequence[Finding]`): Those of this process.
    """
    state = PartialState()
    if state.num_processes == 1:
        return list(findings)
    counts: Any = gather(torch.tensor([len(findings)], device=state.device))
    if int(counts.sum()) == 0:
        return []
    named = [_naming_process(finding, state.process_index) for finding in findings]
    return clearest(gather_object([named]))


def clearest(of_processes: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Return one finding of each kind, the one with the greatest weight."""
    chosen: dict[str, Finding] = {}
    for findings in of_processes:
        for finding in findings:
            if finding.kind not in chosen or finding.weight > chosen[finding.kind].weight:
                chosen[finding.kind] = finding
    return list(chosen.values())


def _naming_process(finding: Finding, process: int) -> Finding:
    return replace(finding, evidence={**finding.evidence, "process": process})
