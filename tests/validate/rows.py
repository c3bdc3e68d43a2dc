"""Short ways to write rows, and to read findings."""

from typing import Any

from deepfabric_trainer.validate import validate_dataset
from tests.fixtures.tiny import TOOLS, call

USER = {"role": "user", "content": "Weather in Rome?"}
DONE = {"role": "assistant", "content": "Done."}


def assistant(*calls: dict[str, Any], content: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def with_id(identifier: Any, name: str = "get_weather", **arguments: Any) -> dict[str, Any]:
    return {"id": identifier, **call(name, **(arguments or {"city": "Rome"}))}


def result(**fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": "rain", **fields}


def found(messages: list[dict[str, Any]], tools: Any = TOOLS) -> list[tuple[str, str, str]]:
    """Return the rule, path and severity of every finding of one row."""
    report = validate_dataset([{"messages": messages, "tools": tools}])
    assert {finding.row for finding in report.findings} <= {0}
    assert all(finding.found and finding.fix for finding in report.findings)
    return [(finding.rule.value, finding.path, finding.severity.value) for finding in report.findings]


def tool(parameters: Any, name: str = "get_weather") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters}}
