from typing import Any

import pytest

from deepfabric_trainer.errors import ConfigError, TemplateError
from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.template import ChatTemplate, FieldKind
from tests.fixtures.templates import NAMES, tokenizer_with
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer

CONVERSATION = normalize_row(
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "  Weather in Köln? "},
            {"role": "assistant", "content": "", "tool_calls": [call("get_weather", city="Köln", days=2)]},
            {"role": "tool", "content": '{"rain": "yes"}'},
            {"role": "assistant", "content": "It rains."},
        ],
        "tools": TOOLS,
    }
)


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_apply_chat_templates_to_the_byte(name: str) -> None:
    tokenizer = tokenizer_with(name)
    rendering = ChatTemplate(tokenizer).render_with_spans(CONVERSATION.messages, CONVERSATION.tools)
    assert rendering.text == tokenizer.apply_chat_template(
        CONVERSATION.messages, tools=CONVERSATION.tools, tokenize=False
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_assistant_turn_and_every_field_is_found(name: str) -> None:
    rendering = ChatTemplate(tokenizer_with(name)).render_with_spans(CONVERSATION.messages, CONVERSATION.tools)
    turn = rendering.messages[2]
    assert turn is not None
    assert "get_weather" in rendering.text[turn.start : turn.end]
    assert "rain" not in rendering.text[turn.start : turn.end]
    found = {
        (field.message, field.kind): rendering.text[span.start : span.end] for field, span in rendering.fields if span
    }
    assert found[2, FieldKind.TOOL_NAME] == "get_weather"
    assert found[2, FieldKind.ARGUMENT] == "Köln"
    assert found[4, FieldKind.CONTENT] == "It rains."
    assert found[1, FieldKind.CONTENT] == "Weather in Köln?"


def render(template: str, messages: list[dict[str, Any]]) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer).render_with_spans(normalize_row({"messages": messages}).messages, None)


MESSAGES = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m.content | upper }}]{% endfor %}",
        "{% for m in messages %}[{{ m.content | length }}]{% endfor %}",
        "{% for m in messages[::-1] %}{% endfor %}{% for m in messages %}[{{ m.content }}]{% endfor %}",
        "{% for i, m in [[0, messages[0]], [1, messages[1]]] %}[{{ m.content }}]{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% continue %}{% endif %}[x]{% endfor %}",
        "{% for m in messages %}{% set n = m.content %}{% set m = none %}[{{ n }}]{% endfor %}",
        "{% macro show(all) %}{% for m in all %}[{{ m.content }}]{% endfor %}{% endmacro %}{{ show(messages) }}",
    ],
    ids=["upper", "length", "reversed first", "tuple", "continue", "shadowed", "macro"],
)
def test_loops_give_spans_whatever_the_template_does_to_the_text(template: str) -> None:
    rendering = render(template, MESSAGES)
    spans = [rendering.text[span.start : span.end] for span in rendering.messages]
    assert all(span.startswith("[") and span.endswith("]") for span in spans)
    assert "".join(spans) == rendering.text


def test_a_template_without_a_loop_has_no_message_spans_but_fields() -> None:
    rendering = render("{{ messages[0].content }}|{{ messages[1].content }}", MESSAGES)
    assert rendering.messages == (None, None)
    assert [rendering.text[span.start : span.end] for _, span in rendering.fields] == ["ab", "cd"]


def test_brackets_that_change_what_the_template_does_are_not_believed() -> None:
    rendering = render("{% for m in messages %}{{ 'x' if m.content == 'cd' else m.content }};{% endfor %}", MESSAGES)
    assert rendering.text == "ab;x;"
    assert [rendering.text[span.start : span.end] for span in rendering.messages] == ["ab;", "x;"]
    assert all(span is None for _, span in rendering.fields)


def test_texts_that_hold_private_use_characters_are_left_unproved() -> None:
    rendering = render(
        "{% for m in messages %}{{ m.content }}{% endfor %}", [{"role": "user", "content": "\U000f0001"}]
    )
    assert rendering.text == "\U000f0001"
    assert rendering.messages == (None,)


def test_templates_run_in_the_sandbox() -> None:
    with pytest.raises(TemplateError, match="refuses"):
        render("{{ messages.__class__.__mro__ }}", MESSAGES)


def test_a_templates_own_refusal_is_passed_on() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", MESSAGES)


def test_the_template_for_tool_use_is_taken_when_there_are_tools() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {
        "default": "{% for m in messages %}{{ m.content }}{% endfor %}",
        "tool_use": "{% for t in tools %}{{ t.function.name }}{% endfor %}",
    }
    template = ChatTemplate(tokenizer)
    assert template.render(CONVERSATION.messages[:1], TOOLS) == "get_weathersend_mail"  # type: ignore[arg-type]
    assert template.render(CONVERSATION.messages[:1], None) == "Be brief."


def test_a_tokenizer_without_template_is_a_config_error() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        ChatTemplate(tokenizer)


@pytest.mark.parametrize(("name", "renders"), [("qwen3", True), ("qwen2_5", False)])
def test_it_is_known_whether_a_template_renders_reasoning(name: str, renders: bool) -> None:
    assert ChatTemplate(tokenizer_with(name)).renders_reasoning is renders
