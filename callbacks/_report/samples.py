"""Generated turns beside the recorded ones, field by field."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deepfabric_trainer.callbacks._measurements import GenerationResult, TurnSample
from deepfabric_trainer.callbacks._report.text import Cut, cut
from deepfabric_trainer.toolcalls import score_tool_calls

MOST_SAMPLES = 120
_MOST_MESSAGES = 12
_MOST_CALLS = 16
_MOST_FIELDS = 40
_TEXT, _PROMPT, _VALUE = 4000, 1500, 1000
"""Characters shown of a generated turn, of a message of the prompt, and of an argument."""


class Outcome(StrEnum):
    """How a generated turn compares with the recorded one."""

    RIGHT = "right"
    WRONG = "wrong"
    """A call where one was expected, and not the same."""
    FALSE_CALL = "false call"
    MISSED_CALL = "missed call"
    MALFORMED = "malformed"


@dataclass(frozen=True)
class ComparedField:
    """An argument of a call, or its name.

    Args:
        name (`str`): Its name.
        relation (`str`): `"equal"`, `"different"`, `"missing"` (expected, not generated) or `"extra"`.
        expected (`Cut`, *optional*): The recorded value as JSON.
        generated (`Cut`, *optional*): The generated one.
    """

    name: str
    relation: str
    expected: Cut | None
    generated: Cut | None


@dataclass(frozen=True)
class ComparedCall:
    """A recorded call and the generated one that is taken for it; one of them may be missing."""

    relation: str
    fields: list[ComparedField]
    left_out: int


@dataclass(frozen=True)
class Message:
    """A message of the prompt."""

    role: str
    text: Cut


@dataclass(frozen=True)
class ComparedTurn:
    """A generated turn beside the recorded one."""

    row: int
    outcome: Outcome
    tools: list[int]
    """Which of the tools of all samples it is about, by their number."""
    request: Cut
    prompt: list[Message]
    messages_left_out: int
    calls: list[ComparedCall]
    calls_left_out: int
    expected_text: Cut
    generated_text: Cut
    error: Cut | None
    before: Cut | None
    before_outcome: Outcome | None


@dataclass(frozen=True)
class Samples:
    """The turns of a measurement.

    Args:
        step (`int`): Its step.
        before_step (`int`, *optional*): The step of the first measurement, if that is another.
        turns (`list[ComparedTurn]`): By row.
        left_out (`int`): Turns beyond those shown.
        counts (`dict[str, int]`): Turns by outcome, also those left out.
        tools (`list[str]`): The tools that were expected or called.
    """

    step: int
    before_step: int | None
    turns: list[ComparedTurn]
    left_out: int
    counts: dict[str, int]
    tools: list[str]


def compare_samples(results: Sequence[GenerationResult]) -> Samples | None:
    """Compare the turns of the last measurement with what was recorded, and with the first measurement.

    Args:
        results (`Sequence[GenerationResult]`): The first and the last; wrong turns are shown before right ones where
            there are more than `MOST_SAMPLES`.

    Returns:
        `Samples`: `None` without a measurement.
    """
    if not results or not results[-1].samples:
        return None
    first, last = results[0], results[-1]
    earlier = {}
    if first.step != last.step:
        earlier = {_turn(sample): sample for sample in first.samples}
    outcomes = [outcome_of(sample) for sample in last.samples]
    numbers = range(len(outcomes))
    chosen = sorted(sorted(numbers, key=lambda at: outcomes[at] is Outcome.RIGHT)[:MOST_SAMPLES])
    names = sorted({name for at in chosen for name in _tool_names(last.samples[at])})
    known = {name: number for number, name in enumerate(names)}
    counts = Counter(outcomes)
    return Samples(
        step=last.step,
        before_step=first.step if earlier else None,
        turns=[
            _compared(last.samples[at], outcomes[at], known, earlier.get(_turn(last.samples[at]))) for at in chosen
        ],
        left_out=len(outcomes) - len(chosen),
        counts={outcome.value: counts[outcome] for outcome in Outcome if counts[outcome]},
        tools=[cut(name, 80).text for name in names],
    )


def outcome_of(sample: TurnSample) -> Outcome:
    """Say in a word how a generated turn compares."""
    if sample.parsed.error is not None:
        return Outcome.MALFORMED
    if sample.score.false_call:
        return Outcome.FALSE_CALL
    if sample.score.missed_call:
        return Outcome.MISSED_CALL
    return Outcome.RIGHT if sample.score.exact_match else Outcome.WRONG


def compare_calls(expected: Sequence[Mapping[str, Any]], generated: Sequence[Mapping[str, Any]]) -> list[ComparedCall]:
    """Pair calls, the most alike first, and compare them field by field; what is left stands alone.

    Args:
        expected (`Sequence[Mapping[str, Any]]`): The recorded calls.
        generated (`Sequence[Mapping[str, Any]]`): The generated ones.

    Returns:
        `list[ComparedCall]`: In the order of `expected`, then the extra ones.
    """
    wanted, made = [[_function(call) for call in calls] for calls in (expected, generated)]
    likeness = sorted(
        ((_likeness(want, make), -at, -to) for at, want in enumerate(wanted) for to, make in enumerate(made)),
        reverse=True,
    )
    partner: dict[int, int] = {}
    for _, at, to in likeness:
        if -at not in partner and -to not in partner.values():
            partner[-at] = -to
    pairs = [(want, made[partner[at]] if at in partner else None) for at, want in enumerate(wanted)]
    extra = [(None, make) for to, make in enumerate(made) if to not in partner.values()]
    return [_compared_call(want, make) for want, make in [*pairs, *extra]]


_Function = tuple[str, dict[str, Any]]


def _function(call: Mapping[str, Any]) -> _Function:
    function = call.get("function", call)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return str(function.get("name")), arguments if isinstance(arguments, dict) else {"arguments": arguments}


def _likeness(want: _Function, make: _Function) -> tuple[bool, int]:
    alike = sum(name in make[1] and _equal(value, make[1][name]) for name, value in want[1].items())
    return want[0] == make[0], alike


def _equal(one: Any, other: Any) -> bool:
    """Compare as the scores do."""
    one_call, other_call = ([{"name": "f", "arguments": {"value": value}}] for value in (one, other))
    return bool(score_tool_calls(one_call, other_call, None).exact_match)


def _compared_call(want: _Function | None, make: _Function | None) -> ComparedCall:
    if want is None or make is None:
        name, arguments = want or make or ("", {})
        relation = "extra" if want is None else "missing"
        fields = [_field("", relation, name, name)]
        fields += [_field(key, relation, _json(value), _json(value)) for key, value in arguments.items()]
    else:
        fields = [_field("", "equal" if want[0] == make[0] else "different", want[0], make[0])]
        for key in dict.fromkeys([*want[1], *make[1]]):
            relation = "extra" if key not in want[1] else "missing" if key not in make[1] else "equal"
            if relation == "equal" and not _equal(want[1][key], make[1][key]):
                relation = "different"
            fields.append(_field(key, relation, _json(want[1].get(key)), _json(make[1].get(key))))
        relation = "equal" if all(field.relation == "equal" for field in fields) else "different"
    return ComparedCall(relation, fields[:_MOST_FIELDS], max(0, len(fields) - _MOST_FIELDS))


def _field(name: str, relation: str, expected: str, generated: str) -> ComparedField:
    return ComparedField(
        cut(name, 120).text,
        relation,
        None if relation == "extra" else cut(expected, _VALUE),
        None if relation == "missing" else cut(generated, _VALUE),
    )


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return str(value)


def _compared(
    sample: TurnSample, outcome: Outcome, known: Mapping[str, int], before: TurnSample | None
) -> ComparedTurn:
    calls = compare_calls(sample.expected_calls, sample.parsed.tool_calls)
    shown = sample.prompt[-_MOST_MESSAGES:]
    asked = [message for message in sample.prompt if message.get("role") == "user"] or sample.prompt
    return ComparedTurn(
        row=sample.row,
        outcome=outcome,
        tools=sorted({known[name] for name in _tool_names(sample)}),
        request=cut(_content(asked[-1]).strip() if asked else "", 160),
        prompt=[Message(cut(str(message.get("role")), 40).text, cut(_content(message), _PROMPT)) for message in shown],
        messages_left_out=len(sample.prompt) - len(shown),
        calls=calls[:_MOST_CALLS],
        calls_left_out=max(0, len(calls) - _MOST_CALLS),
        expected_text=cut(sample.expected_text or "", _TEXT),
        generated_text=cut(sample.predicted_text, _TEXT),
        error=None if sample.parsed.error is None else cut(sample.parsed.error, _VALUE),
        before=None if before is None else cut(before.predicted_text, _VALUE),
        before_outcome=None if before is None else outcome_of(before),
    )


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else "" if content is None else _json(content)
    calls = [f"{name}({_json(arguments)})" for name, arguments in map(_function, message.get("tool_calls") or [])]
    return "\n".join([text, *calls] if text else calls)


def _tool_names(sample: TurnSample) -> set[str]:
    return {_function(call)[0] for call in [*sample.expected_calls, *sample.parsed.tool_calls]}


def _turn(sample: TurnSample) -> tuple[int, int]:
    return sample.row, len(sample.prompt)
