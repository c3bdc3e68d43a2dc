import importlib.resources
import json
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from deepfabric_trainer.errors import DataFormatError, TemplateError
from deepfabric_trainer.toolcalls import (
    ParsedResponse,
    ToolCallScore,
    parse_tool_calls,
    score_response,
    score_tool_calls,
    stop_token_ids,
    summarize_scores,
    turn_end,
    wilson_interval,
)
from tests.fixtures.tiny import TOOLS, call
from tests.toolcalls.hand_made import HAND_MADE

TRICKY = [
    call("get_weather", city="Köln 🌧", days=3),
    call("send_mail", to="Ann", text='say "</tool_call>" and {braces: } and <tool_call>\n{"name": "x"} \\ <think>'),
    call("send_mail", to="\u2028 x", text="It 's , well . So  so"),
    call("nested", a={"b": [1, 2.5, None, True, {"c": {}}]}, empty=[]),
    call("no_arguments"),
]
LLAMA_TEMPLATES = ("llama3_1", "llama3_2")
QWEN_TEMPLATES = ("qwen2_5", "qwen2_5_training", "qwen3", "qwen3_training", "qwen3_instruct_2507", "qwen3_vl")


def trl_template(name: str) -> str:
    return (importlib.resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def render_turn(tokenizer: Any, message: dict[str, Any]) -> str:
    history = [{"role": "user", "content": "Go."}]
    options = {"tools": TOOLS, "tokenize": False}
    prompt = tokenizer.apply_chat_template(history, add_generation_prompt=True, **options)
    return tokenizer.apply_chat_template([*history, message], **options).removeprefix(prompt)


def assistant(*calls: dict[str, Any], content: str = "", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **fields}


@pytest.fixture(scope="module")
def qwen(assets):
    return AutoTokenizer.from_pretrained(assets / "qwen3")


@pytest.fixture(scope="module")
def llama(assets):
    tokenizer = AutoTokenizer.from_pretrained(assets / "llama3_1")
    tokenizer.chat_template = trl_template("llama3_1")
    return tokenizer


class TestRoundTrip:
    @pytest.mark.parametrize("one", TRICKY, ids=lambda one: one["function"]["name"])
    def test_one_call(self, tiny_tokenizer, one):
        turn = render_turn(tiny_tokenizer, assistant(one))
        assert parse_tool_calls(tiny_tokenizer, turn) == ParsedResponse("", None, [one], None)

    def test_all_calls_with_content(self, tiny_tokenizer):
        turn = render_turn(tiny_tokenizer, assistant(*TRICKY, content="I will."))
        assert parse_tool_calls(tiny_tokenizer, turn) == ParsedResponse("I will.", None, TRICKY, None)

    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_from_ids(self, tiny_tokenizer, as_tensor):
        turn = render_turn(tiny_tokenizer, assistant(*TRICKY))
        ids = tiny_tokenizer(turn, add_special_tokens=False)["input_ids"]
        ids += [tiny_tokenizer.pad_token_id] * 3
        parsed = parse_tool_calls(tiny_tokenizer, torch.tensor(ids) if as_tensor else ids)
        assert parsed == ParsedResponse("", None, TRICKY, None)

    @pytest.mark.parametrize("template", QWEN_TEMPLATES)
    def test_qwen(self, qwen, template):
        qwen.chat_template = trl_template(template)
        turn = render_turn(qwen, assistant(*TRICKY, content="I will."))
        ids = qwen(turn, add_special_tokens=False)["input_ids"]
        assert parse_tool_calls(qwen, ids) == ParsedResponse("I will.", None, TRICKY, None)

    def test_qwen_reasoning(self, qwen):
        qwen.chat_template = trl_template("qwen3")
        turn = render_turn(qwen, assistant(TRICKY[1], reasoning_content="A <tool_call>\nwould do."))
        ids = qwen(turn, add_special_tokens=False)["input_ids"]
        assert parse_tool_calls(qwen, ids) == ParsedResponse("", "A <tool_call>\nwould do.", [TRICKY[1]], None)

    @pytest.mark.parametrize("template", LLAMA_TEMPLATES)
    @pytest.mark.parametrize("one", TRICKY, ids=lambda one: one["function"]["name"])
    def test_llama(self, llama, template, one):
        llama.chat_template = trl_template(template)
        ids = llama(render_turn(llama, assistant(one)), add_special_tokens=False)["input_ids"]
        assert parse_tool_calls(llama, ids) == ParsedResponse("", None, [one], None)


class TestTaggedJson:
    GOOD = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ('<tool_call>\n{"name": "f", "argum', "JSON"),
            ("<tool_call>\n", "JSON"),
            ('<tool_call>\n{"name": "f", "arguments": {x: 1}}\n</tool_call>', "JSON"),
            ('<tool_call>\n{"name": "f", "arguments": {"x": NaN}}\n</tool_call>', "NaN"),
            ('<tool_call>\n{"name": "f", "arguments": {"x": "\\ud800"}}\n</tool_call>', "half of a character"),
            ("<tool_call>" + "[" * 100_000, "JSON"),
            ('<tool_call>\n{"name": "f", "arguments": {}}', "not closed"),
            ('<tool_call>\n{"name": "f", "arguments": {}}\n<tool_call>', "not closed"),
            ('{"name": "f", "arguments": {}}\n</tool_call>', "without <tool_call>"),
            ('<tool_call>\n{"arguments": {}}\n</tool_call>', "no name"),
            ('<tool_call>\n{"name": 7, "arguments": {}}\n</tool_call>', "no name"),
            ('<tool_call>\n{"name": "f", "arguments": "{}"}\n</tool_call>', "not an object"),
            ('<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>', "not an object"),
            ('<tool_call>\n{"name": "f"}\n</tool_call>', "not an object"),
            ('<tool_call>\n[{"name": "f", "arguments": {}}]\n</tool_call>', "not an object"),
        ],
    )
    def test_malformed_keeps_what_came_before(self, tiny_tokenizer, text, error):
        parsed = parse_tool_calls(tiny_tokenizer, f"Well.\n{self.GOOD}\n{text}")
        assert parsed.tool_calls == [call("f", x=1)]
        assert error in parsed.error
        assert parsed.content.startswith("Well.")

    def test_text_without_calls(self, tiny_tokenizer):
        text = 'Use {"name": "f", "arguments": {}} for that.'
        assert parse_tool_calls(tiny_tokenizer, text) == ParsedResponse(text, None, [], None)

    @pytest.mark.parametrize("stop", ["<|im_end|>", "<|endoftext|>", "<|eot_id|>"])
    def test_what_follows_a_stop_token_is_ignored(self, tiny_tokenizer, stop):
        parsed = parse_tool_calls(tiny_tokenizer, f"Done.{stop}\n{self.GOOD}")
        assert parsed == ParsedResponse("Done.", None, [], None)

    def test_what_follows_a_stop_of_several_tokens_is_ignored(self, tiny_tokenizer):
        tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("<|im_end|>", "<|done|>")
        ids = tiny_tokenizer(f"Say <|eom_id|>.<|done|>\n{self.GOOD}")["input_ids"]
        assert parse_tool_calls(tiny_tokenizer, ids) == ParsedResponse("Say <|eom_id|>.", None, [], None)

    def test_a_turn_that_several_tokens_end(self, tiny_tokenizer):
        assert turn_end(tiny_tokenizer) is None, "here one token ends it"
        tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("<|im_end|>", "<|done|>")
        has_ended = turn_end(tiny_tokenizer)
        ids = tiny_tokenizer("It is <|don't|>, and <|done|>\nSo.")["input_ids"]
        end = next(end for end in range(len(ids)) if has_ended(ids[:end]))
        assert tiny_tokenizer.decode(ids[:end]) == "It is <|don't|>, and <|done|>"

    def test_ids_that_are_a_batch(self, tiny_tokenizer):
        with pytest.raises(DataFormatError, match="one sequence"):
            parse_tool_calls(tiny_tokenizer, torch.zeros(2, 3, dtype=torch.long))

    def test_ids_that_are_labels(self, tiny_tokenizer):
        with pytest.raises(DataFormatError, match="-100"):
            parse_tool_calls(tiny_tokenizer, [-100, 5])


