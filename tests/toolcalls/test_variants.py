"""What models write beside what their templates would: other white space, other order, headers of their own."""

import time
from typing import Any

import pytest

from deepfabric_trainer.toolcalls import ParsedResponse, parse_tool_calls, stop_token_ids
from tests.fixtures.templates import recorded_templates
from tests.fixtures.tiny import call
from tests.toolcalls.test_round_trips import tokenizer_with

F = [call("f", x=1)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3", '<tool_call>{"arguments":{"x":1},"name":"f"}</tool_call>'),
        ("qwen3", '<tool_call>\n\n{"name": "f", "parameters": {"x": 1}} </tool_call>'),
        ("qwen3_6", "<tool_call><function=f><parameter=x>1</parameter></function></tool_call>"),
        ("qwen3_6", "<tool_call>\n<function=f>\n\n<parameter=x>\n1\n</parameter>\n\n</function>\n</tool_call>\n"),
        ("glm4moe", "<tool_call>f<arg_key>x</arg_key><arg_value>1</arg_value></tool_call><|observation|>later"),
        (
            "deepseekv3",
            '</think><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"x": 1}\n```<｜tool▁call▁end｜>',
        ),
        ("lfm2_v2", "<|tool_call_start|>[ f( x = 1 ) ]<|tool_call_end|>"),
        ("gemma4", "<|tool_call>call:f{ x: 1 }<tool_call|><|tool_response>"),
        ("gptoss", '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'),
        ("bare pythonic", "\n  [f(x=1)]"),
        ("llama3_1", '<|python_tag|>{"name": "f", "arguments": {"x": 1}}<|eom_id|>'),
    ],
)
def test_a_call_in_other_words(name: str, text: str) -> None:
    assert parse_tool_calls(tokenizer_with(name), text) == ParsedResponse("", None, F, None)


@recorded_templates
def test_harmony_keeps_channels_apart() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'
    )
    assert parse_tool_calls(tokenizer_with("gptoss"), text) == ParsedResponse("I look.", "Hm.", F, None)
    final = text.partition("<|start|>assistant<|channel|>commentary to")[0]
    final += "<|start|>assistant<|channel|>final<|message|>Here.<|return|>"
    assert parse_tool_calls(tokenizer_with("gptoss"), final).content == "I look.\n\nHere."


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("qwen3_6", "<tool_call>\n<function=f>\n<parameter=x>\n1", "'x' of 'f' is not closed"),
        ("qwen3_6", '<tool_call>\n{"name": "f"}\n</tool_call>', "does not begin with <tool_call>\n<function="),
        ("lfm2_v2", "<|tool_call_start|>[f(x=__import__('os'))]<|tool_call_end|>", "'__import__' is not a value"),
        ("lfm2_v2", "<|tool_call_start|>[f(1)]<|tool_call_end|>", "has no name"),
        ("lfm2_v2", "<|tool_call_start|>[f(x=1)", "the calls are not closed"),
        ("gemma4", '<|tool_call>call:f{x:<|"|>a}<tool_call|>', "a text is not closed"),
        ("gptoss", "to=functions.f<|message|>{x}", "not readable JSON"),
    ],
)
def test_malformed_calls_are_named(name: str, text: str, error: str) -> None:
    parsed = parse_tool_calls(tokenizer_with(name), text)
    assert parsed.tool_calls == []
    assert error in str(parsed.error)


@pytest.mark.parametrize(
    ("schema", "written", "value"),
    [
        ({"type": "string"}, "7", "7"),
        ({"type": "integer"}, "7", 7),
        ({"type": "integer"}, "7.0", 7),
        ({"type": "number"}, "7", 7),
        ({"type": "boolean"}, "True", True),
        ({"type": "integer"}, "seven", "seven"),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "007", "007"),
        ({"$ref": "#/$defs/word"}, "7", "7"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"type": "array"}, "[1, 'a']", [1, "a"]),
        ({}, "1e400", "1e400"),
        ({}, "1.50", "1.50"),
    ],
)
def test_bare_text_is_typed_by_the_schema(schema: Any, written: str, value: Any) -> None:
    parameters = {"type": "object", "properties": {"x": schema}, "$defs": {"word": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    text = f"<tool_call>\n<function=f>\n<parameter=x>\n{written}\n</parameter>\n</function>\n</tool_call>"
    (read,) = parse_tool_calls(tokenizer_with("qwen3_6"), text, tools).tool_calls
    assert read["function"]["arguments"] == {"x": value}
    assert type(read["function"]["arguments"]["x"]) is type(value)


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("gptoss", ["<|call|>", "<|return|>"]),
        ("glm4moe", ["<|observation|>", "<|user|>"]),
        ("gemma4", ["<turn|>", "<|tool_response>"]),
    ],
)
def test_ends_of_turns_are_learned(name: str, stops: list[str]) -> None:
    tokenizer = tokenizer_with(name)
    assert set(tokenizer.convert_tokens_to_ids(stops)) <= set(stop_token_ids(tokenizer))
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in stop_token_ids(tokenizer)


