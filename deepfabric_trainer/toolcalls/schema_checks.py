"""What the schemas of the declared tools say of a call."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.schema.tools import normalize_tools

Declared = dict[str, Any] | None
"""The parameters of each declared tool; `None`: the declarations are not known."""


def declared_schemas(tools: Sequence[Mapping[str, Any]] | str | None) -> Declared:
    """Return the parameters of each declared tool.

    Raises:
        DataFormatError: If the tools cannot be read.
    """
    if tools is None or (not isinstance(tools, str) and len(tools) == 0):
        return None if tools is None else {}
    try:
        declared = normalize_tools(tools, set())
    except RecursionError:
        raise DataFormatError("the tools are nested too deeply", path="tools") from None
    return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in declared or []}


def satisfies(name: str, arguments: Any, schemas: Declared) -> bool:
    """Tell whether a call names a declared tool and its arguments satisfy the schema."""
    return _is_declared(name, arguments, schemas) and not any(_errors(name, arguments, schemas))


def has_right_types(name: str, arguments: Any, schemas: Declared) -> bool:
    """Tell whether a call names a declared tool and its arguments, as far as declared, are of the declared types."""
    return _is_declared(name, arguments, schemas) and not any(map(_is_of_type, _errors(name, arguments, schemas)))


def is_executable(name: str, arguments: Any, schemas: Declared) -> bool:
    """Tell whether a call names a declared tool and gives all arguments that it requires."""
    if not _is_declared(name, arguments, schemas):
        return False
    parameters = (schemas or {}).get(name)
    required = parameters.get("required") if isinstance(parameters, Mapping) else None
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    return all(name in arguments for name in names)


def _is_declared(name: str, arguments: Any, schemas: Declared) -> bool:
    return isinstance(arguments, Mapping) and (schemas is None or name in schemas)


def _errors(name: str, arguments: Mapping[str, Any], schemas: Declared) -> Iterator[Any]:
    """Go over what breaks the schema; a schema that JSON Schema cannot apply is not broken."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    from deepfabric_trainer.schema.patterns import with_bounded_patterns

    if schemas is None:
        return
    try:
        # An empty registry: a `$ref` of the user's must not reach out to the network.
        judge = with_bounded_patterns(Draft202012Validator)(schemas[name], registry=Registry())
        yield from list(judge.iter_errors(dict(arguments)))
    except Exception:
        return


def _is_of_type(error: Any) -> bool:
    """Tell whether an error is of a type, perhaps in each of the choices that a union gives."""
    return error.validator == "type" or any(map(_is_of_type, error.context or ()))
