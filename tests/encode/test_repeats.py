"""What an encoder remembers of rows must not change what it makes of the rows to come."""

import copy
import itertools
import logging
import pickle
import random
import re
from datetime import datetime
from typing import Any
from unittest import mock

import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers.utils import chat_template_utils

from deepfabric_trainer.encode import ConversationEncoder, EncodedExample, known_parts
from deepfabric_trainer.errors import DeepFabricTrainerError
from deepfabric_trainer.schema import normalize_row
from deepfabric_trainer.template import Watch
from tests.fixtures.conversations import STYLES
from tests.fixtures.templates import frozen_clock, tokenizer_with
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer

Row = dict[str, Any]
FEW = ["own", "qwen3", "llama3_1"]
MORE = [
    *("glm4moe", "qwen2_5", "llama3_2", "gptoss_training", "qwen3_6", "qwen3_5_think"),
    *("gemma4_v5", "nemotron_3_nano", "lfm2_v2", "muse_glimmer", "deepseekv3"),
]
TEMPLATES = [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
OTHER_TOOLS = [
    {"type": "function", "function": {"name": name, "description": f'It <|im_end|> does {name}. é \n "x"', **more}}
    for name, more in (("get_weather", {}), ("send_mail", {"parameters": {"type": "object", "properties": {}}}))
]
TEXTS = [
    *("Rome", "Köln", 'He said "no".', "a\nb", "  spaced  ", "back\\slash", "<think>\nhm\n</think>\n\nYes.", "user"),
    *("<tool_response>\nx\n</tool_response>", "\n", "日本", "<|im_end|>", "tool_calls", "x" * 300, "{{ messages }}"),
]


def rows() -> list[Row]:
    """Return rows of few shapes with many texts, whose tools alternate."""
    made: list[Row] = []
    for number, (text, other) in enumerate(zip(TEXTS, TEXTS[::-1], strict=True)):
        name = ("get_weather", "send_mail")[number % 2]
        arguments = {"city": other} if number % 2 == 0 else {"to": text, "text": other}
        messages = [
            {"role": "user", "content": text},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [call(name, **arguments) | {"id": f"call{number:05d}"}],
            },
            {"role": "tool", "content": other, "name": name, "tool_call_id": f"call{number:05d}"},
            {"role": "assistant", "content": f"{number}: {other}"},
        ]
        made.append({"messages": messages, "tools": (TOOLS, OTHER_TOOLS, TOOLS[::-1])[number % 3]})
        made.append({"messages": [messages[0], {"role": "assistant", "content": other}]})
    made += [{"messages": messages, "tools": tools} for messages, tools in STYLES.values()]
    return copy.deepcopy(made)


def outcome(encoder: ConversationEncoder, row: Row) -> list[EncodedExample] | str:
    try:
        return encoder.encode(row)
    except DeepFabricTrainerError as error:
        return str(error)


def check_against_fresh(make: Any, given: list[Row], rounds: int = 2) -> None:
    """Require of an encoder that has seen the rows often, in many orders, what one gives that has seen none."""
    expected = [outcome(make(), row) for row in given]
    encoder, order = make(), list(range(len(given)))
    for turn in range(rounds):
        random.Random(turn).shuffle(order)
        for number in order:
            assert outcome(encoder, given[number]) == expected[number]


@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_give_the_same_in_any_order_and_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_parts, "_FIRST", 0)
    tokenizer = tokenizer_with(name)
    with frozen_clock():
        check_against_fresh(lambda: ConversationEncoder(tokenizer), rows())


@pytest.mark.parametrize("options", [{"train_on": "all"}, {"train_on": "last_assistant"}, {"max_length": 700}])
def test_options_change_nothing_of_that(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_parts, "_FIRST", 0)
    tokenizer = tokenizer_with("qwen3")
    check_against_fresh(lambda: ConversationEncoder(tokenizer, **options), rows()[::2])


