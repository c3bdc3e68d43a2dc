import os
import resource
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import thread_time

import pytest
from transformers.utils import chat_template_utils

from deepfabric_trainer import ConversationEncoder, parse_tool_calls, validate_dataset
from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.schema import Message
from deepfabric_trainer.template import ChatTemplate, appended, watch_of
from deepfabric_trainer.template.bounded import BoundedTemplates
from deepfabric_trainer.template.budget import Budget
from tests.fixtures.tiny import CHAT_TEMPLATE, TOOLS, tiny_tokenizer, tool_rows
from tests.security.hostile_templates import REFUSED, TOO_LARGE, TOO_LONG

USER: list[Message] = [{"role": "user", "content": "hi"}]
_GIB = 2**20
"""Of `ru_maxrss`, which counts kibibytes."""


@pytest.fixture
def small() -> Iterator[None]:
    """Require that a test takes some seconds of the processor and less than a gibibyte."""
    begin, before = thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _GIB
    assert thread_time() - begin < 20


def refusal(source: str) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = source
    template = ChatTemplate(tokenizer)
    with pytest.raises(TemplateError) as caught:
        template.render(USER, None)
    assert len(str(caught.value)) < 1000
    with pytest.raises(TemplateError) as again:
        template.render(USER, None)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("source", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_grows_is_stopped_before(source: str) -> None:
    assert "was stopped: it" in refusal(source)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("source", TOO_LONG.values(), ids=TOO_LONG)
def test_what_does_not_end_is_stopped(source: str) -> None:
    assert "was stopped: it has not come to its end after" in refusal(source)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_what_leaves_the_sandbox_is_refused(source: str) -> None:
    assert "the chat template refuses the conversation" in refusal(source)


def test_a_template_that_behaves_at_first_is_stopped_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the public function renders what is compared, whatever the first rendering was like."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if bad is defined %}{{ 'a' * 10**10 }}{% endif %}{{ messages[0].content }}"
    template = ChatTemplate(tokenizer)
    monkeypatch.setattr(template._direct, "_template", lambda *_: None)
    assert template.render(USER, None) == "hi"
    with pytest.raises(TemplateError, match="was stopped"):
        template.render(USER, None, bad=True)


def test_the_public_function_is_as_it_was() -> None:
    before = chat_template_utils._compile_jinja_template
    refusal("{{ 'a' * 10**10 }}")
    assert chat_template_utils._compile_jinja_template is before


def test_every_way_to_a_template_is_bounded() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if messages | length > 1 or tools %}{{ 2 ** (10**8) }}{% endif %}" + CHAT_TEMPLATE
    row = tool_rows()[0]
    with pytest.raises(TemplateError, match="digits"):
        ConversationEncoder(tokenizer).encode(row)
    with pytest.raises(TemplateError):
        parse_tool_calls(tokenizer, "<tool_call>{}</tool_call>", tools=TOOLS)
    report = validate_dataset([row], tokenizer)
    assert any("digits" in finding.found for finding in report.errors)


@pytest.mark.parametrize("source", [TOO_LARGE["power"], TOO_LARGE["long source"], TOO_LARGE["repeated text"]])
def test_reading_a_template_computes_nothing(source: str) -> None:
    watch_of(source)
    assert not appended.appends_prompt(source, frozenset())


def test_large_conversations_are_rendered() -> None:
    messages: list[Message] = [{"role": "user", "content": "x" * 100_000}, {"role": "assistant", "content": "y"}] * 30
    tokenizer = tiny_tokenizer()
    text = ChatTemplate(tokenizer).render(messages, None)
    assert text == tokenizer.apply_chat_template(messages, tokenize=False)
    many: list[Message] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}] * 300
    found = "{% for n in messages if n == m %}{{ loop.index }}{% endfor %}"
    tokenizer.chat_template = "{% for m in messages %}" + found + "{% endfor %}"
    assert ChatTemplate(tokenizer).render(many, None)


def test_a_look_back_from_each_of_many_messages_is_no_harm() -> None:
    """As templates do that look for the call of each result: the square of the messages."""
    messages: list[Message] = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}] * 500
    look = "{% for n in messages if not n.content and not m.content and n.role != m.role %}{% endfor %}"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}" + look + "{% endfor %}ok"
    assert ChatTemplate(tokenizer).render(messages, None) == "ok"


def test_two_threads_have_a_clock_each() -> None:
    """The time that another thread has used before is not what a rendering takes."""
    budget = Budget()
    budget._begin = 1.0
    budget._seconds()
    begin = thread_time()
    while thread_time() - begin < 0.2:
        pass
    with ThreadPoolExecutor(1) as other:
        assert abs(other.submit(budget._seconds).result()) < 0.1
    assert budget._seconds() < 0.1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forks beside threads, from Python 3.12 on
def test_a_fork_while_another_thread_renders_in_public_waits_for_nobody() -> None:
    entered, leave = threading.Event(), threading.Event()

    def render() -> None:
        with BoundedTemplates().in_public():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=render)
    thread.start()
    entered.wait()
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends a child that waits
        with BoundedTemplates().in_public():
            os._exit(7)
    leave.set()
    thread.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
