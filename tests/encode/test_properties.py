"""What must hold for any conversation on any template, checked against `apply_chat_template` alone.

Every piece of text carries a word of its own, so that it can be told where it went.
"""

import itertools
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepfabric_trainer.encode import Context, ConversationEncoder, EncodedExample, Region
from deepfabric_trainer.errors import TemplateError
from tests.fixtures.templates import frozen_clock, tokenizer_with
from tests.fixtures.tiny import TOOLS

TEMPLATES = [
    *("own", "qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl", "qwen3_5_nothink", "qwen3_6", "qwen3_8"),
    *("llama3_1", "llama3_2", "gptoss_training", "glm4moe", "gemma4", "gemma4_v5", "muse_glimmer", "lfm2_v2"),
    *("nemotron_3_nano", "nemotron_3_ultra", "qwen3_5_think", "lfm2_2_5_v2"),
]
TAKES_ALL = {"own", "qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl", "glm4moe", "nemotron_3_nano"}
"""Templates with a place for everything that a conversation without reasoning and markup may hold."""
CONVERSATIONS = 100
"""For each template."""

WORD = re.compile(r"[ua]\d+q")
MARKUP = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "<think>",
        "</think>",
        "<b>",
        "&amp;",
        "]]>",
        "[INST]",
        "</s>",
    ),
    *(
        '{"name": "f", "arguments": {}}',
        "{{ messages }}",
        "{% raw %}",
        "\\u00e9",
        "\\",
        "'",
        '"',
        "```json",
        "<|im_end|>",
    ),
]
PLAIN = ["é", "☔", "𝄞", "日本", "ا", "\n", "\n\n", " ", "\t", "x", "7", ",", ":", "very " * 400]


def texts(markup: bool) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(MARKUP + PLAIN if markup else PLAIN), max_size=4).map("".join)


@st.composite
def conversations(draw: st.DrawFn, markup: bool, reasoning: bool) -> list[dict[str, Any]]:
    """Draw messages; what the assistant says holds words such as a3q, all else words such as u3q."""
    numbers = itertools.count()

    def said(by: str) -> str:
        before, after = draw(texts(markup)), draw(texts(markup))
        return f"{before} {by}{next(numbers)}q {after}"

    def value() -> Any:
        plain = [st.integers(), st.floats(-1e9, 1e9), st.booleans(), st.none()]
        return draw(st.one_of(st.just(None), *plain)) if draw(st.booleans()) else said("a")

    def call() -> dict[str, Any]:
        arguments: dict[str, Any] = {"city": said("a")}
        if draw(st.booleans()):
            arguments["days"] = [value(), {"x": value()}] if draw(st.booleans()) else value()
        function = {"name": draw(st.sampled_from(["get_weather", "send_mail"])), "arguments": arguments}
        return {"type": "function", "id": f"call{next(numbers):05d}", "function": function}

    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": said("u")})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": said("u")})
        for _ in range(draw(st.integers(0, 2))):
            calls = [call() for _ in range(draw(st.integers(1, 2)))]
            messages.append(
                {"role": "assistant", "content": said("a") if draw(st.booleans()) else "", "tool_calls": calls}
            )
            if reasoning and draw(st.booleans()):
                messages[-1]["reasoning_content"] = said("a")
            for one in calls:
                key = {"tool_call_id": one["id"], "name": one["function"]["name"]}
                messages.append({"role": "tool", "content": said("u"), **key})
        messages.append({"role": "assistant", "content": said("a")})
        if reasoning and draw(st.booleans()):
            messages[-1]["reasoning_content"] = said("a")
    return messages


def words(message: dict[str, Any]) -> list[str]:
    return WORD.findall(repr([message.get(key) for key in ("reasoning_content", "content", "tool_calls")]))


def runs(example: EncodedExample) -> list[list[int]]:
    """Return the runs of positions that are trained, each ending at its stop token."""
    found: list[list[int]] = []
    for position, label in enumerate(example.labels):
        if label == -100:
            continue
        if found and found[-1][-1] == position - 1 and example.regions[position - 1] is not Region.STOP:
            found[-1].append(position)
        else:
            found.append([position])
    return found


def check(tokenizer: Any, messages: list[dict[str, Any]], examples: list[EncodedExample]) -> None:
    def render(end: int, **options: Any) -> str | None:
        try:
            return str(tokenizer.apply_chat_template(messages[:end], tools=TOOLS, tokenize=False, **options))
        except Exception:
            return None

    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    renderings = {render(end) for end in range(1, len(messages) + 1)}
    prompts = {render(index, add_generation_prompt=True) for index in turns}
    for thinking in (False, True):
        prompts |= {render(index, add_generation_prompt=True, enable_thinking=thinking) for index in turns}
    trained: Counter[str] = Counter()
    for example in examples:
        assert example.text in renderings
        assert tokenizer.decode(example.input_ids) == example.text
        assert len(example.labels) == len(example.regions) == len(example.input_ids)
        for token, label, region in zip(example.input_ids, example.labels, example.regions, strict=True):
            assert label == (-100 if region is Region.CONTEXT else token)
        found = runs(example)
        assert len(found) == len(example.contexts)
        for run, context in zip(found, example.contexts, strict=True):
            trained.update(WORD.findall(tokenizer.decode([example.input_ids[position] for position in run])))
            if context is Context.EXACT:
                assert tokenizer.decode(example.input_ids[: run[0]]) in prompts
        stops = sum(example.regions[run[-1]] is Region.STOP for run in found)
        assert stops == len(found) - example.unstopped_turns
    assert trained == Counter(word for index in turns for word in words(messages[index]))


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_any_conversation_is_proved_or_rejected_by_name(name: str) -> None:
    tokenizer = tokenizer_with(name)
    encoder = ConversationEncoder(tokenizer)
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=CONVERSATIONS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def encode_and_check(data: st.DataObject) -> None:
        markup, reasoning = data.draw(st.booleans()), data.draw(st.booleans())
        messages = data.draw(conversations(markup, reasoning))
        try:
            examples = encoder.encode({"messages": messages, "tools": TOOLS})
        except TemplateError as error:
            outcomes["rejected"] += 1
            if not (error.found and (markup or reasoning or name not in TAKES_ALL)):
                pytest.fail(f"rejected without reason: {error}")
            return
        check(tokenizer, messages, examples)
        outcomes["proved"] += 1

    with frozen_clock():
        encode_and_check()
    assert sum(outcomes.values()) >= CONVERSATIONS
    assert outcomes["proved"] >= 10
