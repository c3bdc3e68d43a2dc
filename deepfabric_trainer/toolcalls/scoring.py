"""Comparing the calls of a turn with the expected ones, and averaging over turns."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from deepfabric_trainer.toolcalls.comparison import Call, canonical_calls, functions_of
from deepfabric_trainer.toolcalls.parsing import ParsedResponse
from deepfabric_trainer.toolcalls.schema_checks import declared_schemas, has_right_types, is_executable, satisfies

_MALFORMED_CALL = {"name": "", "arguments": {}}
OVERALL_WEIGHTS = {"name": 0.40, "parameter_types": 0.35, "valid_call": 0.25}
"""What each part of [`overall_score`] weighs, as in DeepFabric's evaluator."""


@dataclass(frozen=True)
class ToolCallScore:
    """How a turn's calls compare with the expected ones; every field is 0 or 1.

    Args:
        exact_match (`int`): Names and arguments are equal, with nothing missing and nothing extra.
        name (`int`): The multiset of called names is the expected one.
        arguments (`int`): Under the best one-to-one matching of calls (equal names first), all arguments are equal
            as typed JSON: `1 == 1.0`, `"1" != 1`, `True != 1`, keys in any order, lists in order.
        schema_valid (`int`): Every call names a declared tool and its arguments satisfy that tool's schema.
        false_call (`int`): A call is made where none is expected.
        missed_call (`int`): No call is made where one is expected.
        decision (`int`): A call is made exactly when one is expected.
        parameter_types (`int`): No expected call is missed as a whole, every call names a declared tool, and its
            arguments are of the types that the tool's schema declares, at any depth. Values do not matter.
        valid_call (`int`): No expected call is missed as a whole, and every call could be executed: it names a
            declared tool and gives all arguments that the tool requires.
    """

    exact_match: int
    name: int
    arguments: int
    schema_valid: int
    false_call: int
    missed_call: int
    decision: int
    parameter_types: int = field(default=0, compare=False)
    valid_call: int = field(default=0, compare=False)


def score_tool_calls(
    predicted: Sequence[Mapping[str, Any]] | None,
    expected: Sequence[Mapping[str, Any]] | None,
    tools: Sequence[Mapping[str, Any]] | str | None,
) -> ToolCallScore:
    """Compare the calls of one turn with the expected ones.

    With nothing expected and nothing predicted everything is right.

    Args:
        predicted (`list[dict]`, *optional*): Calls, `{"function": {"name", "arguments"}}` or `{"name", "arguments"}`;
            arguments are dicts or JSON strings.
        expected (`list[dict]`, *optional*): The recorded calls, likewise.
        tools (`list[dict]` or `str`, *optional*): The declared tools (or their JSON). `None` means that the
            declarations are not known: then `schema_valid` asks only that arguments are objects. A tool without
            parameters, or with a schema that JSON Schema (Draft 2020-12) cannot apply, accepts every object.

    Returns:
        `ToolCallScore`: Fields of 0 and 1.

    Raises:
        DataFormatError: If a call has no name.
    """
    made, wanted = functions_of(predicted, "predicted"), functions_of(expected, "expected")
    called, asked = Counter(name for name, _ in made), Counter(name for name, _ in wanted)
    schemas, is_missed = declared_schemas(tools), bool(wanted) and not made
    return ToolCallScore(
        exact_match=int(canonical_calls(made) == canonical_calls(wanted)),
        name=int(called == asked),
        arguments=int(_arguments_equal(made, wanted)),
        schema_valid=int(all(satisfies(name, arguments, schemas) for name, arguments in made)),
        false_call=int(bool(made) and not wanted),
        missed_call=int(is_missed),
        decision=int(bool(made) == bool(wanted)),
        parameter_types=int(not is_missed and all(has_right_types(name, given, schemas) for name, given in made)),
        valid_call=int(not is_missed and all(is_executable(name, given, schemas) for name, given in made)),
    )


def score_response(
    response: ParsedResponse, expected: Sequence[Mapping[str, Any]] | None, tools: Sequence[Mapping[str, Any]] | None
) -> ToolCallScore:
    """Score a parsed turn. A malformed call counts as a call that was made and is wrong.

    Args:
        response (`ParsedResponse`): The predicted turn.
        expected (`list[dict]`, *optional*): The recorded calls.
        tools (`list[dict]`, *optional*): The declared tools.

    Returns:
        `ToolCallScore`: Fields of 0 and 1.
    """
    if response.error is None:
        return score_tool_calls(response.tool_calls, expected, tools)
    score = score_tool_calls([*response.tool_calls, _MALFORMED_CALL], expected, tools)
    return replace(score, arguments=0, schema_valid=0, parameter_types=0, valid_call=0)


