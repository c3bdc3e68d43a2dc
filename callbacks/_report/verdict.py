"""What a run has shown, in one sentence that claims no more than the numbers do."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from deepfabric_trainer.callbacks._journal import RunEvent
from deepfabric_trainer.callbacks._report.record import Measurement, RunRecord, RunStatus
from deepfabric_trainer.toolcalls import wilson_interval

_DIVERGED = ("nan", "inf", "infinity", "divergence", "diverged")
"""Words in the kinds of events that say that training diverged."""
_LEARNED_FROM, _LEARNED_TO = 0.5, 0.5
"""Exact match from below and to above: "learned"; otherwise "got better"."""
_ROSE = 1.5
"""How many times its beginning the loss is at the end of a run that diverged, where nobody said so."""
_ENDS = 5
"""Logs at either end of a run whose median loss is compared."""


class Finding(StrEnum):
    """What a run has shown."""

    IMPROVED = "improved"
    WORSE = "worse"
    UNCLEAR = "unclear"
    """The intervals before and after overlap."""
    ONE_MEASUREMENT = "one measurement"
    """There is nothing to compare with."""
    UNMEASURED = "unmeasured"
    """Nobody measured tool calls."""
    DIVERGED = "diverged"


@dataclass(frozen=True)
class Verdict:
    """What a run has shown.

    Args:
        finding (`Finding`): In a word.
        sentence (`str`): In a sentence.
        remarks (`list[str]`): What else to know before believing it.
    """

    finding: Finding
    sentence: str
    remarks: list[str] = field(default_factory=list)


def verdict_of(record: RunRecord) -> Verdict:
    """Judge a run by its record.

    Better or worse is said only where the 95% intervals of exact match before and after do not overlap, which is
    stricter than a test of the difference. Compared are the first measurement and that of the model which the run
    leaves: the best checkpoint where it is loaded at the end, the last otherwise.

    Args:
        record (`RunRecord`): Of a run that goes on, too; then the sentence says so.

    Returns:
        `Verdict`: What it has shown, and remarks.
    """
    measured = record.measurements
    diverged = _divergence(record)
    verdict = _of_divergence(diverged, measured) if diverged else _of_measurements(record, measured)
    return Verdict(verdict.finding, _where_it_stands(record) + verdict.sentence, verdict.remarks)


def _where_it_stands(record: RunRecord) -> str:
    if record.status is RunStatus.RUNNING:
        return f"Not finished (step {record.step:,} of {record.max_steps:,}). "
    if record.status is not RunStatus.FINISHED:
        how = "was interrupted" if record.status is RunStatus.INTERRUPTED else "ended unexpectedly"
        cause = f" ({record.error})" if record.error else ""
        return f"The run {how} at step {record.step:,} of {record.max_steps:,}{cause}. "
    return ""


def _of_measurements(record: RunRecord, measured: list[Measurement]) -> Verdict:
    if not measured:
        return _unmeasured(record)
    first, last = measured[0], _left_with(record, measured)
    remarks = _remarks(record, measured, last)
    if len(measured) == 1:
        when = f"after {_steps(last.step)}" if last.step else "before training"
        missing = "nothing before training" if last.step else "nothing after it"
        sentence = f"Exact match is {_with_interval(last)} {when}; {missing} was measured to compare with."
        return Verdict(Finding.ONE_MEASUREMENT, sentence, remarks)
    change = f"exact match {first.exact_match:.2f} → {_with_interval(last)}"
    span = f"in {_steps(last.step)}" if first.step == 0 else f"from step {first.step:,} to step {last.step:,}"
    if last.low > first.high:
        learned = first.exact_match < _LEARNED_FROM and last.exact_match > _LEARNED_TO
        claim = "learned to call tools" if learned else "got better at calling tools"
        return Verdict(Finding.IMPROVED, f"The model {claim}: {change} {span}{_how_it_ended(record)}.", remarks)
    if last.high < first.low:
        claim = f"The model got worse at calling tools: {change} {span}{_how_it_ended(record)}."
        return Verdict(Finding.WORSE, claim, remarks)
    overlap = f"the 95% intervals ({_interval(first)} and {_interval(last)}) overlap"
    change = f"exact match {first.exact_match:.2f} → {last.exact_match:.2f} {span}"
    return Verdict(
        Finding.UNCLEAR, f"No evidence of improvement: {change}, and {overlap}{_how_it_ended(record)}.", remarks
    )


def _unmeasured(record: RunRecord) -> Verdict:
    losses = [pair for pair in record.series("loss") if math.isfinite(pair[1])]
    seen = f" The training loss went {losses[0][1]:.3g} → {losses[-1][1]:.3g}" if len(losses) > 1 else ""
    seen = f"{seen} in {_steps(losses[-1][0])}, which says little about calls." if seen else ""
    remark = "Add `SampleGenerationCallback` with held-out rows to measure tool calls by generation."
    return Verdict(Finding.UNMEASURED, f"Nothing measured tool calls.{seen}", [remark])


def _left_with(record: RunRecord, measured: list[Measurement]) -> Measurement:
    """Return the measurement of the model that the run leaves."""
    if record.ends_with_best and record.best_step is not None:
        return next((one for one in measured if one.step == record.best_step), measured[-1])
    return measured[-1]


def _how_it_ended(record: RunRecord) -> str:
    parts = []
    if record.stopped_early:
        parts.append(f"stopped early at step {record.step:,} of {record.max_steps:,}")
    if record.best_step is not None:
        parts.append(f"best checkpoint step {record.best_step:,}")
    return f"; {', '.join(parts)}" if parts else ""


def _remarks(record: RunRecord, measured: list[Measurement], last: Measurement) -> list[str]:
    remarks = []
    best = max(measured, key=lambda one: one.exact_match)
    if best.low > last.high:
        remarks.append(
            f"It was better before: {_with_interval(best)} at step {best.step:,}. Keep that checkpoint "
            '(`load_best_model_at_end=True`, `metric_for_best_model="eval_tool_call_exact_match"`).'
        )
    chosen = record.ends_with_best and record.best_step == last.step and last.exact_match > measured[0].exact_match
    if chosen and len(measured) > 2:
        remarks.append(
            f"The checkpoint was chosen among {len(measured)} measurements on the same turns, so its figure is a "
            "little too good; measure it on other rows before you quote it."
        )
    remarks += _false_calls(measured[0], last)
    changed = _changed_turns(record)
    if changed is not None:
        became_right, became_wrong, both = changed
        remarks.append(
            f"Of the {both:,} turns measured both first and last, {became_right:,} became right and "
            f"{became_wrong:,} became wrong."
        )
    if last.turns is not None and last.turns < 30:
        remarks.append(f"{last.turns} turns are few: the interval is wide. Raise `num_samples` for a sharper answer.")
    return remarks


def _false_calls(first: Measurement, last: Measurement) -> list[str]:
    """Warn of a model that now calls where it should talk, which exact match over all turns can hide."""
    intervals, shares = [], []
    for one in (first, last):
        turns, with_call = one.turns or 0, one.metrics.get("turns_with_call")
        share = one.metrics.get("false_call")
        if with_call is None or share is None:
            return []
        without_call = max(0, round(turns - with_call))
        intervals.append(wilson_interval(round(share * without_call), without_call))
        shares.append(share)
    if intervals[1][0] <= intervals[0][1]:
        return []
    return [f"False calls rose: {shares[0]:.2f} → {shares[1]:.2f} of the turns that expect no call."]


def _changed_turns(record: RunRecord) -> tuple[int, int, int] | None:
    if len(record.results) < 2 or record.results[0].step == record.results[-1].step:
        return None
    by_turn = [
        {(sample.row, len(sample.prompt)): sample.score.exact_match for sample in result.samples}
        for result in (record.results[0], record.results[-1])
    ]
    both = [(by_turn[0][turn], right) for turn, right in by_turn[1].items() if turn in by_turn[0]]
    if not both:
        return None
    return sum(after > before for before, after in both), sum(after < before for before, after in both), len(both)


def _divergence(record: RunRecord) -> str | None:
    """Say when and how training diverged, `None` if it did not, or came back."""
    losses = record.series("loss")
    if losses and not math.isfinite(losses[-1][1]):
        start = next(step for step, value in losses if not math.isfinite(value))
        became = "NaN" if math.isnan(losses[-1][1]) else "infinite"
        return f"at step {start:,}: the loss became {became}"
    for event in record.events:
        if _says_diverged(event) and event.action == "stop":
            return f"at step {event.step:,}: {event.message.rstrip('.')}"
    values = [value for _, value in losses]
    if len(values) >= 2 * _ENDS:
        first, last = values[:_ENDS], values[-_ENDS:]
        before, after = median(first), median(last)
        # Losses of single batches scatter so much that the medians alone are apart by chance.
        if before > 0 and after > _ROSE * before and min(last) > max(first):
            lowest, step = min((value, step) for step, value in losses)
            return (
                f"after step {step:,}: the loss rose from {lowest:.3g} to {after:.3g}, above its {before:.3g} at first"
            )
    return None


def _says_diverged(event: RunEvent) -> bool:
    return event.severity == "critical" and not set(_DIVERGED).isdisjoint(event.kind.lower().split("_"))


def _of_divergence(cause: str, measured: list[Measurement]) -> Verdict:
    remarks = ["Do not use its last weights; take a checkpoint from before, and lower the learning rate."]
    if measured:
        last = measured[-1]
        remarks.append(f"The last measurement: exact match {_with_interval(last)} at step {last.step:,}.")
    return Verdict(Finding.DIVERGED, f"Training diverged {cause}.", remarks)


def _with_interval(one: Measurement) -> str:
    return f"{one.exact_match:.2f} (95% interval {_interval(one)})"


def _interval(one: Measurement) -> str:
    return f"{one.low:.2f}–{one.high:.2f}"


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"
