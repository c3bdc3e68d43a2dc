"""What the processes of a run have found, put together."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object

from deepfabric_trainer.callbacks._health.findings import Finding

_T = TypeVar("_T")


class ProcessesDifferError(RuntimeError):
    """The processes of a run no longer hold the same weights, and training them on makes no sense."""


def together(act: Callable[[], _T]) -> _T:
    """Do something in every process, and fail in all of them if it fails in one.

    All processes call it at the same point of the run.

    Args:
        act (`Callable`): What to do; itself without an exchange between processes.

    Raises:
        RuntimeError: If it failed in another process only; with its traceback.
    """
    if PartialState().num_processes == 1:
        return act()
    failure: Exception | None = None
    report: str | None = None
    try:
        done = act()
    except Exception as error:
        failure, report = error, traceback.format_exc()
    reports = gather_object([report])
    if failure is not None:
        raise failure
    for process, other in enumerate(reports):
        if other is not None:
            raise RuntimeError(f"it failed in process {process}:\n{other}")
    return done


def all_agree(is_so: bool) -> bool:
    """Tell whether every process says yes. All processes call it at the same point of the run."""
    state = PartialState()
    if state.num_processes == 1:
        return is_so
    votes: Any = gather(torch.tensor([is_so], device=state.device))
    return bool(votes.all())


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
