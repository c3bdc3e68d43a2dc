"""`deepfabric-trainer check`: the rows that are broken, and why."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepfabric_trainer.cli.load import load_conversations, load_tokenizer
from deepfabric_trainer.validate import Finding, Severity, ValidationReport, validate_dataset


def check(rows: str, tokenizer: str | None, most: int) -> int:
    """Print every finding of a dataset, up to `most`.

    Returns:
        `int`: 1 when rows are broken, else 0.
    """
    conversations = load_conversations(rows)
    report = validate_dataset(conversations, load_tokenizer(tokenizer) if tokenizer else None)
    print_report(report, Console(soft_wrap=True), most)
    return 0 if report.ok else 1


def print_report(report: ValidationReport, console: Console, most: int = 50) -> None:
    """Print the findings of a report, the count of each rule, and the verdict.

    Args:
        report (`ValidationReport`): What was found.
        console (`Console`): Where to print.
        most (`int`, *optional*, defaults to 50): Findings to print.
    """
    for finding in report.findings[:most]:
        _print_finding(finding, console)
    if len(report.findings) > most:
        console.print(f"... and {len(report.findings) - most:,} more (--most {len(report.findings)} prints all)")
    if report.findings:
        table = Table("rule", "rows", box=None, pad_edge=False, header_style="bold")
        for rule, count in report.counts().items():
            table.add_row(rule.value, f"{count:,}")
        console.print(table)
    broken = len(report.broken_rows)
    if broken:
        console.print(f"[bold red]{broken:,} of {report.rows:,} rows are broken.[/]")
    else:
        warned = len({finding.row for finding in report.findings})
        more = f", {warned:,} with warnings" if warned else ""
        console.print(f"[bold green]All {report.rows:,} rows can be trained on{more}.[/]")


def _print_finding(finding: Finding, console: Console) -> None:
    colour = "red" if finding.severity is Severity.ERROR else "yellow"
    where = f"row {finding.row}" + (f", {finding.path}" if finding.path else "")
    console.print(
        f"[{colour}]{finding.severity}[/] [bold]{escape(where)}[/]: {escape(finding.found)} ({finding.rule})"
    )
    if finding.fix:
        console.print(f"      to fix it: {escape(finding.fix)}", style="dim")