class TestReasoning:
    CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "</think>"}}\n</tool_call>'

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("<think>\nHm.\n</think>\n\nHi", ParsedResponse("Hi", "Hm.", [], None)),
            ("<think>\n\n</think>\n\nHi", ParsedResponse("Hi", None, [], None)),
            ("<think>\nHm. So", ParsedResponse("", "Hm. So", [], None)),
            ("Hm.\n</think>\n\nHi", ParsedResponse("Hi", "Hm.", [], None)),
            ("A <tool_call>?\n</think>\n\nHi", ParsedResponse("Hi", "A <tool_call>?", [], None)),
            (CALL, ParsedResponse("", None, [call("f", x="</think>")], None)),
            (f"<think>\nHm.\n</think>\n{CALL}", ParsedResponse("", "Hm.", [call("f", x="</think>")], None)),
            (f"Hm.\n</think>\n{CALL}", ParsedResponse("", "Hm.", [call("f", x="</think>")], None)),
        ],
    )
    def test_split(self, tiny_tokenizer, text, expected):
        assert parse_tool_calls(tiny_tokenizer, text) == expected

    def test_opened_by_the_prompt(self, tiny_tokenizer):
        tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace(
            "{{- '<|im_start|>assistant\\n' }}{%- endif %}", "{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
        )
        assert parse_tool_calls(tiny_tokenizer, "Hm. So").reasoning == "Hm. So"
        example = f"Such as {self.CALL}?\n</think>\n\nHi".replace("</think>", "", 1)
        assert parse_tool_calls(tiny_tokenizer, example).content == "Hi"
        assert parse_tool_calls(tiny_tokenizer, self.CALL.replace("</think>", "")).tool_calls == [call("f", x="")]


