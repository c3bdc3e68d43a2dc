import copy
import logging
from typing import Any

import pytest

from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import Message, normalize_row
from deepfabric_trainer.template import ChatTemplate, KnownTools, direct
from deepfabric_trainer.template.direct import DirectRenderer
from tests.fixtures.conversations import STYLES
from tests.fixtures.templates import ALL, frozen_clock, tokenizer_with
from tests.fixtures.tiny import TOOLS, tiny_tokenizer


def render(template: ChatTemplate, messages: Any, tools: Any, **variables: Any) -> str:
    try:
        return template.render(messages, tools, **variables)
    except TemplateError as error:
        return str(error)


@pytest.mark.parametrize("name", ALL)
def test_every_template_renders_as_in_public(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_FIRST", 0)
    tokenizer = tokenizer_with(name)
    known = KnownTools()
    template, public = ChatTemplate(tokenizer, direct=DirectRenderer(known)), ChatTemplate(tokenizer)
    public._direct._template = lambda *_: None  # type: ignore[method-assign]
    with frozen_clock():
        for messages, tools in STYLES.values():
            conversation = normalize_row({"messages": messages, "tools": tools})
            for end in range(1, len(conversation.messages) + 1):
                for variables in ({}, {"add_generation_prompt": True}, {"enable_thinking": False}):
                    found = render(
                        template, conversation.messages[:end], known.catalogue(conversation.tools), **variables
                    )
                    assert found == render(public, conversation.messages[:end], conversation.tools, **variables)


USER: list[Message] = [{"role": "user", "content": "hi"}]
LISTS = "{{ messages[0].content }}{% for tool in tools %}{{ WRITTEN }};{% endfor %}"


@pytest.mark.parametrize(
    "written",
    [
        "tool | tojson",
        "tool | tojson(indent=2)",
        "tool.function | tojson",
        "tool | tojson + tool | tojson(sort_keys=true)",
    ],
)
def test_tools_are_written_in_every_style_as_json_writes_them(written: str) -> None:
    tokenizer, known = tiny_tokenizer(), KnownTools()
    tokenizer.chat_template = LISTS.replace("WRITTEN", written)
    template = ChatTemplate(tokenizer, direct=DirectRenderer(known))
    for tools in (TOOLS, TOOLS[::-1], TOOLS[:1]) * 4:
        expected = tokenizer.apply_chat_template(USER, tools=tools, tokenize=False)
        assert template.render(USER, known.catalogue(tools)) == expected  # type: ignore[arg-type]


def test_a_tokenizer_with_a_way_of_its_own_is_asked_for_it() -> None:
    tokenizer = tiny_tokenizer()
    public = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda *args, **options: public(*args, **options).upper()
    template = ChatTemplate(tokenizer)
    for _ in range(8):
        assert "HI" in template.render(USER, None)


def test_options_of_the_public_function_are_not_variables() -> None:
    tokenizer = tiny_tokenizer()
    template = ChatTemplate(tokenizer, variables={"continue_final_message": True})
    for _ in range(8):
        assert template.render(USER, None).endswith("hi")


def test_a_difference_is_noticed_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(direct, "_FIRST", 100)
    tokenizer = tiny_tokenizer()
    template = ChatTemplate(tokenizer)
    run = template._direct._run
    template._direct._run = lambda *args: run(*args).replace("hi", "ho")  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, direct.__name__):
        for _ in range(8):
            assert "hi" in template.render(USER, None)
    assert len(caplog.records) == 1


def test_a_template_that_writes_another_text_every_time_is_no_difference(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%f') }}{{ range(10 ** 5) | random }}{{ messages[0].content }}"
    template = ChatTemplate(tokenizer)
    for _ in range(8):
        assert template.render(USER, None).endswith("hi")
    assert not caplog.records


def test_the_sandbox_forbids_what_it_forbids_in_public() -> None:
    tokenizer = tiny_tokenizer()
    for source in ("{{ messages.append(1) }}", "{{ messages.__class__ }}", "{{ tools[0].clear() }}"):
        tokenizer.chat_template = source + "{{ messages[0].content.upper() }}"
        template, tools = ChatTemplate(tokenizer), copy.deepcopy(TOOLS)
        for _ in range(8):
            found = render(template, USER, tools)
            assert found.endswith("HI") or "refuses" in found
            assert "<class" not in found
        assert tools == TOOLS
