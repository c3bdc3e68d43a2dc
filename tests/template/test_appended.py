import pytest

from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.template import ChatTemplate, Habits
from deepfabric_trainer.template.appended import appends_prompt
from tests.fixtures.conversations import STYLES
from tests.fixtures.templates import ALL, frozen_clock, tokenizer_with
from tests.template.test_direct import render

LOOP = "{% for m in messages %}{{ m.content }}{% endfor %}"
NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize("name", ALL)
def test_prompts_are_what_the_template_renders(name: str) -> None:
    template = ChatTemplate(tokenizer_with(name))
    with frozen_clock():
        for messages, tools in STYLES.values():
            conversation = normalize_row({"messages": messages, "tools": tools})
            habits = Habits(template, conversation.tools)
            if habits.appended is None:
                continue
            for end in range(1, len(messages) + 1):
                history = render(template, conversation.messages[:end], conversation.tools)
                usual, switched = habits.appended
                for variables, added in zip(({}, *habits.switches), (usual, *switched), strict=True):
                    prompt = render(
                        template,
                        conversation.messages[:end],
                        conversation.tools,
                        add_generation_prompt=True,
                        **variables,
                    )
                    assert prompt == history + added or ("refuses" in history and history == prompt)


def test_most_templates_append_their_prompts() -> None:
    found = [name for name in ALL if Habits(ChatTemplate(tokenizer_with(name))).appended is not None]
    assert {"qwen3", "qwen2_5", "llama3_1", "gemma3"} <= set(found)


@pytest.mark.parametrize(
    "source",
    [
        LOOP,
        LOOP + "{% if add_generation_prompt %}x{% else %}y{% endif %}",
        LOOP + "{% if add_generation_prompt %}x{% endif %}y",
        LOOP + "{% if add_generation_prompt and messages %}x{% endif %}",
        LOOP + "{% if add_generation_prompt %}{{ messages | length }}{% endif %}",
        LOOP + "{% if add_generation_prompt %}{{ range(9) | random }}{% endif %}",
        LOOP + "{% if add_generation_prompt %}{{ strftime_now('%f') }}{% endif %}",
        "{{ add_generation_prompt }}" + LOOP + "{% if add_generation_prompt %}x{% endif %}",
        "{% set ns = 1 %}" + LOOP + "{% if add_generation_prompt %}{{ ns }}{% endif %}",
        "{% if %}",
        "",
    ],
)
def test_templates_that_do_else_are_rendered_with_their_prompts(source: str) -> None:
    assert not appends_prompt(source, NONE)


def test_a_switch_that_the_conversation_is_rendered_by_is_no_switch_of_the_prompt_alone() -> None:
    prompt = "{% if add_generation_prompt %}{{ 'a' if thinking else 'b' }}{% endif %}"
    assert appends_prompt(LOOP + prompt, frozenset({"thinking"}))
    assert not appends_prompt("{{ thinking }}" + LOOP + prompt, frozenset({"thinking"}))
    assert not appends_prompt(LOOP + prompt, NONE)
