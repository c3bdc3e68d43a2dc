from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from deepfabric_trainer.validate.report import Rule, Severity

_JOINED = 5


class Broken(NamedTuple):
    """A rule broken at a place of a conversation: a finding without its row."""

    path: str
    rule: Rule
    found: str
    fix: str
    severity: Severity = Severity.ERROR


def merge(broken: Iterable[Broken]) -> list[Broken]:
    """Return one for each path and rule, in order; what was found there more than once is joined."""
    groups: dict[tuple[str, Rule], list[Broken]] = {}
    for one in broken:
        groups.setdefault((one.path, one.rule), []).append(one)
    return [group[0] if len(group) == 1 else _join(group) for group in groups.values()]


def dotted(path: Iterable[str | int]) -> str:
    """Return a path as code writes it: `properties.city.enum[0]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def shown(value: Any, limit: int = 60) -> str:
    """Return a value's `repr`, shortened."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(texts: Iterable[str], limit: int = _JOINED) -> str:
    """Return different texts as one, with a count of those beyond the limit."""
    different: Sequence[str] = list(dict.fromkeys(texts))
    more = [f"and {len(different) - limit} more"] if len(different) > limit else []
    return "; ".join([*different[:limit], *more])


def _join(group: Sequence[Broken]) -> Broken:
    severities = {one.severity for one in group}
    return group[0]._replace(
        found=listed(one.found for one in group),
        fix=listed(one.fix for one in group),
        severity=Severity.ERROR if Severity.ERROR in severities else Severity.WARNING,
    )
