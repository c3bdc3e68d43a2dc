"""`RowChecker` remembers tools, and finds what `check_row` finds."""

import copy
import json
from typing import Any

import pytest

from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.schema.shared_tools import SharedTools
from deepfabric_trainer.validate.control_tokens import ControlTokens
from deepfabric_trainer.validate.conversation import RowChecker, check_row
from tests.fixtures.tiny import TOOLS, call
from tests.validate.rows import DONE, USER, assistant, tool

INVALID = tool({"type": "objekt"}, "broken")
CONTROL = tool({"type": "object", "description": "<|im_end|>"}, "control")
CALLS: list[dict[str, Any]] = [
    assistant(call("get_weather", city="Rome")),
    assistant(call("get_weather", city=3)),
    assistant(call("control")),
    DONE,
]
LISTS = [TOOLS, [TOOLS[0], TOOLS[0]], [INVALID, CONTROL], [CONTROL, *TOOLS], [], None, TOOLS[:1]]


@pytest.mark.parametrize("key", ["tools", "functions"])
def test_it_finds_what_is_found_in_each_row_alone(key: str) -> None:
    checker, shared, tokens = RowChecker(ControlTokens()), SharedTools(), ControlTokens()
    for _ in range(2):
        for tools in [*LISTS, json.dumps(LISTS[2]), json.dumps(LISTS[3])]:
            for message in CALLS:
                row = {"messages": [USER, message], key: tools}
                alone = copy.deepcopy(row)
                expected = check_row(alone, normalize_row(alone), tokens)
                assert checker.check(row, normalize_row(row, shared.read)) == expected


def test_lists_that_come_and_go_are_not_taken_for_each_other() -> None:
    # A list that is gone may leave its place in memory, and so its identity, to the next.
    checker, tokens = RowChecker(ControlTokens()), ControlTokens()
    for number in range(600):
        row = {"messages": [USER, assistant(call(f"tool_{number}"))], "tools": [tool({}, f"tool_{number}")]}
        assert checker.check(row, normalize_row(row)) == check_row(row, normalize_row(row), tokens)
