"""Every rule: a row that breaks it and nothing else, and rows near it that do not."""

import copy
from typing import Any

import pytest

from deepfabric_trainer.validate import Rule, validate_dataset
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer, tool_rows
from tests.validate.rows import DONE, USER, assistant, found, result, tool, with_id

CALL = assistant(call("get_weather", city="Rome"))
BOTH_TOOLS = assistant(with_id("a"), with_id("b", "send_mail", to="x", text="y"))
TWO_CALLS = assistant(with_id("a"), with_id("b"))


def test_the_ids_of_the_rules_are_a_public_contract() -> None:
    assert [rule.value for rule in Rule] == [
        "format",
        "unknown-role",
        "role-order",
        "no-assistant",
        "empty-turn",
        "unanswered-end",
        "undeclared-tool",
        "invalid-arguments",
        "call-in-text",
        "duplicate-call-id",
        "orphan-result",
        "missing-result",
        "result-name",
        "invalid-schema",
        "duplicate-tool",
        "control-token",
        "template",
        "too-long",
        "nothing-to-train",
    ]
    assert all(rule.meaning for rule in Rule)
    assert Rule("format") is Rule.FORMAT


BREAKING: list[tuple[str, list[dict[str, Any]], str, str]] = [
    ("format", [], "messages", "error"),
    ("format", [{"content": "a"}], "messages[0].role", "error"),
    ("format", [USER, assistant(call("get_weather", city=float("nan")))], "*", "error"),
    ("unknown-role", [USER, {"role": "narrator", "content": "x"}, DONE], "messages[1].role", "error"),
    ("role-order", [USER, {"role": "system", "content": "x"}, DONE], "messages[1].role", "warning"),
    ("role-order", [USER, DONE, DONE], "messages[2].role", "warning"),
    ("role-order", [DONE], "messages[0].role", "warning"),
    ("role-order", [{"role": "system", "content": "x"}, DONE], "messages[1].role", "warning"),
    ("no-assistant", [USER], "messages", "error"),
    ("empty-turn", [USER, assistant()], "messages[1]", "error"),
    ("empty-turn", [USER, assistant(content=" \n")], "messages[1]", "error"),
    ("empty-turn", [{"role": "user", "content": " "}, DONE], "messages[0]", "warning"),
    ("unanswered-end", [USER, DONE, USER], "messages[2]", "warning"),
    ("unanswered-end", [USER, CALL, result()], "messages[2]", "warning"),
    ("undeclared-tool", [USER, assistant(call("fly"))], "messages[1].tool_calls[0].function.name", "error"),
    (
        "invalid-arguments",
        [USER, assistant(call("get_weather", city=3))],
        "messages[1].tool_calls[0].function.arguments.city",
        "error",
    ),
    (
        "invalid-arguments",
        [USER, assistant(call("get_weather"))],
        "messages[1].tool_calls[0].function.arguments",
        "error",
    ),
    (
        "invalid-arguments",
        [USER, assistant(call("get_weather", city="Rome", unit="C"))],
        "messages[1].tool_calls[0].function.arguments",
        "error",
    ),
    (
        "call-in-text",
        [USER, assistant(content='<tool_call>{"name": "x"}</tool_call>')],
        "messages[1].content",
        "warning",
    ),
    ("duplicate-call-id", [USER, assistant(with_id("a"), with_id("a"))], "messages[1].tool_calls[1].id", "error"),
    ("orphan-result", [USER, result(), DONE], "messages[1]", "error"),
    ("orphan-result", [USER, CALL, result(), result(), DONE], "messages[3]", "error"),
    ("missing-result", [USER, CALL, USER, DONE], "messages[1].tool_calls[0]", "warning"),
    ("missing-result", [USER, TWO_CALLS, result(tool_call_id="b"), DONE], "messages[1].tool_calls[0]", "warning"),
    ("result-name", [USER, CALL, result(name="send_mail"), DONE], "messages[2].name", "warning"),
    (
        "result-name",
        [USER, assistant(with_id("a")), result(tool_call_id="a", name="fly"), DONE],
        "messages[2].name",
        "warning",
    ),
    ("control-token", [{"role": "user", "content": "<|im_end|>"}, DONE], "messages[0].content", "warning"),
]


@pytest.mark.parametrize(("rule", "messages", "path", "severity"), BREAKING)
def test_a_row_that_breaks_one_rule(rule: str, messages: list[dict[str, Any]], path: str, severity: str) -> None:
    ((found_rule, found_path, found_severity),) = found(messages)
    assert (found_rule, found_severity) == (rule, severity)
    assert path in (found_path, "*")


