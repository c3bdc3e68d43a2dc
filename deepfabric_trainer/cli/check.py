"""`deepfabric-trainer check`: the rows that are broken, and why."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from deepfabric_trainer.cli.load import load_conversations, load_tokenizer
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.validate import Finding, Rule, Severity, ValidationReport, validate_dataset
from deepfabric_trainer.visible import visible

_Groups: TypeAlias = dict[tuple[Severity, Rule], list[Finding]]
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


def check(rows: str, tokenizer: str | None, most: int, output: str | None = None) -> int:
    """Print the findings of a dataset, up to `most`, and write them all.

    Args:
        rows (`str`): A file of rows, or a dataset on the Hub.
        tokenizer (`str`, *optional*): A tokenizer's folder or name; every row is encoded with its chat template.
        most (`int`): Findings to print.
        output (`str`, *optional*): The JSON Lines file to write every finding to.

    Returns:
        `int`: 1 when rows are broken, else 0.

    Raises:
        ConfigError: If something cannot be loaded, or the findings cannot be written.
    """
    conversations = load_conversations(rows)
    processing_class = load_tokenizer(tokenizer) if tokenizer else None
    progress = Console(stderr=True)
    checked = track(conversations, "Checking rows", console=progress, transient=True, disable=not sys.stderr.isatty())
    report = validate_dataset(checked, processing_class)
    console = Console(soft_wrap=True)
    print_report(report, console, most)
    if output is not None:
        _write(report, output)
        console.print(f"wrote {len(report.findings):,} findings to {output}", markup=False, highlight=False)
    return 0 if report.ok else 1


def print_report(report: ValidationReport, console: Console, most: int = 50) -> None:
    """Print the findings of a report by rule, errors first, then the count of each rule, and the verdict.

    Args:
        report (`ValidationReport`): What was found.
        console (`Console`): Where to print.
        most (`int`, *optional*, defaults to 50): Findings to print. Where there are more, every rule has its share.
    """
    chosen = choose_findings(report.findings, most)
    every = _by_severity_and_rule(report.findings)
    shares = _by_severity_and_rule(chosen)
    for (severity, rule), findings in every.items() if chosen else ():
        console.print(f"\n[bold {_COLOURS[severity]}]{rule} ({severity})[/]: {rule.meaning}", highlight=False)
        share = shares.get((severity, rule), [])
        _print_findings(share, console)
        if len(share) < len(findings):
            console.print(f"  ... and {len(findings) - len(share):,} more", highlight=False)
    if len(chosen) < len(report.findings):
        console.print(f"\n(--most {len(report.findings)} prints all)", highlight=False)
    if every:
        console.print("", _table_of_counts(every), "", sep="\n")
    colour = "red" if not report.ok else "yellow" if every else "green"
    console.print(report.verdict(), style=f"bold {colour}", highlight=False)


def choose_findings(findings: list[Finding], most: int) -> list[Finding]:
    """Return at most so many findings, in order: the first of each rule before the second of any.

    Args:
        findings (`list[Finding]`): All findings.
        most (`int`): How many to return.
    """
    seen: Counter[tuple[Severity, Rule]] = Counter()
    ranks = []
    for index, finding in enumerate(findings):
        ranks.append((seen[finding.severity, finding.rule], index))
        seen[finding.severity, finding.rule] += 1
    return [findings[index] for index in sorted(index for _, index in sorted(ranks)[: max(most, 0)])]


def _by_severity_and_rule(findings: Sequence[Finding]) -> _Groups:
    """Group findings: errors first, then the rule with the most of them."""
    groups: _Groups = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.rule), []).append(finding)
    order = sorted(groups, key=lambda group: (group[0] is Severity.WARNING, -len(groups[group])))
    return {group: groups[group] for group in order}


def _print_findings(findings: list[Finding], console: Console) -> None:
    """Print findings of one rule; a fix that several in a row share comes once, after the last of them."""
    for number, finding in enumerate(findings):
        where = f"row {finding.row}" + (f", {finding.path}" if finding.path else "")
        console.print(f"  [bold]{escape(visible(where))}[/]: {escape(visible(finding.found))}", highlight=False)
        following = findings[number + 1].fix if number + 1 < len(findings) else None
        if finding.fix and finding.fix != following:
            console.print(f"    to fix it: {escape(visible(finding.fix))}", style="dim", highlight=False)


def _table_of_counts(groups: _Groups) -> Table:
    table = Table("rule", "severity", "rows", box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.columns[2].justify = "right"
    for (severity, rule), findings in groups.items():
        rows = len({finding.row for finding in findings})
        table.add_row(rule.value, severity.value, f"{rows:,}", style=_COLOURS[severity])
    return table


def _write(report: ValidationReport, output: str) -> None:
    try:
        report.to_jsonl(output)
    except OSError as error:
        raise ConfigError(
            f"cannot write --output {output}: {error.strerror}", expected="a file that can be written"
        ) from error