class TestBareJson:
    @pytest.mark.parametrize(
        ("text", "calls"),
        [
            ('{"name": "f", "parameters": {"x": 1}}', [call("f", x=1)]),
            ('\n{"name": "f", "arguments": {"x": 1}}<|eot_id|>', [call("f", x=1)]),
            ('<|python_tag|>{"type": "function", "name": "f", "parameters": {}}<|eom_id|>', [call("f")]),
            ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', [call("f"), call("g")]),
        ],
    )
    def test_calls(self, llama, text, calls):
        llama.chat_template = trl_template("llama3_1")
        assert parse_tool_calls(llama, text) == ParsedResponse("", None, calls, None)

    @pytest.mark.parametrize("text", ['{"temperature": 3}', "{a, b} is a set", 'Try {"name": "f", "parameters": {}}'])
    def test_content(self, llama, text):
        llama.chat_template = trl_template("llama3_1")
        assert parse_tool_calls(llama, text) == ParsedResponse(text, None, [], None)

    @pytest.mark.parametrize(
        "text",
        [
            '{"na',
            '{"name": "f", "parameters": {"x"',
            '{"parameters": {}}',
            '<|python_tag|>f.call(x="1")',
            '{"name": "f"}',
        ],
    )
    def test_malformed(self, llama, text):
        llama.chat_template = trl_template("llama3_1")
        parsed = parse_tool_calls(llama, text)
        assert parsed.error
        assert parsed.tool_calls == []


class TestTemplates:
    def test_calls_that_cannot_be_learned_are_shown(self, tiny_tokenizer):
        tiny_tokenizer.chat_template = HAND_MADE["tags in tags"]
        with pytest.raises(TemplateError, match="<name>probe_first</name>"):
            parse_tool_calls(tiny_tokenizer, "Hi")

    def test_dropped_calls(self, tiny_tokenizer):
        tiny_tokenizer.chat_template = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
        with pytest.raises(TemplateError, match="drops tool calls"):
            parse_tool_calls(tiny_tokenizer, "Hi")

    def test_no_template(self, tiny_tokenizer):
        tiny_tokenizer.chat_template = None
        with pytest.raises(TemplateError, match="chat_template"):
            parse_tool_calls(tiny_tokenizer, "Hi")

    def test_template_changed_after_first_use(self, tiny_tokenizer):
        text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        assert parse_tool_calls(tiny_tokenizer, text).tool_calls == [call("f")]
        tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("</tool_call>", "</invoke>")
        assert parse_tool_calls(tiny_tokenizer, text).error == "the call is not closed by </invoke>"
        assert parse_tool_calls(tiny_tokenizer, text.replace("/tool_call", "/invoke")).tool_calls == [call("f")]


def test_stop_token_ids(tiny_tokenizer):
    assert stop_token_ids(tiny_tokenizer) == [tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")]
    tiny_tokenizer.eos_token = "<|endoftext|>"
    assert stop_token_ids(tiny_tokenizer) == tiny_tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])


def f(**arguments: Any) -> dict[str, Any]:
    return call("f", **arguments)


def g(**arguments: Any) -> dict[str, Any]:
    return call("g", **arguments)


