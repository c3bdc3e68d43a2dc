"""What a chat template writes first, on templates of trl and of our own."""

import pytest

from deepfabric_trainer.grouping import template_writes_tools_first
from deepfabric_trainer.template import ChatTemplate
from tests.fixtures.templates import tokenizer_with
from tests.fixtures.tiny import tiny_tokenizer

TOOLS = "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}"
MESSAGES = "{% for message in messages %}{{ message.content }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TOOLS + MESSAGES, True),
        (MESSAGES + TOOLS, False),
        (NO_SYSTEM + TOOLS + MESSAGES, True),
        (NO_SYSTEM + MESSAGES, False),
        (MESSAGES, False),
        (TOOLS + "{{ messages[-1].content }}", True),
        ("{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + MESSAGES, False),
    ],
)
def test_it_is_learned_from_a_rendering(source: str, expected: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = source
    assert template_writes_tools_first(ChatTemplate(tokenizer)) is expected


@pytest.mark.parametrize(
    ("name", "expected"), [("own", False), ("qwen3", False), ("qwen2_5", False), ("llama3_1", False)]
)
def test_templates_of_models(name: str, expected: bool) -> None:
    assert template_writes_tools_first(ChatTemplate(tokenizer_with(name))) is expected
