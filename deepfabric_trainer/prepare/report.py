"""What became of the rows of a dataset, in numbers and in words."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from deepfabric_trainer.encode import Context
from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.prepare.accounts import Accounts, read_findings
from deepfabric_trainer.schema import Repair
from deepfabric_trainer.validate import Finding, Rule, Severity

logger = logging.getLogger(__name__)

_SHOWN = 5
_NUMBERED = 1000
_SUMMED = (
    "dropped_messages",
    "shortened_results",
    "unstopped_turns",
    "lost_reasoning",
    "dropped_reasoning",
    "leaves_no_choice",
)
"""What the accounts count, or say of a row."""


class OnInvalid(StrEnum):
    """What happens when rows cannot be trained on."""

    RAISE = "raise"
    """Nothing is trained: one error counts the rows by rule and shows the first."""
    DROP = "drop"
    """The rows are left out, counted in the log, and written to `rejected.jsonl`."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that is not trained on.

    Args:
        row (`int`): Its number in the dataset, counted from 0.
        findings (`list[Finding]`): Why, and what else is wrong with it; at least one.
    """

    row: int
    findings: list[Finding]

    @property
    def rules(self) -> set[Rule]:
        """The rules because of which it is rejected."""
        return _rules(finding for finding in self.findings if finding.severity is Severity.ERROR)


@dataclass(frozen=True)
class PreparationReport:
    """What became of the rows of a dataset.

    Args:
        rows (`int`): The rows that went in.
        examples (`int`): The examples that came out; more than rows where a template rewrites history.
        rejected (`list[RejectedRow]`): The rows that gave none.
        findings (`Counter[Rule]`): How many rows that are trained on break each rule.
        repairs (`Counter[Repair]`): How many rows needed each repair.
        shortened_rows (`int`): The rows that lost their oldest exchanges to `max_length`.
        dropped_messages (`int`): The messages in those exchanges.
        shortened_results (`int`): The tool results that were cut to keep to `max_length`.
        contexts (`Counter[Context]`): The trained turns that do not stand right after the prompt that inference
            shows, by what they stand behind.
        unstopped_turns (`int`): The trained turns that the template ends without a stop token.
        lost_reasoning (`int`): Assistant messages whose reasoning the template leaves out of a row that is trained
            whole.
        dropped_reasoning (`int`): Rows whose `reasoning` column found no place.
        no_choice_rows (`int`): Rows in which the tool strategy left no tool that would be a wrong one to call.
        rows_of_examples (`np.ndarray`): For each example, the number of the row that it is of; ascending.
    """

    rows: int
    examples: int
    rejected: list[RejectedRow] = field(default_factory=list)
    findings: Counter[Rule] = field(default_factory=Counter)
    repairs: Counter[Repair] = field(default_factory=Counter)
    shortened_rows: int = 0
    dropped_messages: int = 0
    shortened_results: int = 0
    contexts: Counter[Context] = field(default_factory=Counter)
    unstopped_turns: int = 0
    lost_reasoning: int = 0
    dropped_reasoning: int = 0
    no_choice_rows: int = 0
    rows_of_examples: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), compare=False)

    @classmethod
    def from_accounts(cls, accounts: Accounts, rows: int) -> "PreparationReport":
        """Count what the accounts of a dataset of so many rows say."""
        rejected, findings = [], Counter[Rule]()
        repairs, contexts, sums = Counter[Repair](), Counter[Context](), Counter[str]()
        for account, of_rows in accounts.by_text:
            for row in of_rows if "findings" in account else ():
                found = read_findings(account, row)
                if account.get("rejected"):
                    rejected.append(RejectedRow(row, found))
                else:
                    findings.update(_rules(found))
            for name in account.get("repairs", ()):
                repairs[Repair[name]] += len(of_rows)
            for name in account.get("contexts", ()):
                contexts[Context[name]] += len(of_rows)
            sums.update({name: account.get(name, 0) * len(of_rows) for name in _SUMMED})
            sums["shortened_rows"] += len(of_rows) * (account.get("dropped_messages", 0) > 0)
        return cls(
            rows=rows,
            examples=len(accounts.rows_of_examples),
            rejected=sorted(rejected, key=lambda entry: entry.row),
            findings=findings,
            repairs=repairs,
            shortened_rows=sums["shortened_rows"],
            dropped_messages=sums["dropped_messages"],
            shortened_results=sums["shortened_results"],
            contexts=contexts,
            unstopped_turns=sums["unstopped_turns"],
            lost_reasoning=sums["lost_reasoning"],
            dropped_reasoning=sums["dropped_reasoning"],
            no_choice_rows=sums["leaves_no_choice"],
            rows_of_examples=accounts.rows_of_examples,
        )

    def sentences(self, name: str) -> list[str]:
        """Return what a user must know of it, a sentence a cause; empty when every row went in as it is."""
        of_rows = f"of {self.rows} rows"
        lines = [f"{count} {of_rows}: {repair}" for repair, count in self.repairs.items()]
        lines += [f"{count} {of_rows} have {rule}: {rule.meaning}" for rule, count in _most(self.findings)]
        if self.shortened_rows:
            lines.append(
                f"{self.shortened_rows} {of_rows} are longer than `max_length`; their oldest exchanges were dropped, "
                f"{self.dropped_messages} messages in all"
            )
        if self.shortened_results:
            lines.append(f"{self.shortened_results} tool results were cut to `max_tool_result_length`")
        lines += [f"{count} trained turns stand behind {context}" for context, count in _most(self.contexts)]
        if self.unstopped_turns:
            lines.append(
                f"{self.unstopped_turns} trained turns end without a stop token: the chat template leaves it to the "
                "next message, and there is none; a template that ends each turn itself teaches the model to stop"
            )
        if self.lost_reasoning:
            lines.append(
                f"the chat template leaves out the reasoning of {self.lost_reasoning} assistant messages, as it does "
                "with all but the last; `DeepFabricSFTConfig` trains each in its own context"
            )
        if self.dropped_reasoning:
            lines.append(
                f"{self.dropped_reasoning} {of_rows}: the `reasoning` column is not trained: the chat template has no "
                'place for it (`reasoning="inline"` makes one), or the messages have reasoning of their own'
            )
        if self.no_choice_rows:
            lines.append(
                f"{self.no_choice_rows} {of_rows}: the tool strategy leaves no tool that would be a wrong one, so the "
                'model does not learn to choose (`tool_strategy="used_plus_related"` leaves some)'
            )
        if self.rejected:
            lines.append(describe_rejected(self.rejected, self.rows))
        return [f"{name} dataset: {line}" for line in lines]


def settle(report: PreparationReport, on_invalid: str, *, tolerated: Iterable[Rule] = ()) -> None:
    """Raise when the rejected rows are more than the policy allows.

    Args:
        report (`PreparationReport`): What became of the rows.
        on_invalid (`str`): An [`OnInvalid`].
        tolerated (`Iterable[Rule]`, *optional*): Rules because of which rows are left out in any case.

    Raises:
        DataFormatError: If there are any and the policy is to raise, or when no row is left.
    """
    if not report.rejected:
        return
    policy, allowed = parse_on_invalid(on_invalid), set(tolerated)
    refused = report.rejected if policy is OnInvalid.RAISE else []
    refused = [entry for entry in refused if not entry.rules <= allowed]
    if refused or not report.examples:
        raise DataFormatError(
            describe_rejected(refused or report.rejected, report.rows),
            expected="rows that can be trained on" if report.examples else "at least one row that can be trained on",
            fix="mend these rows (`deepfabric-trainer check` lists them all)"
            + (', or leave them out with `on_invalid="drop"` in `DeepFabricSFTConfig`' if report.examples else ""),
        )


def describe_rejected(rejected: list[RejectedRow], rows: int) -> str:
    """Say how many rows were rejected, because of which rules, and show the first few."""
    rules = Counter(rule for entry in rejected for rule in entry.rules)
    counts = ", ".join(f"{count} {rule}" for rule, count in _most(rules))
    shown = "".join(f"\n  {_shown(entry)}" for entry in rejected[:_SHOWN])
    more = f"\n  ... and {len(rejected) - _SHOWN} more" if len(rejected) > _SHOWN else ""
    return f"{len(rejected)} of {rows} rows cannot be trained on ({counts}):{shown}{more}"


def write_rejected(path: Path, dataset: Dataset, rejected: list[RejectedRow]) -> None:
    """Write rejected rows to a JSON Lines file: the row's number, all its findings, and the row itself.

    A file that cannot be written is said in the log: it must not hide what is wrong with the rows.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for entry in rejected:
                findings = [{**asdict(finding), "row": entry.row} for finding in entry.findings]
                line = {"row": entry.row, "findings": findings, "data": dataset[entry.row]}
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    except OSError as error:
        numbers = ", ".join(str(entry.row) for entry in rejected[:_NUMBERED])
        more = f" and {len(rejected) - _NUMBERED} more" if len(rejected) > _NUMBERED else ""
        logger.warning("%s cannot be written (%s); the rejected rows are %s%s", path, error, numbers, more)


def parse_on_invalid(value: str) -> OnInvalid:
    """Return the policy of this name.

    Raises:
        ConfigError: If there is none.
    """
    try:
        return OnInvalid(value)
    except ValueError:
        raise ConfigError(f"on_invalid is {value!r}", expected="'raise' or 'drop'") from None


def _rules(findings: Iterable[Finding]) -> set[Rule]:
    return {finding.rule for finding in findings}


def _most(counts: Counter[Any]) -> list[tuple[Any, int]]:
    """Return counts, most first, equal ones by name."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))


def _shown(entry: RejectedRow) -> str:
    errors = [finding for finding in entry.findings if finding.severity is Severity.ERROR]
    first = errors[0]
    place = f"row {entry.row}" + (f", `{first.path}`" if first.path else "")
    more = f" (and {len(errors) - 1} more findings)" if len(errors) > 1 else ""
    return f"{place}: {first.found.rstrip('.')}. To fix it: {first.fix.rstrip('.')}.{more}"
