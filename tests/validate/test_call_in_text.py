import json

import pytest

from deepfabric_trainer.validate import validate_dataset
from tests.fixtures.tiny import TOOLS, call
from tests.validate.rows import USER, assistant, found

WEATHER = {"name": "get_weather", "arguments": {"city": "Rome"}}


@pytest.mark.parametrize(
    "content",
    [
        f"<tool_call>\n{json.dumps(WEATHER)}\n</tool_call>",
        "I look. <tool_call>\n<function=get_weather>\n<parameter=city>Rome</parameter></function>\n</tool_call>",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>",
        f"<functioncall> {json.dumps(WEATHER)}",
        '<function=get_weather>{"city": "Rome"}</function>',
        json.dumps(WEATHER),
        f"I call it:\n```json\n{json.dumps(WEATHER, indent=2)}\n```",
        json.dumps([{"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}]),
        json.dumps({"tool_calls": [WEATHER]}),
        json.dumps({"name": "get_weather", "parameters": {"city": "Rome"}}),
        '{"name": "other"} then {"name": "get_weather", "arguments": {}}',
        '[get_weather(city="Rome"), send_mail(to="Ann", text="rain")]',
        'get_weather(city="Rome")',
    ],
)
def test_a_call_in_the_text_is_a_warning(content: str) -> None:
    assert found([USER, assistant(content=content)]) == [("call-in-text", "messages[1].content", "warning")]


@pytest.mark.parametrize(
    "content",
    [
        "Wrap calls in <tool_call> tags: <tool_call></tool_call>.",
        '{"name": "Rome", "arguments": {}}',
        '{"name": "get_weather"}',
        json.dumps({"name": "get_weather", "parameters": {"type": "object", "properties": {}}}),
        "get_weather says rain (as always)",
        "It rains { here } in get_weather",
        '{"name": "get_weather", "arguments": {"city": ',
        '{"a":' * 1500 + '"get_weather"',
        '{"name":' * 1500 + '"get_weather"',
        "[1, 2]",
        "print(1)",
    ],
)
def test_other_text_is_fine(content: str) -> None:
    assert found([USER, assistant(content=content)]) == []


def test_it_concerns_the_assistant_only() -> None:
    quoted = {"role": "user", "content": f"What does {json.dumps(WEATHER)} do?"}
    assert found([quoted, assistant(content="It asks for the weather.")]) == []


def test_a_call_that_stands_in_the_text_as_well_is_said_to_stand_twice() -> None:
    messages = [USER, assistant(call("get_weather", city="Rome"), content=json.dumps(WEATHER))]
    (finding,) = validate_dataset([{"messages": messages, "tools": TOOLS}]).findings
    assert "beside the message's `tool_calls`" in finding.found