class TestScore:
    @pytest.mark.parametrize(
        ("predicted", "expected", "exact_match", "name", "arguments"),
        [
            ([], [], 1, 1, 1),
            ([f(x=1)], [f(x=1)], 1, 1, 1),
            ([f(x=1)], [f(x=1.0)], 1, 1, 1),
            ([f(x=1)], [f(x="1")], 0, 1, 0),
            ([f(x=1)], [f(x=True)], 0, 1, 0),
            ([f(x=None)], [f()], 0, 1, 0),
            ([f(x=None)], [f(x=False)], 0, 1, 0),
            ([f(x=1, y={"a": 1, "b": 2})], [f(y={"b": 2, "a": 1}, x=1)], 1, 1, 1),
            ([f(x=[1, 2])], [f(x=[2, 1])], 0, 1, 0),
            ([f(x=[])], [f(x={})], 0, 1, 0),
            ([f(x=2**53)], [f(x=2**53 + 1)], 0, 1, 0),
            ([f(x=1), g(x=2)], [g(x=2), f(x=1)], 1, 1, 1),
            ([f(x=1), g(x=2)], [f(x=2), g(x=1)], 0, 1, 0),
            ([f(x=1), f(x=2)], [f(x=2), f(x=1)], 1, 1, 1),
            ([f(x=1), f(x=1)], [f(x=1), f(x=2)], 0, 1, 0),
            ([f(x=1), f(x=1)], [f(x=1)], 0, 0, 0),
            ([f(x=1)], [f(x=1), g(x=1)], 0, 0, 0),
            ([g(x=1)], [f(x=1)], 0, 0, 1),
            ([f(x=1), f(x=2)], [f(x=1), g(x=2)], 0, 0, 1),
            ([f(x=2), f(x=3)], [f(x=1), g(x=2)], 0, 0, 0),
        ],
    )
    def test_names_and_arguments(self, predicted, expected, exact_match, name, arguments):
        score = score_tool_calls(predicted, expected, None)
        assert (score.exact_match, score.name, score.arguments) == (exact_match, name, arguments)

    @pytest.mark.parametrize(
        ("predicted", "expected", "false_call", "missed_call", "decision"),
        [([], [], 0, 0, 1), ([f()], [g()], 0, 0, 1), ([f()], [], 1, 0, 0), (None, [f()], 0, 1, 0)],
    )
    def test_decision(self, predicted, expected, false_call, missed_call, decision):
        score = score_tool_calls(predicted, expected, None)
        assert (score.false_call, score.missed_call, score.decision) == (false_call, missed_call, decision)

    def test_shapes_of_calls(self):
        flat = {"name": "f", "arguments": '{"x": 1}'}
        score = score_tool_calls([flat], [{"id": "1", **f(x=1)}], None)
        assert score == ToolCallScore(1, 1, 1, 1, 0, 0, 1)

    @pytest.mark.parametrize("text", ['{"x": NaN}', '{"x": 1e999}', '{"x": -Infinity}', "[" * 100_000])
    def test_arguments_that_only_python_takes_for_json(self, text):
        score = score_tool_calls([{"name": "f", "arguments": text}], [call("f", x=1)], None)
        assert (score.name, score.exact_match, score.schema_valid) == (1, 0, 0)

    def test_arguments_that_are_no_json(self):
        score = score_tool_calls([{"name": "f", "arguments": "{x"}], [f(x=1)], None)
        assert (score.name, score.arguments, score.schema_valid) == (1, 0, 0)

    def test_call_without_name(self):
        with pytest.raises(DataFormatError, match=r"predicted\[1\]"):
            score_tool_calls([f(), {"function": {"arguments": {}}}], [], None)

    def test_many_calls_of_one_name(self):
        calls = [f(x=number) for number in range(200)]
        assert score_tool_calls(calls, calls[::-1], None).exact_match == 1

    @pytest.mark.parametrize(
        ("predicted", "valid"),
        [
            ([], 1),
            ([call("get_weather", city="Rome")], 1),
            ([call("get_weather", city="Rome", days=1.0)], 1),
            ([call("get_weather", city=7)], 0),
            ([call("get_weather", days=1)], 0),
            ([call("get_weather", city="Rome", zip=1)], 0),
            ([call("get_wether", city="Rome")], 0),
            ([call("get_weather", city="Rome"), call("send_mail", to="Ann")], 0),
        ],
    )
    def test_schema(self, predicted, valid):
        assert score_tool_calls(predicted, [], TOOLS).schema_valid == valid
        assert score_tool_calls(predicted, [], json.dumps(TOOLS)).schema_valid == valid

    @pytest.mark.parametrize(
        "parameters",
        [
            None,
            {"type": "nonsense"},
            {"$ref": "https://example.invalid/schema.json"},
            {"$ref": "#"},
            [1],
            {"pattern": "("},
            {"required": [["y"]]},
        ],
    )
    def test_schema_that_cannot_be_applied_accepts_objects(self, parameters):
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        score = score_tool_calls([f(x=1)], [], tools)
        assert (score.schema_valid, score.parameter_types, score.valid_call) == (1, 1, 1)
        assert score_tool_calls([{"name": "f", "arguments": [1]}], [], tools).schema_valid == 0
        assert score_tool_calls([g()], [], tools).schema_valid == 0

    def test_no_declared_tools(self):
        assert score_tool_calls([f()], [], []).schema_valid == 0
        assert score_tool_calls([f()], [], None).schema_valid == 1


