"""What there is to say about a row, as short text that its examples carry along, and the way back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from deepfabric_trainer.encode import Context
from deepfabric_trainer.encode.examples import PackedExample
from deepfabric_trainer.prepare.rows import PreparedRow
from deepfabric_trainer.validate import Finding, Rule, Severity

_BATCH = 10_000


@dataclass(frozen=True)
class Accounts:
    """The accounts of a dataset.

    Args:
        by_text (`list[tuple[dict, list[int]]]`): Each different account, in the order in which they come first, with
            the numbers of the rows that it is of.
        rows_of_examples (`np.ndarray`): The number of the row that each example is of, but for rejected rows.
        kept (`np.ndarray`, *optional*): The entries that are examples; `None` when all are.
        rows (`int`): How many rows there are accounts of, rejected ones among them.
    """

    by_text: list[tuple[dict[str, Any], list[int]]]
    rows_of_examples: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64] | None
    rows: int

    @property
    def have_weights(self) -> bool:
        """Whether an example has weights of its own."""
        return any("weighted" in account for account, _ in self.by_text)


def read_accounts(entries: Dataset) -> Accounts:
    """Return the accounts of prepared rows.

    Args:
        entries (`Dataset`): Of the columns `row` and `account`; it is read bit by bit.
    """
    rows: list[npt.NDArray[np.int64]] = []
    of_text: dict[str, list[int]] = {}
    for table in entries.with_format("arrow").iter(_BATCH):
        numbers = table.column("row").to_numpy()
        rows.append(numbers)
        texts = table.column("account")
        there = texts.is_valid().to_numpy()
        if there.any():
            for number, text in zip(numbers[there].tolist(), texts.drop_null().to_pylist(), strict=True):
                of_text.setdefault(text, []).append(number)
    by_text = [(json.loads(text), numbers) for text, numbers in of_text.items()]
    row_of_entry = np.concatenate(rows) if rows else np.empty(0, np.int64)
    count = len(np.unique(row_of_entry))
    rejected = [number for account, numbers in by_text if "rejected" in account for number in numbers]
    if not rejected:
        return Accounts(by_text, row_of_entry, None, count)
    kept = np.flatnonzero(~np.isin(row_of_entry, rejected))
    return Accounts(by_text, row_of_entry[kept], kept, count)


def read_findings(account: Mapping[str, Any], row: int) -> list[Finding]:
    """Return the findings that the account of a row holds."""
    return [
        Finding(row, path, Rule(rule), found, fix, Severity(severity))
        for path, rule, found, fix, severity in account.get("findings", ())
    ]


def account_of_row(prepared: PreparedRow) -> dict[str, Any]:
    """Return what there is to say about a row as a whole."""
    encoded = prepared.encoded
    account: dict[str, Any] = {"rejected": encoded is None}
    account["findings"] = [(one.path, one.rule, one.found, one.fix, one.severity) for one in prepared.findings]
    if encoded is not None:
        account |= {
            "repairs": sorted(repair.name for repair in encoded.repairs),
            "dropped_messages": encoded.dropped_messages,
            "shortened_results": encoded.shortened_results,
            "dropped_reasoning": encoded.dropped_reasoning,
            "leaves_no_choice": encoded.leaves_no_choice,
        }
    return {name: value for name, value in account.items() if value}


def account_of_example(example: PackedExample | None) -> dict[str, Any]:
    """Return what there is to say about an example."""
    if example is None:
        return {}
    account = {
        "contexts": [context.name for context in example.contexts if context is not Context.EXACT],
        "unstopped_turns": example.unstopped_turns,
        "lost_reasoning": example.lost_reasoning,
        "weighted": bool(example.weights),
    }
    return {name: value for name, value in account.items() if value}
