"""The rules of the tools that a row lists."""

import marshal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from deepfabric_trainer.schema import Tool
from deepfabric_trainer.validate.broken import Broken, listed
from deepfabric_trainer.validate.control_tokens import ControlTokens, texts_in
from deepfabric_trainer.validate.parameters import Parameters, read_parameters
from deepfabric_trainer.validate.report import Rule, Severity


@dataclass(frozen=True)
class ReadTool:
    """What the rules want to know of a tool, found out once for all rows that list it.

    Args:
        name (`str`): What calls name it.
        parameters (`Parameters`): The judge of its arguments.
        text (`str`): All text in it, names included.
    """

    name: str
    parameters: Parameters
    text: str


def read_tool(tool: Tool) -> ReadTool:
    """Return what is known of a tool; the last 2,048 different tools are remembered, whichever rows they stand in."""
    try:
        # The key is the content: order and types count, identity does not (from version 3 on it would).
        return _remembered(marshal.dumps(cast(Any, tool), 2))
    except ValueError:  # nested too deep, or of types that JSON does not have
        return _read(tool)


@lru_cache(maxsize=2048)
def _remembered(content: bytes) -> ReadTool:
    return _read(marshal.loads(content))


def _read(tool: Tool) -> ReadTool:
    function: Any = tool["function"]
    parameters = read_parameters(function.get("parameters"))
    return ReadTool(function["name"], parameters, "\n".join(text for _, text in texts_in(function)))


def check_tools(tools: Sequence[Tool], known: Sequence[ReadTool], tokens: ControlTokens) -> Iterator[Broken]:
    """Check that names are unique, parameters are JSON Schemas, and no text holds a control token.

    Args:
        tools (`Sequence[Tool]`): The tools of a row.
        known (`Sequence[ReadTool]`): The same tools, read.
        tokens (`ControlTokens`): What only the chat template may write.
    """
    counts = Counter(tool.name for tool in known) if len({tool.name for tool in known}) < len(known) else {}
    for number, tool in enumerate(known):
        if counts.get(tool.name, 0) > 1:
            yield Broken(
                f"tools[{number}].function.name",
                Rule.DUPLICATE_TOOL,
                f"{counts[tool.name]} tools are named {tool.name!r}",
                "give each tool a name of its own",
            )
        if tool.parameters.problems:
            yield Broken(
                f"tools[{number}].function.parameters",
                Rule.INVALID_SCHEMA,
                f"the parameters of {tool.name!r} are no proper JSON Schema: {listed(tool.parameters.problems)}",
                listed(tool.parameters.fixes),
                Severity.WARNING,
            )
        if tokens.are_in(tool.text):
            yield from tokens.check_value(tools[number]["function"], f"tools[{number}].function", "the tool")
