"""Judging the arguments of calls by the parameters of tools, and the parameters themselves."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jsonschema import Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from referencing import Registry

from deepfabric_trainer.schema.patterns import with_bounded_patterns
from deepfabric_trainer.validate.broken import dotted, shown
from deepfabric_trainer.validate.mending import MendedSchema, mend_schema
from deepfabric_trainer.validate.plain import is_plainly_valid

_ALIKE = (Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator)
"""Dialects in which the keywords that `is_plainly_valid` knows mean the same."""
_FIXES = {
    "required": "add it to the call, or take it out of the schema's `required`",
    "additionalProperties": "remove it from the call, or declare it in the schema",
    "enum": "use one of the listed values, or list this one in the schema",
}
_CONSTRAINING = (
    frozenset(Draft202012Validator.VALIDATORS) | frozenset(Draft7Validator.VALIDATORS) | {"$defs", "definitions"}
)
"""Keywords at the top of parameters that can say anything about arguments."""
_ANYTHING = MendedSchema({}, is_plain=True)
_MOST = 200
"""Characters of a message of `jsonschema`."""


class Problem(NamedTuple):
    """What is wrong with an argument; `path` is inside the arguments and begins with a dot, or is empty."""

    path: str
    found: str
    fix: str


class CannotJudgeError(Exception):
    """A schema that is valid and still makes its judge fail, such as one that refers to itself for ever."""


class Parameters:
    """The parameters of a tool, as far as arguments can be judged by them.

    Args:
        mended (`MendedSchema`): What is valid in them.
        problems (`Sequence[str]`): What is wrong with them.
        fixes (`Sequence[str]`): The edits that mend it.
    """

    def __init__(
        self, mended: MendedSchema = _ANYTHING, problems: Sequence[str] = (), fixes: Sequence[str] = ()
    ) -> None:
        self.problems = (*problems, *mended.problems)
        self.fixes = (*fixes, *mended.fixes)
        self._mended = mended
        self._plain = {keyword: rule for keyword, rule in mended.schema.items() if keyword != "$schema"}

    def judge(self, arguments: dict[str, Any]) -> list[Problem]:
        """Return what the schema forbids in the arguments of a call.

        Raises:
            CannotJudgeError: If the schema is of no use for these arguments.
        """
        try:
            if self._mended.dialect in _ALIKE and is_plainly_valid(arguments, self._plain):
                return []
            return [_problem(error) for error in self._validator.iter_errors(arguments)]
        except RecursionError as error:
            raise CannotJudgeError("they refer to themselves without end, or are nested too deep") from error
        except Exception as error:  # a stranger's schema and values; numbers too large to divide, for example
            raise CannotJudgeError(_reason(error)) from error

    @cached_property
    def _validator(self) -> Validator:
        # An empty registry: a `$ref` in somebody's data must not reach out to the network.
        return with_bounded_patterns(self._mended.dialect)(self._mended.schema, registry=Registry())


def read_parameters(value: Any) -> Parameters:
    """Return the parameters of a tool, ready to judge by.

    Args:
        value (`Any`): What stands in the tool's `parameters`.
    """
    if value is None:
        return Parameters()
    if not isinstance(value, Mapping):
        return Parameters(
            problems=[f"they are {shown(value)}, no object"], fixes=['write them as {"type": "object", ...}']
        )
    if value and not value.keys() & _CONSTRAINING and all(isinstance(item, Mapping) for item in value.values()):
        names = ", ".join(list(map(str, value))[:3])
        return Parameters(
            problems=[
                f"{names} stand where keywords such as `properties` belong, so nothing is required or forbidden"
            ],
            fixes=['put them into {"type": "object", "properties": {...}, "required": [...]}'],
        )
    try:
        mended = mend_schema(value)
        parameters = Parameters(mended)
        if not mended.is_plain:
            parameters.judge({})
    except Exception as error:  # as above; these parameters judge nothing
        reason = str(error) if isinstance(error, CannotJudgeError) else _reason(error)
        return Parameters(problems=[reason], fixes=["write them as a JSON Schema that can be followed to its end"])
    return parameters


def _problem(error: ValidationError) -> Problem:
    where = dotted(error.absolute_path)
    path = where if where.startswith("[") or not where else f".{where}"
    message, value = error.message, repr(error.instance)
    if message.startswith(value):
        message = shown(error.instance) + message[len(value) :]
    shortened = message if len(message) <= _MOST else message[: _MOST - 1] + "…"
    return Problem(path, shortened, _FIXES.get(str(error.validator), "correct the argument, or the tool's schema"))


def _reason(error: Exception) -> str:
    text = (str(error).strip() or "no reason given").splitlines()[0]
    return f"they cannot be used as a schema ({type(error).__name__}: {text[:120]})"
