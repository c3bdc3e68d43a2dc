"""What the callbacks of one run tell each other: measurements and events, in the order in which they happened.

A trainer calls its callbacks one by one and never introduces them. What they all get is its `TrainerControl`, so the
journal of a run hangs there. Who has something to tell adds an entry; who wants to show it reads on from where it
stopped reading, whatever the order of the callbacks.
"""

from dataclasses import dataclass, field
from typing import Any

from deepfabric_trainer.callbacks._measurements import GenerationResult

_ATTRIBUTE = "_deepfabric_journal"


@dataclass(frozen=True)
class RunEvent:
    """Something that happened in a run, beyond a metric.

    Args:
        kind (`str`): What, as a stable name: `"nan_loss"`, `"early_stop"`, ...
        step (`int`): The global step.
        message (`str`): What was seen, in one sentence.
        evidence (`dict[str, Any]`): The numbers behind it, and the rows; JSON can hold it.
        cause (`str`): What it most likely comes from, in one sentence.
        advice (`str`): What to do, in one or two sentences.
        action (`str`): What was done: `"log"`, `"stop"`, `"skip_step"`, `"rollback"`.
        severity (`str`): `"info"`, `"warning"` or `"critical"`.
    """

    kind: str
    step: int
    message: str
    evidence: dict[str, Any] = field(default_factory=dict)
    cause: str = ""
    advice: str = ""
    action: str = "log"
    severity: str = "warning"


Entry = RunEvent | GenerationResult


class Journal:
    """The entries of a run; `add` at the end, `since` a position."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Add an entry."""
        self._entries.append(entry)

    def since(self, position: int) -> list[Entry]:
        """Return the entries from `position` on; the next position is `len(journal)`."""
        return self._entries[position:]


def journal_of(control: Any) -> Journal:
    """Return the journal of the run that a `TrainerControl` controls, a new one at first."""
    journal = getattr(control, _ATTRIBUTE, None)
    if journal is None:
        journal = Journal()
        setattr(control, _ATTRIBUTE, journal)
    return journal
