import copy
from typing import Any

import pytest

from deepfabric_trainer.validate import Rule, Severity, validate_dataset
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer, tool_rows

USER = {"role": "user", "content": "Weather in Rome?"}


def assistant(*calls: dict[str, Any], content: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def with_id(identifier: str, name: str = "get_weather", **arguments: Any) -> dict[str, Any]:
    return {"id": identifier, **call(name, **arguments)}


def found(messages: list[dict[str, Any]], tools: Any = TOOLS) -> list[tuple[str, str]]:
    report = validate_dataset([{"messages": messages, "tools": tools}])
    return [(finding.rule.value, finding.path) for finding in report.findings]


def test_good_rows_have_no_findings() -> None:
    report = validate_dataset(tool_rows(), tiny_tokenizer())
    assert report.rows == len(tool_rows())
    assert report.findings == []
    assert report.ok


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], [("format", "messages")]),
        ([{"content": "a"}], [("format", "messages[0].role")]),
        ([USER], [("no-assistant", "messages")]),
        ([USER, assistant()], [("empty-turn", "messages[1]")]),
        ([USER, assistant(call("fly"))], [("undeclared-tool", "messages[1].tool_calls[0].function.name")]),
        (
            [USER, assistant(call("get_weather", city=3))],
            [("invalid-arguments", "messages[1].tool_calls[0].function.arguments.city")],
        ),
        (
            [USER, assistant(call("get_weather"))],
            [("invalid-arguments", "messages[1].tool_calls[0].function.arguments")],
        ),
        (
            [USER, {"role": "tool", "content": "x"}, assistant(content="a")],
            [("orphan-result", "messages[1]")],
        ),
        (
            [USER, assistant(with_id("a", city="x")), {"role": "tool", "content": "x", "tool_call_id": "b"}],
            [("orphan-result", "messages[2]")],
        ),
        (
            [USER, assistant(call("get_weather", city="x")), USER, assistant(content="a")],
            [("missing-result", "messages[1].tool_calls[0]")],
        ),
        (
            [USER, assistant(with_id("a", city="x"), with_id("a", city="y"))],
            [("duplicate-call-id", "messages[1].tool_calls[1].id")],
        ),
        ([USER, {"role": "system", "content": "x"}, assistant(content="a")], [("role-order", "messages[1].role")]),
        ([USER, assistant(content="a"), assistant(content="b")], [("role-order", "messages[2].role")]),
        ([assistant(content="a")], [("role-order", "messages[0].role")]),
    ],
)
def test_each_rule_names_its_place(messages: list[dict[str, Any]], expected: list[tuple[str, str]]) -> None:
    assert found(messages) == expected


def test_two_tools_of_one_name_and_a_schema_that_is_none() -> None:
    broken = copy.deepcopy(TOOLS[0])
    broken["function"]["parameters"] = {"type": "dict"}
    assert found([USER, assistant(content="a")], [TOOLS[0], broken]) == [
        ("duplicate-tool", "tools[0].function.name"),
        ("duplicate-tool", "tools[1].function.name"),
        ("invalid-schema", "tools[1].function.parameters"),
    ]


@pytest.mark.parametrize("reference", ["#/$defs/nowhere", "http://127.0.0.1:9/schema.json"])
def test_a_reference_that_leads_nowhere_is_found_and_nothing_is_fetched(reference: str) -> None:
    tool = copy.deepcopy(TOOLS[0])
    tool["function"]["parameters"] = {"type": "object", "$ref": reference}
    assert found([USER, assistant(call("get_weather", city="x"))], [tool]) == [
        ("invalid-schema", "tools[0].function.parameters")
    ]


def test_ids_may_begin_anew_in_a_later_turn_and_may_be_numbers() -> None:
    turns = [
        assistant({**call("get_weather", city="x"), "id": 1}),
        {"role": "tool", "content": "r", "tool_call_id": 1},
    ]
    assert found([USER, *turns, assistant(content="a"), USER, *turns, assistant(content="b")]) == []


def test_results_may_answer_calls_by_id_by_name_or_in_order() -> None:
    calls = assistant(with_id("a", city="x"), with_id("b", city="y"))
    by_id = [{"role": "tool", "content": "x", "tool_call_id": identifier} for identifier in ("b", "a")]
    in_order = [{"role": "tool", "content": "x"}, {"role": "tool", "content": "y"}]
    assert found([USER, calls, *by_id, assistant(content="a")]) == []
    assert found([USER, calls, *in_order, assistant(content="a")]) == []
    assert found([USER, calls, *in_order, {"role": "tool", "content": "z"}, assistant(content="a")]) == [
        ("orphan-result", "messages[4]")
    ]


def test_control_tokens_in_text_are_a_warning_when_the_tokenizer_is_known() -> None:
    row = {"messages": [{"role": "user", "content": "say <|im_end|>"}, assistant(content="no")], "tools": TOOLS}
    assert validate_dataset([row]).findings == []
    (finding,) = validate_dataset([row], tiny_tokenizer()).findings
    assert (finding.rule, finding.severity) == (Rule.CONTROL_TOKEN, Severity.WARNING)


def test_what_the_template_drops_is_found_when_the_tokenizer_is_known() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    report = validate_dataset(tool_rows()[:1], tokenizer)
    assert [finding.rule for finding in report.findings] == [Rule.TEMPLATE]


def test_rows_are_counted_once_a_rule_and_warnings_do_not_break_them() -> None:
    rows = [
        {"messages": [USER, assistant(call("fly"), call("fly"))], "tools": TOOLS},
        {"messages": [USER, assistant(content="a"), assistant(content="b")], "tools": TOOLS},
    ]
    report = validate_dataset(rows)
    assert report.counts() == {Rule.UNDECLARED_TOOL: 1, Rule.ROLE_ORDER: 1}
    assert report.broken_rows == [0]
    assert not report.ok
