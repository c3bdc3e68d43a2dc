from deepfabric_trainer.toolcalls.tables import Confusion, ToolCount, ToolTable, tool_table
from tests.fixtures.tiny import call


def f(x: int = 0) -> dict:
    return call("f", x=x)


def g(x: int = 0) -> dict:
    return call("g", x=x)


def test_calls_are_counted_by_tool() -> None:
    table = tool_table([([f(1)], [f(1)]), ([f(1)], [f(2)]), ([g()], [f(), g()]), ([], []), ([g()], None)])
    assert table == ToolTable(
        [ToolCount("f", support=2, called=3, right=1), ToolCount("g", support=2, called=1, right=1)],
        [Confusion(None, "f", 1), Confusion("g", None, 1)],
    )


def test_one_tool_for_another() -> None:
    table = tool_table([([f(), f(), g()], [call("h"), f()]), ([f()], [call("h")]), ([f()], [g()])])
    assert table.confusions == [Confusion("f", "h", 2), Confusion("f", "g", 1), Confusion("g", None, 1)]
    assert table.tools[-1] == ToolCount("h", support=0, called=2, right=0)


def test_equal_calls_answer_each_other_once() -> None:
    table = tool_table([([f(1), f(1)], [f(1)]), ([f(1)], [f(1), f(1)])])
    assert table.tools == [ToolCount("f", support=3, called=3, right=2)]
    assert table.confusions == [Confusion(None, "f", 1), Confusion("f", None, 1)]


def test_arguments_as_text_and_no_turns() -> None:
    assert tool_table([([f(1)], [{"name": "f", "arguments": '{"x": 1.0}'}])]).tools[0].right == 1
    assert tool_table([]) == ToolTable([], [])
