"""JSON Schema's `pattern`s, which come with the data, matched within a bound of time.

A pattern such as `^(a+)+$` takes Python's `re` years on forty characters. `regex`, which `transformers` needs anyway,
can be given a time.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

SECONDS = 0.2
"""For one pattern on one text."""


@lru_cache(maxsize=16)
def with_bounded_patterns(dialect: type[Validator]) -> type[Validator]:
    """Return a validator class whose patterns raise `TimeoutError` where they would take too long.

    Args:
        dialect (`type[Validator]`): A class of `jsonschema`.
    """
    keywords = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    own: type[Validator] = extend(
        dialect, {name: check for name, check in keywords.items() if name in dialect.VALIDATORS}
    )
    return own


def _matches(pattern: str, text: str) -> bool:
    return regex.search(pattern, text, timeout=SECONDS) is not None


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "string") and not _matches(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], value: Any, schema: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(value, "object"):
        return
    for pattern, rule in patterns.items():
        for name, item in value.items():
            if _matches(pattern, name):
                yield from validator.descend(item, rule, path=name, schema_path=pattern)


def _additional_properties(validator: Any, rule: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(value, "object"):
        return
    declared, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extra = [name for name in value if name not in declared and not any(_matches(one, name) for one in patterns)]
    if validator.is_type(rule, "object"):
        for name in extra:
            yield from validator.descend(value[name], rule, path=name)
    elif not rule and extra and patterns:
        names = ", ".join(map(repr, sorted(extra)))
        verb = "does" if len(extra) == 1 else "do"
        yield ValidationError(f"{names} {verb} not match any of the regexes: {', '.join(map(repr, patterns))}")
    elif not rule and extra:
        names = ", ".join(map(repr, sorted(extra, key=str)))
        verb = "was" if len(extra) == 1 else "were"
        yield ValidationError(f"Additional properties are not allowed ({names} {verb} unexpected)")
