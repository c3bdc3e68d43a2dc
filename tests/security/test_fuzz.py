"""Random rows, templates and generated texts: whatever they are, nothing but our own errors comes out.

10,000 inputs in all, the same in every run: 4,000 rows, 1,500 templates, 4,500 generated texts.
"""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepfabric_trainer import ConversationEncoder, parse_tool_calls, score_tool_calls, validate_dataset
from deepfabric_trainer.errors import DeepFabricTrainerError
from deepfabric_trainer.schema import Message
from deepfabric_trainer.template import ChatTemplate
from tests.fixtures.tiny import TOOLS, tiny_tokenizer, tool_rows

pytestmark = pytest.mark.slow
_QUIETLY = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def fuzz(inputs: int) -> Any:
    return settings(max_examples=inputs, **_QUIETLY)  # type: ignore[arg-type]


_WORDS = st.sampled_from(
    [
        "",
        "a",
        "get_weather",
        "city",
        "system",
        "user",
        "assistant",
        "tool",
        "function",
        "\x1b[2J",
        "\ud800",
        "<|im_end|>",
        *(
            "</think>",
            "<tool_call>",
            '{"name": 1}',
            "null",
            "1e400",
            "9" * 5000,
            "[" * 2000,
            "{{ 1 }}",
            "\U00100005",
            "é",
        ),
    ]
)
_TEXTS = st.one_of(_WORDS, st.text(max_size=20))
_LEAVES = st.one_of(
    _TEXTS,
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.builds(pow, st.just(10), st.just(5000)),
    st.floats(),
    st.binary(max_size=3),
)
_ANYTHING = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)
_SCHEMAS = st.recursive(
    st.one_of(
        _ANYTHING,
        st.sampled_from(
            [
                {"$ref": "#"},
                {"$ref": "http://127.0.0.1:9/x"},
                {"$ref": "file:///etc/passwd"},
                {"type": "string", "pattern": "(a+)+$"},
                {"pattern": "("},
                {"multipleOf": 0},
                {"multipleOf": 1e-320},
                {"type": "nothing"},
                {"enum": []},
            ]
        ),
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": _ANYTHING | st.just("object"),
            "properties": st.dictionaries(_TEXTS, inner, max_size=3),
            "items": inner,
            "anyOf": st.lists(inner, max_size=2),
            "required": _ANYTHING,
            "$defs": st.dictionaries(_TEXTS, inner, max_size=2),
            "additionalProperties": inner,
        },
    ),
    max_leaves=6,
)


def _or_anything(strategy: Any) -> Any:
    return st.one_of(strategy, strategy, strategy, _ANYTHING)


def _object(**fields: Any) -> Any:
    return st.fixed_dictionaries({}, optional={name: _or_anything(field) for name, field in fields.items()})


_CALLS = st.lists(_or_anything(_object(type=_TEXTS, id=_TEXTS, function=_object(name=_TEXTS, arguments=_ANYTHING))))
_ROLES = st.sampled_from(["system", "user", "assistant", "tool", "function"])
_MESSAGES = st.lists(
    _or_anything(
        _object(role=_ROLES, content=_TEXTS, tool_calls=_CALLS, tool_call_id=_TEXTS, reasoning_content=_TEXTS)
    ),
    max_size=5,
)
_TOOLS = st.lists(
    _or_anything(_object(type=_TEXTS, function=_object(name=_TEXTS, description=_TEXTS, parameters=_SCHEMAS))),
    max_size=3,
)
_ROWS = _or_anything(_object(messages=_MESSAGES, conversations=_MESSAGES, tools=_TOOLS, reasoning=_ANYTHING))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def test_rows(tokenizer: Any) -> None:
    encoder = ConversationEncoder(tokenizer)

    @fuzz(4000)
    @given(_ROWS)
    def encode(row: Any) -> None:
        validate_dataset([row])
        try:
            encoder.encode(row)
        except DeepFabricTrainerError as error:
            _require_harmless(error)

    encode()


_OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or"]
_FILTERS = ["tojson", "list", "join", "length", "trim", "first", "sort", "sum", "string", "int", "reverse", "items"]
_EXPRESSIONS = st.recursive(
    st.sampled_from(["messages", "tools", "m", "1", "0", "10**9", "'a'", "none", "ns.x", "m.content", "loop.index"])
    | st.from_regex(r"\A[\w.'\"()\[\]{}|~+*/%<>=!,: -]{0,12}\Z"),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(_OPERATORS), inner),
        st.builds(
            "({} | {})".format,
            inner,
            st.sampled_from(_FILTERS),
        ),
        st.builds("({} | {}({}))".format, inner, st.sampled_from(["join", "center", "indent", "batch", "map"]), inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("{}[{}:{}]".format, inner, inner, inner),
        st.builds("{}.{}({})".format, inner, st.sampled_from(["split", "get", "replace", "join", "ljust"]), inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
    ),
    max_leaves=6,
)
_TEMPLATES = st.recursive(
    st.builds("{{{{ {} }}}}".format, _EXPRESSIONS) | st.text(max_size=8),
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("{{% for m in {} %}}{}{{% endfor %}}".format, _EXPRESSIONS, inner),
        st.builds("{{% if {} %}}{}{{% endif %}}".format, _EXPRESSIONS, inner),
        st.builds("{{% set ns = namespace(x={}) %}}{}{{% set ns.x = {} %}}".format, _EXPRESSIONS, inner, _EXPRESSIONS),
        st.builds("{{% macro f(m) %}}{}{{% endmacro %}}{{{{ f({}) }}}}".format, inner, _EXPRESSIONS),
    ),
    max_leaves=6,
)


def test_templates(tokenizer: Any) -> None:
    row = tool_rows()[6]
    messages: list[Message] = row["messages"]
    fuzzed = tiny_tokenizer()

    @fuzz(1500)
    @given(_TEMPLATES)
    def render(source: str) -> None:
        fuzzed.chat_template = source or " "
        template = ChatTemplate(fuzzed)
        for tools in (None, TOOLS):
            try:
                text = template.render(messages, tools)  # type: ignore[arg-type]
                expected = fuzzed.apply_chat_template(
                    template_messages(template, messages), tools=tools, tokenize=False
                )
            except DeepFabricTrainerError as error:
                _require_harmless(error)
                continue
            assert text == expected or " at 0x" in expected or "Namespace" in expected

    def template_messages(template: ChatTemplate, messages: list[Message]) -> list[Any]:
        return [template.dialect(None)(message) for message in messages]

    render()


_PIECES = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "\n", '{"name": "get_weather", "arguments": {"city": "Rome"}}', "{", "}"),
        *("[", "]", '"', "'", ":", ",", "name", "arguments", "get_weather", "<think>", "</think>", "\\", "\\u12"),
        *("null", "NaN", "1e999", "-", "9" * 5000, "[" * 3000, '{"a":' * 3000, "\x1b]0;x\x07", "\ud800"),
        *("<|im_end|>", "(", ")", "="),
    ]
)
_GENERATED = st.lists(st.one_of(_PIECES, st.text(max_size=6)), max_size=12).map("".join)


def test_generated_texts(tokenizer: Any) -> None:
    expected = [{"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]

    @fuzz(4500)
    @given(_GENERATED)
    @example("<tool_call>" * 5000)
    @example('<tool_call>\n{"name": "get_weather", "arguments": ' + "[" * 100_000)
    def parse(text: str) -> None:
        try:
            parsed = parse_tool_calls(tokenizer, text, tools=TOOLS)
            score_tool_calls(parsed.tool_calls, expected, TOOLS)
            json.dumps(parsed.tool_calls)
        except DeepFabricTrainerError as error:
            _require_harmless(error)

    parse()


def _require_harmless(error: DeepFabricTrainerError) -> None:
    text = str(error)
    text.encode()
    assert not any(ord(character) < 32 and character not in "\n\t" for character in text)
