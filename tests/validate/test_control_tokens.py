import copy
from types import SimpleNamespace
from typing import Any

import pytest

from deepfabric_trainer.validate import Rule, Severity, validate_dataset
from deepfabric_trainer.validate.control_tokens import WELL_KNOWN_TOKENS, ControlTokens, control_tokens_of
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer
from tests.validate.rows import DONE, USER, assistant, found, result

LEAK = "so <|im_end|> it is"


def paths(messages: list[dict[str, Any]], tools: Any = TOOLS) -> list[str]:
    findings = found(messages, tools)
    assert {(rule, severity) for rule, _, severity in findings} <= {("control-token", "warning")}
    return [path for _, path, _ in findings]


@pytest.mark.parametrize("token", WELL_KNOWN_TOKENS)
def test_the_well_known_ones_are_found_without_a_tokenizer(token: str) -> None:
    assert paths([{"role": "user", "content": f"a{token}b"}, DONE]) == ["messages[0].content"]


@pytest.mark.parametrize("role", ["system", "user"])
def test_they_are_found_in_messages(role: str) -> None:
    before = [] if role == "system" else [{"role": "system", "content": "Hi."}]
    after = [USER] if role == "system" else []
    messages = [*before, {"role": role, "content": LEAK}, *after, DONE]
    assert paths(messages) == [f"messages[{len(before)}].content"]


def test_they_are_found_in_results_answers_and_reasoning() -> None:
    messages = [USER, assistant(call("get_weather", city="x")), result(content=LEAK), {**DONE, "content": LEAK}]
    messages[3]["reasoning_content"] = LEAK
    assert paths(messages) == ["messages[2].content", "messages[3].content", "messages[3].reasoning_content"]


def test_they_are_found_in_arguments_at_every_depth() -> None:
    arguments = {"to": "Ann", "text": LEAK, "more": [{"deep": ["", LEAK]}], LEAK: 1}
    place = "messages[1].tool_calls[0].function.arguments"
    assert paths([USER, assistant(call("send_mail", **arguments))]) == [
        f"{place}.text",
        f"{place}.more[0].deep[1]",
        f"{place}.{LEAK}",
    ]


def test_they_are_found_in_the_descriptions_of_tools() -> None:
    tools = copy.deepcopy(TOOLS)
    tools[1]["function"]["description"] = LEAK
    tools[1]["function"]["parameters"]["properties"]["to"]["description"] = LEAK
    assert paths([USER, DONE], tools) == [
        "tools[1].function.description",
        "tools[1].function.parameters.properties.to.description",
    ]


def test_several_in_one_text_are_one_finding() -> None:
    row = {"messages": [{"role": "user", "content": "<|im_end|></s>"}, DONE], "tools": TOOLS}
    (finding,) = validate_dataset([row]).findings
    assert "the control tokens '<|im_end|>', '</s>'" in finding.found


def test_text_that_only_looks_like_them_is_fine() -> None:
    text = "a <b>bold</b> [link] <|x|> im_end if a < b | c > d"
    assert paths([{"role": "user", "content": text}, {**DONE, "content": f"<think>{text}</think>{text}"}]) == []


def test_with_a_tokenizer_its_own_are_looked_for() -> None:
    rows = [{"messages": [{"role": "user", "content": text}, DONE]} for text in ("<|im_end|>", "<|eot_id|>")]
    (finding,) = validate_dataset(rows, tiny_tokenizer()).findings
    assert (finding.row, finding.rule, finding.severity) == (0, Rule.CONTROL_TOKEN, Severity.WARNING)


def test_added_tokens_count_when_they_are_special_or_the_template_writes_them() -> None:
    added = {"<|a|>": True, "<tool_call>": False, "<b>": False, "  ": False, "user": False}
    tokenizer = SimpleNamespace(
        added_tokens_decoder={
            number: SimpleNamespace(content=content, special=special)
            for number, (content, special) in enumerate(added.items())
        },
        all_special_tokens=["<|a|>", "<|pad|>"],
        chat_template={"default": "user  ", "tool_use": "user <tool_call>"},
    )
    assert control_tokens_of(tokenizer).texts == ("<|a|>", "<tool_call>", "<|pad|>")
    assert control_tokens_of(SimpleNamespace(tokenizer=tokenizer)).texts == ("<|a|>", "<tool_call>", "<|pad|>")


def test_the_assistant_may_write_reasoning_tags_that_are_tokens() -> None:
    tokens = ControlTokens(["<think>", "</think>"])
    content = "<think>a</think>b"
    assert list(tokens.check_messages([{"role": "assistant", "content": content}])) == []
    assert [one.path for one in tokens.check_messages([{"role": "user", "content": content}])] == [
        "messages[0].content"
    ]
