"""Telling people what was found: the journal has all of it, the log each kind once and then ever more rarely."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from deepfabric_trainer.callbacks._health.findings import Finding, Policy, advice_on, jsonable
from deepfabric_trainer.callbacks._journal import RunEvent, journal_of

logger = logging.getLogger("deepfabric_trainer.callbacks.training_health")

_MOST_IN_JOURNAL = 200
"""How many events of a kind the journal gets one by one; then those that the log gets."""


class Reporter:
    """Reports findings, and counts them.

    Args:
        counts (`Mapping[str, int]`): How often each kind has been found before a resume.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts: dict[str, int] = dict(counts or {})
        self._silent: dict[str, list[int]] = {}

    def is_told(self, finding: Finding) -> bool:
        """Return whether the next finding of its kind will be told to anyone."""
        return self.counts.get(finding.kind, 0) < _MOST_IN_JOURNAL or self._is_logged(finding)

    def report(self, finding: Finding, action: Policy, control: Any, *, step: int, why: str = "") -> None:
        """Report a finding, and what is done about it.

        Args:
            finding (`Finding`): What was found.
            action (`Policy`): What is done.
            control (`TrainerControl`): Where the journal hangs.
            step (`int`): The global step, as logs count it.
            why (`str`): More about what is done, a clause.
        """
        is_told, is_logged = self.is_told(finding), self._is_logged(finding) or action is not Policy.LOG
        self.counts[finding.kind] = count = self.counts.get(finding.kind, 0) + 1
        cause, advice = advice_on(finding)
        message = f"{finding.message}; {why}" if why else finding.message
        if is_told or is_logged:
            evidence = jsonable({**finding.evidence, "occurrence": count})
            event = RunEvent(str(finding.kind), step, message, evidence, cause, advice, str(action), finding.severity)
            journal_of(control).add(event)
        if is_logged:
            times = f" (time {count})" if count > 1 else ""
            where = _where(finding.evidence)
            logger.warning(
                "step %d, %s%s: %s%s. Likely cause: %s. %s", step, finding.kind, times, message, where, cause, advice
            )
        else:
            self._silent.setdefault(finding.kind, []).append(step)

    def sum_up(self) -> None:
        """Log what was counted and not logged."""
        for kind, steps in self._silent.items():
            listed = ", ".join(str(step) for step in steps[:10]) + (", ..." if len(steps) > 10 else "")
            logger.warning("%s was found %d times; not said until now: steps %s", kind, self.counts[kind], listed)
        self._silent = {}

    def _is_logged(self, finding: Finding) -> bool:
        """Return whether its next number is a power of two."""
        number = self.counts.get(finding.kind, 0) + 1
        return number & (number - 1) == 0


def _where(evidence: Mapping[str, Any]) -> str:
    parts = []
    rows: Sequence[int] = evidence.get("rows", ())
    if rows:
        listed = ", ".join(str(row) for row in rows[:16]) + (", ..." if len(rows) > 16 else "")
        parts.append(f"rows {listed} of the training dataset")
    if "rows_note" in evidence:
        parts.append(f"rows: {evidence['rows_note']}")
    if "process" in evidence:
        parts.append(f"process {evidence['process']}")
    return f" ({'; '.join(parts)})" if parts else ""