ODD = {
    "number of tools": "{{ tools | length if tools }};",
    "names of tools": "{% for t in tools or [] %}{{ t.function.name | upper }},{% endfor %}",
    "length of a text": "{{ 'long' if messages[0].content | length > 6 else 'short' }};",
    "beginning of a text": "{{ 'x' if messages[0].content[:1] == 'x' else 'y' }};",
    "equal texts": "{{ messages[0].content == messages[-1].content }};",
    "called tool": "{% for t in tools or [] if t.function.name == 'get_weather' %}{{ loop.index }}{% endfor %};",
    "last message": "{{ messages[-1].content | length }};",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("place", ["before", "prompt"])
def test_templates_that_look_at_texts_and_tools(name: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_parts, "_FIRST", 0)
    own = tokenizer_with("own").chat_template
    # In the prompt alone it shows in no rendering of a whole conversation.
    template = (
        ODD[name] + own if place == "before" else own + "{% if add_generation_prompt %}" + ODD[name] + "{% endif %}"
    )
    tokenizer = tiny_tokenizer()
    check_against_fresh(lambda: ConversationEncoder(tokenizer, chat_template=template), rows()[::2], rounds=2)


ANSWERS = [*(f"yes {number}" for number in range(6)), "<think>\nfoo", "[THINK]foo", "Thought: foo", "foo", "ok"]


@pytest.mark.parametrize("end", ["<think>\\n", "[THINK]", "Thought: "])
def test_answers_may_go_on_from_the_prompt_for_reasoning(end: str) -> None:
    switch = (
        "{%- if add_generation_prompt and enable_thinking is defined and enable_thinking %}{{- '%s' }}{%- endif %}"
    )
    template = tokenizer_with("own").chat_template + switch.replace("%s", end)
    given = [{"messages": conversation("hi", answer)} for answer in ANSWERS]
    check_against_fresh(lambda: ConversationEncoder(tiny_tokenizer(), chat_template=template), given)


def test_what_follows_an_unstopped_turn_may_read_like_its_stop() -> None:
    template = (
        "{% for m in messages %}{{ ('A: ' if m.role == 'assistant' else '') + m.content + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    )
    texts = [*(f"hi {number}" for number in range(6)), "<|foo|>bar", "</s>", "A: ", "hi"]
    given = [{"messages": conversation("hi", "yes") + conversation(text, "ok")} for text in texts]
    check_against_fresh(lambda: ConversationEncoder(tiny_tokenizer(), chat_template=template), given)


def test_tools_with_private_use_characters_are_refused_after_others_too() -> None:
    given = [{"messages": conversation("hi", "yes"), "tools": copy.deepcopy(TOOLS[:1])} for _ in range(8)]
    for number, row in enumerate(given):
        row["tools"][0]["function"]["description"] = f"Version {number}." if number < 6 else "\U00100005"
    check_against_fresh(lambda: ConversationEncoder(tiny_tokenizer()), given)


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_a_changed_tool_gives_other_tokens() -> None:
    encoder, row = ConversationEncoder(tokenizer_with("qwen3")), rows()[0]
    for number in range(6):
        row["tools"][0]["function"]["description"] = f"Version {number}."
        (example,) = encoder.encode(row)
        assert f"Version {number}." in example.text
        assert [example] == ConversationEncoder(tokenizer_with("qwen3")).encode(row)


def test_new_tools_in_the_place_of_forgotten_ones_are_told_apart() -> None:
    encoder = ConversationEncoder(tokenizer_with("qwen3"))
    for number in range(40):
        row = {**rows()[0], "tools": copy.deepcopy(TOOLS)}
        row["tools"][1]["function"]["description"] = f"Version {number}."
        (example,) = encoder.encode_conversation(normalize_row(row)).examples
        assert f"Version {number}." in example.text


def test_a_clock_that_goes_on_is_read() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + tokenizer.chat_template
    encoder = ConversationEncoder(tokenizer)
    for day in (1, 1, 1, 1, 1, 2, 2, 2, 3, 3):

        class Today(datetime):
            @classmethod
            def now(cls, tz: Any = None, day: int = day) -> "Today":
                return cls(2026, 1, day, tzinfo=tz)

        with mock.patch.object(chat_template_utils, "datetime", Today):
            (example,) = encoder.encode(rows()[0])
        assert example.text.startswith(f"0{day} Jan 2026")


@pytest.mark.parametrize(
    "condition",
    ["messages[-2].tool_calls[0].function.arguments.days > 5", "tools[0].function.name == 'get_weather'"],
)
def test_prompts_may_depend_on_a_number_or_a_tool(condition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers go on from the prompt that some conversations of the shape have and others have not."""
    monkeypatch.setattr(known_parts, "_FIRST", 0)
    own = tokenizer_with("own").chat_template
    prompt = "assistant\\n' }}{%- endif %}"
    # Every turn is written with the words that only some prompts supply, so they show in no rendering of the whole.
    turns = own.replace("assistant\\n' + message.content", "assistant\\nSay: ' + message.content")
    template = turns.replace(
        prompt, "assistant\\n' + ('Say: ' if messages | length > 2 and " + condition + " else '') }}{%- endif %}"
    )
    assert template.count("Say: ") == 2
    given = []
    for number in range(8):
        days, tools = (number * 3 % 8, TOOLS) if "days" in condition else (1, TOOLS[:: 1 - 2 * (number % 2)])
        messages = [
            {"role": "user", "content": f"Weather {number}?"},
            {"role": "assistant", "content": "", "tool_calls": [call("get_weather", city="Rome", days=days)]},
            {"role": "tool", "content": f"rain {number}"},
            {"role": "assistant", "content": f"It rains {number}."},
        ]
        given.append({"messages": messages, "tools": tools})
    tokenizer = tiny_tokenizer()
    encoder = ConversationEncoder(tokenizer, chat_template=template)
    starts = set()
    for row in given * 2:
        (example,) = encoder.encode(row)
        assert [example] == ConversationEncoder(tokenizer, chat_template=template).encode(row)
        starts.add("Say: It" in tokenizer.decode([label for label in example.labels if label != -100]))
    assert starts == {True, False}


def test_a_shape_that_does_not_tell_the_prompts_is_noticed_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(known_parts, "_FIRST", 100)
    own = tokenizer_with("own").chat_template
    monkeypatch.setattr(known_parts, "watch_of", lambda source: Watch(re.compile("(?!)"), frozenset(), (), True))
    prompt = "assistant\\n' }}{%- endif %}"
    hidden = own.replace(prompt, "assistant\\n' + ('!' if messages[0].content < 'm' else '') }}{%- endif %}")
    assert hidden != own
    encoder = ConversationEncoder(tiny_tokenizer(), chat_template=hidden)
    with caplog.at_level(logging.WARNING, known_parts.__name__):
        for number, text in enumerate(["bee", "tree", "see", "rat", "me", "cat"] * 2):
            row = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"a{number}"}]}
            assert encoder.encode(row) == ConversationEncoder(tiny_tokenizer(), chat_template=hidden).encode(row)
    assert len(caplog.records) == 1


def test_what_an_encoder_has_learned_is_not_a_part_of_it() -> None:
    encoder = ConversationEncoder(tokenizer_with("qwen3"))
    before, given = Hasher.hash(encoder), rows()[:12]
    expected = [outcome(encoder, row) for row in given * 3][: len(given)]
    assert Hasher.hash(encoder) == before
    assert len(pickle.dumps(encoder)) < len(pickle.dumps(encoder.processing_class)) + 2000
    sent = pickle.loads(pickle.dumps(encoder))
    assert [outcome(sent, row) for row in given] == expected


def test_what_makes_an_encoder_is_a_part_of_it() -> None:
    tokenizer, other = tokenizer_with("qwen3"), tokenizer_with("qwen3")
    other.chat_template = other.chat_template + " "
    encoders = [
        ConversationEncoder(tokenizer),
        ConversationEncoder(other),
        ConversationEncoder(tokenizer, chat_template=trl_own()),
        ConversationEncoder(tokenizer, train_on="all"),
        ConversationEncoder(tokenizer, max_length=100),
        ConversationEncoder(tokenizer, stop_token_ids=[1]),
        ConversationEncoder(tokenizer, chat_template_kwargs={"enable_thinking": False}),
    ]
    hashes = [Hasher.hash(encoder) for encoder in encoders]
    assert all(one != two for one, two in itertools.combinations(hashes, 2))


def trl_own() -> str:
    return str(tiny_tokenizer().chat_template)


def encode_ids(row: Row, encoder: ConversationEncoder) -> dict[str, Any]:
    (example,) = encoder.encode(row)
    return {"ids": example.input_ids, "labels": example.labels}


@pytest.mark.slow
def test_encoders_work_in_other_processes() -> None:
    given = [row for row in rows()[:24] if not isinstance(outcome(ConversationEncoder(tiny_tokenizer()), row), str)]
    given = [{**row, "tools": row.get("tools")} for row in given if len(row["messages"]) == 2]
    encoder = ConversationEncoder(tiny_tokenizer())
    expected = [encode_ids(row, encoder) for row in given]
    mapped = Dataset.from_list(given).map(
        encode_ids, fn_kwargs={"encoder": encoder}, num_proc=2, remove_columns=["messages", "tools"]
    )
    assert mapped.to_list() == expected