WEATHER = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    "text",
    [
        "Put <tool_call> and </tool_call> around it.",
        "The tag is `<tool_call>`, and `</tool_call>` ends it.",
        "Write (<tool_call>) first.",
    ],
)
def test_a_tag_that_prose_mentions_is_text(text: str) -> None:
    qwen = tokenizer_with("qwen3")
    assert parse_tool_calls(qwen, text) == ParsedResponse(text, None, [], None)
    behind = '\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    assert parse_tool_calls(qwen, text + behind) == ParsedResponse(text, None, F, None)


@pytest.mark.parametrize(
    "text",
    [
        "I look. <tool_call>",
        'I look. <tool_call>{"nam',
        "I look. <tool_call> {name: f} </tool_call>",
        "I look.\n<tool_call> is how it begins.",
        '{"name": "f", "arguments": {}} </tool_call> done.',
    ],
)
def test_a_tag_with_an_attempt_at_a_call_is_malformed(text: str) -> None:
    assert parse_tool_calls(tokenizer_with("qwen3"), text).error is not None


def test_many_mentions_are_read_in_a_moment() -> None:
    began = time.process_time()
    parsed = parse_tool_calls(tokenizer_with("qwen3"), "a <tool_call> b </tool_call> c " * 5_000)
    assert parsed.error is None
    assert time.process_time() - began < 2


def test_data_with_a_name_is_no_call_where_nothing_introduces_calls() -> None:
    llama, data = tokenizer_with("llama3_1"), '{"name": "Alice", "age": 3}'
    assert parse_tool_calls(llama, data, WEATHER) == ParsedResponse(data, None, [], None)
    assert parse_tool_calls(llama, data).error is not None, "without the tools nobody can tell"
    assert parse_tool_calls(llama, '{"name": "f"}', WEATHER).error is not None
    (made,) = parse_tool_calls(llama, '{"name": "g", "parameters": {}}', WEATHER).tool_calls
    assert made == call("g"), "a tool that there is not is a call all the same, and a false one"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('<|channel|>commentary to=browser.search <|constrain|>json<|message|>{"x": 1}<|call|>', "browser.search"),
        ('<|channel|>analysis to=browser.search code<|message|>{"x": 1}<|call|>', "browser.search"),
        ('<|channel|>commentary to=python <|constrain|>json<|message|>{"x": 1}<|call|>', "python"),
    ],
)
def test_harmony_calls_beside_functions(text: str, name: str) -> None:
    parsed = parse_tool_calls(tokenizer_with("gptoss"), text)
    assert parsed == ParsedResponse("", None, [call(name, x=1)], None)


def test_harmony_code_is_an_attempt_at_a_call_and_prose_is_none() -> None:
    harmony = tokenizer_with("gptoss")
    code = "<|channel|>analysis to=python code<|message|>print(1)<|call|>"
    assert "not readable JSON" in str(parse_tool_calls(harmony, code).error)
    prose = "<|channel|>final<|message|>Set to=5, or to=x.y, then.<|return|>"
    assert parse_tool_calls(harmony, prose) == ParsedResponse("Set to=5, or to=x.y, then.", None, [], None)


@pytest.mark.parametrize(
    ("written", "value"),
    [("'a' \"b\"", "ab"), ("'a'\n'b' 'c'", "abc"), ("'it's 'so''", "it's 'so'"), ("'a' 'b", None)],
)
def test_pythonic_texts_beside_each_other_are_one(written: str, value: str | None) -> None:
    text = f"<|tool_call_start|>[f(x={written}, y=1)]<|tool_call_end|>"
    parsed = parse_tool_calls(tokenizer_with("lfm2_v2"), text)
    assert parsed.tool_calls == ([] if value is None else [call("f", x=value, y=1)])
    assert (parsed.error is None) == (value is not None)


@pytest.mark.parametrize(
    ("value", "read"), [("Rome", "Rome"), ("a\r\nb", "a\r\nb"), ("\r\n x \r\n", "\r\n x \r\n"), ("", "")]
)
def test_xml_with_the_line_breaks_of_windows(value: str, read: str) -> None:
    rows = ("<tool_call>", "<function=f>", "<parameter=x>", value, "</parameter>", "</function>", "</tool_call>")
    parsed = parse_tool_calls(tokenizer_with("qwen3_6"), "\r\n".join(rows))
    assert parsed.tool_calls == [call("f", x=read)]


def test_a_carriage_return_at_the_end_of_a_value_is_its_own() -> None:
    text = "<tool_call>\n<function=f>\n<parameter=x>\nRome\r\n</parameter>\n</function>\n</tool_call>"
    assert parse_tool_calls(tokenizer_with("qwen3_6"), text).tool_calls == [call("f", x="Rome\r")]