class TestScoreResponse:
    def test_malformed_call_is_a_wrong_call(self):
        broken = ParsedResponse("", None, [], "bad")
        assert score_response(broken, [], None) == ToolCallScore(0, 0, 0, 0, 1, 0, 0)
        assert score_response(broken, [f()], None) == ToolCallScore(0, 0, 0, 0, 0, 0, 1)

    def test_malformed_call_after_the_right_one(self):
        response = ParsedResponse("", None, [f(x=1)], "bad")
        assert score_response(response, [f(x=1)], None).exact_match == 0
        assert score_response(ParsedResponse("", None, [f(x=1)], None), [f(x=1)], None).exact_match == 1


class TestSummary:
    def test_rates(self):
        scores = [
            score_tool_calls([f()], [f()], None),
            score_tool_calls([], [f()], None),
            score_tool_calls([g()], [], None),
            score_tool_calls([], [], None),
            score_tool_calls([], [], None),
        ]
        summary = summarize_scores(
            scores, parsed=[True, False, True, True, True], expects_call=[True, True, False, False, False]
        )
        shares = {
            **{"exact_match": (3, 5), "name": (3, 5), "arguments": (3, 5), "schema_valid": (5, 5), "decision": (3, 5)},
            **{"false_call": (1, 3), "missed_call": (1, 2), "parsed": (4, 5)},
            **{"parameter_types": (4, 5), "valid_call": (4, 5)},
        }
        expected = {name: right / total for name, (right, total) in shares.items()}
        for name, (right, total) in shares.items():
            expected[f"{name}_low"], expected[f"{name}_high"] = wilson_interval(right, total)
        # Of the three turns with a call, one is right in all, one in none, and a call of a wrong tool is valid.
        overall = (0.40 * 1 + 0.35 * 2 + 0.25 * 2) / 3
        assert summary == pytest.approx({**expected, "overall_score": overall, "turns": 5, "turns_with_call": 2})

    def test_no_turns(self):
        summary = summarize_scores([], parsed=[], expects_call=[])
        assert summary["exact_match"] == 0.0
        assert (summary["exact_match_low"], summary["exact_match_high"]) == (0.0, 1.0)

    # Published values of the score interval: Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    @pytest.mark.parametrize(
        ("successes", "total", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_wilson(self, successes, total, low, high):
        assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)

    @pytest.mark.parametrize("total", [6, 7, 10, 32, 1000])
    def test_wilson_ends_exactly_at_none_and_all(self, total):
        assert wilson_interval(0, total)[0] == 0.0
        assert wilson_interval(total, total)[1] == 1.0

    def test_wilson_of_nothing(self):
        assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("empty", [None, "", {}, "{}"])
def test_no_arguments_are_no_arguments_however_they_are_written(empty: Any) -> None:
    assert score_tool_calls([{"name": "f", "arguments": {}}], [{"name": "f", "arguments": empty}], None).exact_match


@pytest.mark.parametrize("tools", ["", [], "[]"])
def test_without_declared_tools_no_call_is_valid(tools: Any) -> None:
    assert not score_tool_calls([{"name": "f", "arguments": {}}], [], tools).schema_valid


def test_numbers_that_are_not_json_make_a_call_malformed(tiny_tokenizer: Any) -> None:
    parsed = parse_tool_calls(tiny_tokenizer, '<tool_call>\n{"name": "f", "arguments": {"a": 1e400}}\n</tool_call>')
    assert parsed.tool_calls == []
    assert parsed.error is not None