def summarize_scores(
    scores: Sequence[ToolCallScore], *, parsed: Sequence[bool], expects_call: Sequence[bool]
) -> dict[str, float]:
    """Average the scores of several turns.

    Args:
        scores (`list[ToolCallScore]`): One a turn.
        parsed (`list[bool]`): For each turn, whether its output parsed.
        expects_call (`list[bool]`): For each turn, whether a call was expected.

    Returns:
        `dict[str, float]`: The mean of each field of [`ToolCallScore`] and of `parsed`, each with its 95% Wilson
        interval (`exact_match_low`, `exact_match_high`, ...); `overall_score`, see [`overall_score`]; `turns` and
        `turns_with_call`. `false_call` is a share of the turns that expect no call and `missed_call` of those that
        expect one (0.0 without such a turn); the others are shares of all. `overall_score` has no interval: it is a
        weighted sum of shares of the same turns, not a share.
    """
    turns, with_call = len(scores), sum(map(bool, expects_call))
    over = {"false_call": turns - with_call, "missed_call": with_call}
    totals = {one.name: sum(getattr(score, one.name) for score in scores) for one in fields(ToolCallScore)}
    summary: dict[str, float] = {}
    for name, total in {**totals, "parsed": sum(map(bool, parsed))}.items():
        low, high = wilson_interval(total, over.get(name, turns))
        summary |= {name: total / max(over.get(name, turns), 1), f"{name}_low": low, f"{name}_high": high}
    summary["overall_score"] = overall_score(scores, expects_call=expects_call)
    return summary | {"turns": turns, "turns_with_call": with_call}


def overall_score(scores: Sequence[ToolCallScore], *, expects_call: Sequence[bool]) -> float:
    """Return DeepFabric's weighted score of tool calling, in [0, 1].

    It is 0.40 tool selection + 0.35 parameter types + 0.25 valid calls. Each of the three is a share of the turns in
    which a call is expected or made, so that turns of mere text neither raise nor lower it:

    - tool selection: `name`, the called tools are the expected ones;
    - parameter types: `parameter_types`, the arguments are of the types that the schemas declare;
    - valid calls: `valid_call`, the tools are declared and no required argument is missing.

    As in DeepFabric's evaluator, values of arguments do not matter. Unlike there a turn may have several calls, and a
    call where none is expected has the wrong tool.

    Args:
        scores (`list[ToolCallScore]`): One a turn.
        expects_call (`list[bool]`): For each turn, whether a call was expected.

    Returns:
        `float`: The score; 0.0 if there is no such turn.
    """
    concerned = [score for score, expects in zip(scores, expects_call, strict=True) if expects or score.false_call]
    weighted: float = sum(
        weight * getattr(score, name) for score in concerned for name, weight in OVERALL_WEIGHTS.items()
    )
    return weighted / max(len(concerned), 1)


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson, JASA 22, 1927), `(0.0, 1.0)` when `total` is 0.

    Args:
        successes (`int`): How often it happened.
        total (`int`): How often it could have.

    Returns:
        `tuple[float, float]`: Lower and upper bound, both in [0, 1].

    Example:
        >>> [round(bound, 3) for bound in wilson_interval(8, 10)]
        [0.49, 0.943]
    """
    if total == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share, scale = successes / total, 1 + z * z / total
    center = (share + z * z / (2 * total)) / scale
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    # Where nothing or everything is a success one bound is the share itself, but for rounding.
    low = center - spread if successes else 0.0
    return low, (center + spread if successes < total else 1.0)


def _arguments_equal(made: list[Call], wanted: list[Call]) -> bool:
    """Match calls of one name first, the leftovers with each other, and compare the arguments of every pair.

    Equality is transitive, so the best matching is multiset arithmetic: no search is needed.
    """
    extra = canonical_calls(made) - canonical_calls(wanted)
    missing = canonical_calls(wanted) - canonical_calls(made)
    if {name for name, _ in extra} & {name for name, _ in missing}:
        return False
    return _arguments_of(extra) == _arguments_of(missing)


def _arguments_of(calls: Counter[Any]) -> Counter[Any]:
    return Counter(arguments for _, arguments in calls.elements())
