import copy
from enum import StrEnum

import pytest

from deepfabric_trainer.schema import Tool
from deepfabric_trainer.template import Catalogue, KnownTools, catalogue
from tests.fixtures.tiny import TOOLS


def known(tools: object) -> Catalogue:
    assert isinstance(tools, Catalogue)
    return tools


def test_tools_are_known_by_their_content() -> None:
    tools = KnownTools()
    first, second = (known(tools.catalogue(copy.deepcopy(TOOLS))) for _ in range(2))  # type: ignore[arg-type]
    assert list(first) == TOOLS
    assert first.known == second.known
    assert known(tools.catalogue(TOOLS[::-1])).known == first.known[::-1]  # type: ignore[arg-type]


def test_values_that_python_calls_equal_are_told_apart() -> None:
    tools = KnownTools()
    one, true = ([{"type": "function", "function": {"name": "f", "x": value}}] for value in (1, True))
    assert known(tools.catalogue(one)).known != known(tools.catalogue(true)).known  # type: ignore[arg-type]


def test_changes_of_a_tool_do_not_reach_what_is_known() -> None:
    tools, given = KnownTools(), copy.deepcopy(TOOLS)
    before = known(tools.catalogue(given))  # type: ignore[arg-type]
    given[0]["function"]["name"] = "other"
    after = known(tools.catalogue(given))  # type: ignore[arg-type]
    assert [tool["function"]["name"] for tool in before] == ["get_weather", "send_mail"]
    assert [tool["function"]["name"] for tool in after] == ["other", "send_mail"]


def test_lists_and_tools_that_nobody_changes_are_known_as_objects() -> None:
    tools, given = KnownTools(), copy.deepcopy(TOOLS)
    first = tools.catalogue(given, unchanging=True)  # type: ignore[arg-type]
    assert tools.catalogue(given, unchanging=True) is first  # type: ignore[arg-type]
    assert known(tools.catalogue(list(given), unchanging=True)).known == known(first).known  # type: ignore[arg-type]


class Kind(StrEnum):
    FUNCTION = "function"


def test_odd_values_and_no_tools_are_passed_on() -> None:
    tools = KnownTools()
    odd: list[Tool] = [{"type": Kind.FUNCTION, "function": {"name": "f"}}]
    assert tools.catalogue(odd) is odd
    assert tools.catalogue([]) is None
    assert tools.catalogue(None) is None


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MOST_TOOLS", 3)
    tools = KnownTools()
    for number in range(10):
        listed: list[Tool] = [{"type": "function", "function": {"name": f"f{number}"}}]
        tools.catalogue(listed, unchanging=True)
    assert len(tools._tools) == 3
    assert len(tools._objects) <= 3
    assert len(tools._owners) == 6
