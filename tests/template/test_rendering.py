from typing import Any

import pytest

from deepfabric_trainer.errors import ConfigError, TemplateError
from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.template import ChatTemplate, FieldKind, Rendering
from tests.fixtures.conversations import STYLES
from tests.fixtures.templates import ALL, NAMES, tokenizer_with
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


def spans_of(rendering: Rendering) -> dict[tuple[int, FieldKind, str], list[str] | None]:
    return {
        (field.message, field.kind, field.text): None if spans is None else [rendering.text[a:b] for a, b in spans]
        for field, spans in rendering.fields
    }


@pytest.mark.parametrize("name", ALL)
def test_the_text_is_apply_chat_templates_to_the_byte(name: str) -> None:
    tokenizer = tokenizer_with(name)
    messages, tools = STYLES["chat"]
    rendering = ChatTemplate(tokenizer).render_with_fields(normalize_row({"messages": messages}).messages, None)
    if name.startswith(("idefics3", "smolvlm", "llava_next")):
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    assert rendering.text == tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_found(name: str) -> None:
    rendering = ChatTemplate(tokenizer_with(name)).render_with_fields(CONVERSATION.messages, CONVERSATION.tools)
    assert spans_of(rendering) == {
        (0, FieldKind.CONTENT, "Be brief."): ["Be brief."],
        (1, FieldKind.CONTENT, "Weather in Köln?"): ["Weather in Köln?"],
        (2, FieldKind.TOOL_NAME, "get_weather"): ["get_weather"],
        (2, FieldKind.ARGUMENT_NAME, "city"): ["city"],
        (2, FieldKind.ARGUMENT_NAME, "days"): ["days"],
        (2, FieldKind.ARGUMENT, "Köln"): ["Köln"],
        (3, FieldKind.CONTENT, '{"rain": "yes"}'): [
            '{"rain": "yes"}' if name != "llama3_1" else '{\\"rain\\": \\"yes\\"}'
        ],
        (4, FieldKind.CONTENT, "It rains."): ["It rains."],
    }


def render(template: str, messages: list[dict[str, Any]]) -> Rendering:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer).render_with_fields(normalize_row({"messages": messages}).messages, None)


MESSAGES = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
LOOP = "{% for m in messages %}%s;{% endfor %}"


def test_a_text_that_stands_twice_or_nowhere_has_two_spans_or_none() -> None:
    twice = render("{{ messages[0].content }}{{ messages[0].content }}", MESSAGES)
    assert list(spans_of(twice).values()) == [["ab", "ab"], []]


def test_names_of_arguments_may_be_sorted() -> None:
    messages = [MESSAGES[0], {"role": "assistant", "content": "", "tool_calls": [call("f", b="1", A="2", c="3")]}]
    written = "{% for c in m.tool_calls or [] %}{% for k, v in c.function.arguments | dictsort %}{{ k }}={{ v }},{% endfor %}{% endfor %}"  # noqa: E501
    rendering = render("{{ messages[0].content }}" + LOOP.replace("%s", written), messages)
    assert rendering.text.endswith("A=2,b=1,c=3,;")
    assert None not in spans_of(rendering).values()


def test_where_brackets_would_change_the_rendering_fewer_are_written() -> None:
    looks_at_user = render(LOOP.replace("%s", "{{ 'x' if m.content == 'ab' else m.content }}"), MESSAGES)
    assert looks_at_user.text == "x;cd;"
    assert list(spans_of(looks_at_user).values()) == [None, ["cd"]]
    looks_at_both = render(LOOP.replace("%s", "{{ m.content | length }}"), MESSAGES)
    assert list(spans_of(looks_at_both).values()) == [None, None]


def test_the_beginning_of_a_rendering_holds_the_fields_that_stand_in_it() -> None:
    rendering = render(LOOP.replace("%s", "{{ m.content }}"), MESSAGES).beginning(3, 0)
    assert rendering.text == "ab;"
    assert list(spans_of(rendering).values()) == [["ab"]]


def test_texts_that_hold_private_use_characters_are_left_unproved() -> None:
    rendering = render(LOOP.replace("%s", "{{ m.content }}"), [{"role": "user", "content": "\U00100001"}])
    assert rendering.text == "\U00100001;"
    assert list(spans_of(rendering).values()) == [None]


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


def test_templates_by_name_need_a_default_or_a_choice() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"rag": "R{{ messages[0].content }}", "other": ""}
    with pytest.raises(ConfigError, match="'other', 'rag', and no default"):
        ChatTemplate(tokenizer).render(CONVERSATION.messages[:1], None)
    assert ChatTemplate(tokenizer, chat_template="rag").render(CONVERSATION.messages[:1], None) == "RBe brief."


def test_a_tokenizer_without_template_is_a_config_error() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        ChatTemplate(tokenizer)
