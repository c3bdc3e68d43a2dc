"""Comparing the calls of a turn with the expected ones, and averaging over turns."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema.tools import normalize_tools
from deepfabric_trainer.toolcalls.parsing import ParsedResponse

_MALFORMED_CALL = {"name": "", "arguments": {}}


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
    """

    exact_match: int
    name: int
    arguments: int
    schema_valid: int
    false_call: int
    missed_call: int
    decision: int


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
    made = [_function(call, f"predicted[{index}]") for index, call in enumerate(predicted or [])]
    wanted = [_function(call, f"expected[{index}]") for index, call in enumerate(expected or [])]
    called, asked = Counter(name for name, _ in made), Counter(name for name, _ in wanted)
    schemas = _schemas(tools)
    return ToolCallScore(
        exact_match=int(_canonical_calls(made) == _canonical_calls(wanted)),
        name=int(called == asked),
        arguments=int(_arguments_equal(made, wanted)),
        schema_valid=int(all(_satisfies(name, arguments, schemas) for name, arguments in made)),
        false_call=int(bool(made) and not wanted),
        missed_call=int(bool(wanted) and not made),
        decision=int(bool(made) == bool(wanted)),
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
    return replace(score, arguments=0, schema_valid=0)


def summarize_scores(
    scores: Sequence[ToolCallScore], *, parsed: Sequence[bool], expects_call: Sequence[bool]
) -> dict[str, float]:
    """Average the scores of several turns.

    Args:
        scores (`list[ToolCallScore]`): One a turn.
        parsed (`list[bool]`): For each turn, whether its output parsed.
        expects_call (`list[bool]`): For each turn, whether a call was expected.

    Returns:
        `dict[str, float]`: The mean of each field of [`ToolCallScore`], `parsed`, `turns`, `turns_with_call`, and the
        95% Wilson interval `exact_match_low`, `exact_match_high`. `false_call` is a share of the turns that expect no
        call and `missed_call` of those that expect one (0.0 without such a turn); the others are shares of all.
    """
    turns, with_call = len(scores), sum(map(bool, expects_call))
    over = {"false_call": turns - with_call, "missed_call": with_call}
    totals = {field.name: sum(getattr(score, field.name) for score in scores) for field in fields(ToolCallScore)}
    summary = {name: total / max(over.get(name, turns), 1) for name, total in totals.items()}
    low, high = wilson_interval(totals["exact_match"], turns)
    summary |= {"exact_match_low": low, "exact_match_high": high}
    return summary | {"parsed": sum(map(bool, parsed)) / max(turns, 1), "turns": turns, "turns_with_call": with_call}


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
    return max(0.0, center - spread), min(1.0, center + spread)


def _function(call: Mapping[str, Any], path: str) -> tuple[str, Any]:
    """Return a call's name and arguments; a JSON string becomes its value, and stays when it is not JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataFormatError(
            f"a tool call without a name: {call!r}",
            expected='`{"function": {"name": ..., "arguments": ...}}` or `{"name": ..., "arguments": ...}`',
            path=path,
        )
    arguments = function.get("arguments", {})
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return function["name"], arguments
    return function["name"], arguments


def _canonical(value: Any) -> Any:
    """Return a hashable value that is equal exactly when the JSON values are equal with their types."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return type(value).__name__, value
    if isinstance(value, Mapping):
        return "object", frozenset((key, _canonical(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return "array", tuple(map(_canonical, value))
    return "number", value


def _canonical_calls(calls: list[tuple[str, Any]]) -> Counter[Any]:
    return Counter((name, _canonical(arguments)) for name, arguments in calls)


def _arguments_equal(made: list[tuple[str, Any]], wanted: list[tuple[str, Any]]) -> bool:
    """Match calls of one name first, the leftovers with each other, and compare the arguments of every pair.

    Equality is transitive, so the best matching is multiset arithmetic: no search is needed.
    """
    extra = _canonical_calls(made) - _canonical_calls(wanted)
    missing = _canonical_calls(wanted) - _canonical_calls(made)
    if {name for name, _ in extra} & {name for name, _ in missing}:
        return False
    return _arguments_of(extra) == _arguments_of(missing)


def _arguments_of(calls: Counter[Any]) -> Counter[Any]:
    return Counter(arguments for _, arguments in calls.elements())


def _schemas(tools: Sequence[Mapping[str, Any]] | str | None) -> dict[str, Any] | None:
    if tools is None or (not isinstance(tools, str) and len(tools) == 0):
        return None if tools is None else {}
    declared = normalize_tools(tools, set())
    return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in declared or []}


def _satisfies(name: str, arguments: Any, schemas: dict[str, Any] | None) -> bool:
    if not isinstance(arguments, Mapping) or (schemas is not None and name not in schemas):
        return False
    if schemas is None:
        return True
    from jsonschema import Draft202012Validator
    from referencing import Registry

    try:
        # An empty registry: a `$ref` of the user's must not reach out to the network.
        return bool(Draft202012Validator(schemas[name], registry=Registry()).is_valid(dict(arguments)))
    except Exception:
        return True
