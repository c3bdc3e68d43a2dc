from typing import Any

import pytest

from deepfabric_trainer.schema import NullText, normalize_row
from deepfabric_trainer.template import ChatTemplate, Dialect
from deepfabric_trainer.template.compiling import DROPS_NULLS
from tests.fixtures.templates import ALL, recorded_templates, tokenizer_with
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function.name }} %s{% endfor %}"
null_keys = pytest.mark.skipif(not DROPS_NULLS, reason="transformers shows templates null contents before 5.23")
TAIL = "<|im_end|>\n{% endfor %}"
CONTENT = "{{ m.content or '' }}"


def template_with(body: str) -> ChatTemplate:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = HEAD + body + TAIL
    return ChatTemplate(tokenizer)


@pytest.mark.parametrize(
    ("written", "dialect"),
    [
        ("{{ c.function.arguments | tojson }}", Dialect()),
        ("{{ c.function.arguments }}", Dialect(json_arguments=True)),
        ("{{ c.function.arguments + '' }}", Dialect(json_arguments=True)),
        ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}", Dialect()),
        (
            "{% if c.function.arguments is string %}{{ c.function.arguments }}"
            "{% else %}{{ c.function.arguments | tojson }}{% endif %}",
            Dialect(),
        ),
    ],
)
def test_arguments_go_in_as_the_template_writes_them_right(written: str, dialect: Dialect) -> None:
    assert template_with(CONTENT + CALLS.replace("%s", written)).dialect(None) == dialect


AS_JSON = CALLS.replace("%s", "{{ c.function.arguments | tojson }}")


@null_keys
@pytest.mark.parametrize(
    ("content", "omits_content"),
    [
        ("{{ m.content }}", None),
        ("{{ m.content + '' }}", False),
        ("{% if m.content is defined %}{{ m.content }}{% continue %}{% endif %}", True),
    ],
    ids=["takes both", "refuses a message without", "takes an empty one for an answer"],
)
def test_empty_contents_go_in_as_the_template_takes_them(content: str, omits_content: bool | None) -> None:
    assert template_with(content + AS_JSON).dialect(None).omits_content is omits_content


@null_keys
@pytest.mark.parametrize(("content", "expected"), [(None, "none"), ("", "empty")])
def test_an_empty_content_goes_in_as_it_came_where_a_template_takes_both(content: Any, expected: str) -> None:
    template = template_with("{{ (m.content or 'empty') if m.content is defined else 'none' }}" + AS_JSON)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content, "tool_calls": [call("f")]}]
    conversation = normalize_row({"messages": messages})
    assert isinstance(conversation.messages[1]["content"], NullText) is (content is None)
    text = template.render(conversation.messages, None)
    assert f"assistant\n{expected}f" in text
    assert text == template.tokenizer.apply_chat_template(messages, tokenize=False)


def test_contents_go_in_as_parts_where_a_template_wants_them() -> None:
    template = template_with("{% for part in m.content %}{{ part.text }}{% endfor %}")
    assert template.dialect(None).text_parts
    assert "hello" in template.render([{"role": "user", "content": "hello"}], None)


def test_what_speaks_to_the_training_is_not_shown_to_the_template() -> None:
    template = template_with("{{ m.keys() | sort }}")
    rendered = template.render([{"role": "user", "content": "a", "train": True, "weight": 1.0}], None)
    assert "['content', 'role']" in rendered


@recorded_templates
@pytest.mark.parametrize("name", ALL)
def test_every_template_of_trl_has_a_dialect(name: str) -> None:
    dialect = ChatTemplate(tokenizer_with(name)).dialect(TOOLS)  # type: ignore[arg-type]
    assert dialect.json_arguments is (name == "deepseekv3")
    assert dialect.text_parts is name.startswith(("idefics3", "smolvlm", "llava_next"))