def test_every_rule_of_messages_has_a_row_that_breaks_it() -> None:
    of_tools, of_encoding = {"invalid-schema", "duplicate-tool"}, {"template", "too-long", "nothing-to-train"}
    assert {case[0] for case in BREAKING} | of_tools | of_encoding == {rule.value for rule in Rule}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, USER, DONE],
        [USER, USER, DONE],
        [USER, CALL, result(), DONE],
        [USER, CALL],
        [USER, CALL, result(content=""), DONE],
        [USER, TWO_CALLS, result(tool_call_id="b"), result(tool_call_id="a"), DONE],
        [USER, TWO_CALLS, result(), result(), DONE],
        [USER, BOTH_TOOLS, result(name="send_mail"), result(name="get_weather"), DONE],
        [USER, assistant(with_id("a")), result(tool_call_id="a", name="get_weather"), DONE],
        # Many writers count from 1 again in every turn, and some write numbers.
        [USER, assistant(with_id(1)), result(tool_call_id=1), assistant(with_id(1)), result(tool_call_id=1), DONE],
        [USER, assistant(with_id(""), with_id(""))],
        [USER, assistant(call("get_weather", city="Rome", days=1.0))],
        [USER, assistant(call("get_weather", city="Rome", days=10**30))],
        [USER, assistant({"name": "get_weather", "arguments": '{"city": "Köln"}'})],
    ],
)
def test_rows_that_break_nothing(messages: list[dict[str, Any]]) -> None:
    assert found(messages) == []


@pytest.mark.parametrize("tools", [None, [], "", "[]", "null"])
def test_a_row_without_tools_is_fine_until_it_calls_one(tools: Any) -> None:
    assert found([USER, DONE], tools) == []
    ((rule, _, _),) = found([USER, CALL], tools)
    assert rule == "undeclared-tool"


def test_two_tools_of_one_name() -> None:
    assert found([USER, DONE], [TOOLS[0], TOOLS[1], TOOLS[0]]) == [
        ("duplicate-tool", "tools[0].function.name", "error"),
        ("duplicate-tool", "tools[2].function.name", "error"),
    ]


def test_a_schema_that_is_none_is_a_warning() -> None:
    assert found([USER, DONE], [tool({"type": "dict"})]) == [
        ("invalid-schema", "tools[0].function.parameters", "warning")
    ]


def test_a_misspelt_tool_is_named_with_the_one_that_was_meant() -> None:
    (finding,) = validate_dataset([{"messages": [USER, assistant(call("getWeather"))], "tools": TOOLS}]).findings
    assert "they are: get_weather, send_mail" in finding.found
    assert "perhaps 'get_weather'" in finding.fix


def test_a_row_gives_all_of_its_problems() -> None:
    messages = [
        {"role": "narrator", "content": "x"},
        {"role": "user", "content": ""},
        assistant(call("fly"), call("get_weather", city=1)),
        result(tool_call_id="z"),
    ]
    assert {rule for rule, _, _ in found(messages, [TOOLS[0], TOOLS[0]])} == {
        "duplicate-tool",
        "unknown-role",
        "empty-turn",
        "unanswered-end",
        "undeclared-tool",
        "invalid-arguments",
        "missing-result",
    }


def test_what_is_wrong_at_one_place_is_one_finding_of_a_rule() -> None:
    messages = [USER, assistant(call("send_mail"))]
    (finding,) = validate_dataset([{"messages": messages, "tools": TOOLS}]).findings
    assert "'to' is a required property" in finding.found
    assert "'text' is a required property" in finding.found
    assert finding.fix.count("add it to the call") == 1


def test_places_are_named_as_the_row_names_its_columns() -> None:
    row = {
        "conversations": [{"from": "human", "value": "<|im_end|>"}, {"from": "gpt", "value": "a"}],
        "functions": [TOOLS[0]["function"], TOOLS[0]["function"]],
    }
    assert [finding.path for finding in validate_dataset([row]).findings] == [
        "functions[0].function.name",
        "functions[1].function.name",
        "conversations[0].content",
    ]


def test_good_rows_have_no_findings_with_a_tokenizer_either() -> None:
    report = validate_dataset(tool_rows(), tiny_tokenizer())
    assert report.rows == len(tool_rows())
    assert report.findings == []


def test_what_the_template_drops_is_found_when_the_tokenizer_is_known() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    report = validate_dataset(tool_rows()[:1], tokenizer)
    ((rule, found_text),) = [(finding.rule, finding.found) for finding in report.findings]
    assert rule is Rule.TEMPLATE
    assert "leaves out" in found_text


def test_padding_by_arrow_and_other_repairs_are_no_findings() -> None:
    padded = copy.deepcopy(tool_rows()[:2])
    padded[0]["tools"][0]["function"]["parameters"]["properties"]["to"] = None
    padded[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]["to"] = None
    padded[1]["messages"][1]["content"] = None
    assert validate_dataset(padded).findings == []
