import copy
import json
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.rows import to_dataset
from deepfabric_trainer.schema import Repair, RowReasoning, normalize_row
from tests.schema.rows import OTHER_TOOL, TOOL, USER, call

FUNCTION: dict[str, Any] = TOOL["function"]  # type: ignore[assignment]
ANSWER = {"role": "assistant", "content": "Hello"}
CALL_TEXT = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
EXPECTED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Paris?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}, "id": "call_1"}
        ],
    },
    {"role": "tool", "content": '{"sky": null}', "tool_call_id": "call_1", "name": "get_weather"},
    {"role": "assistant", "content": "Sunny."},
]


def openai_row() -> dict[str, Any]:
    messages: list[dict[str, Any]] = copy.deepcopy(EXPECTED)
    messages[2]["content"] = None
    messages[2]["tool_calls"][0]["function"]["arguments"] = '{"city": "Paris"}'
    messages[4]["weight"] = 1
    return {"messages": messages, "tools": [TOOL], "parallel_tool_calls": False}


def deepfabric_row() -> dict[str, Any]:
    return {
        "messages": copy.deepcopy(EXPECTED),
        "tools": [TOOL],
        "reasoning": {
            "style": "agent",
            "content": [{"step_number": 1, "thought": "Look.", "action": "get_weather()"}],
        },
        "metadata": {"topic": "weather"},
    }


def sharegpt_row() -> dict[str, Any]:
    return {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Weather in Paris?"},
            {"from": "function_call", "value": CALL_TEXT},
            {"from": "observation", "value": '{"sky": null}'},
            {"from": "gpt", "value": "Sunny."},
        ],
        "tools": json.dumps([FUNCTION]),
    }


def swift_row() -> dict[str, Any]:
    roles = ("system", "user", "tool_call", "tool_response", "assistant")
    texts = [each["value"] for each in sharegpt_row()["conversations"]]
    return {
        "messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)],
        "tools": json.dumps([TOOL]),
    }


def legacy_row() -> dict[str, Any]:
    messages: list[dict[str, Any]] = copy.deepcopy(EXPECTED)
    messages[2] = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    messages[3] = {"role": "function", "name": "get_weather", "content": '{"sky": null}'}
    return {"messages": messages, "functions": [FUNCTION]}


def toucan_row() -> dict[str, Any]:
    row = legacy_row()
    return {"messages": json.dumps(row["messages"]), "tools": json.dumps([TOOL]), "uuid": "0"}


ROWS = {each.__name__: each for each in (openai_row, deepfabric_row, sharegpt_row, swift_row, legacy_row, toucan_row)}
WITHOUT_IDS = {"sharegpt_row", "swift_row", "legacy_row", "toucan_row"}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("way", ["json", "arrow", "numpy", "torch", "pandas", "rows", "tuples"])
def test_rows_of_every_source_and_storage_become_the_same_conversation(name: str, way: str) -> None:
    row = ROWS[name]()
    stored: Any = {
        "json": lambda: json.loads(json.dumps(row)),
        "arrow": lambda: Dataset.from_list([row])[0],
        "numpy": lambda: Dataset.from_list([row]).with_format("numpy")[0],
        "torch": lambda: Dataset.from_list([row]).with_format("torch")[0],
        "pandas": lambda: Dataset.from_list([row]).to_pandas().to_dict("records")[0],
        "rows": lambda: to_dataset([row, ROWS["openai_row"]()])[0],
        "tuples": lambda: {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()},
    }[way]()
    conversation = normalize_row(stored)
    assert conversation.tools == [TOOL]
    read = json.loads(json.dumps(conversation.messages))
    expected: list[dict[str, Any]] = copy.deepcopy(EXPECTED)
    if name in WITHOUT_IDS:
        expected[2]["tool_calls"][0].pop("id")
        expected[3].pop("tool_call_id")
    if name in ("sharegpt_row", "swift_row"):
        expected[3].pop("name")
    if name == "openai_row":
        expected[4]["weight"] = 1
    assert read == expected
    assert conversation.reasoning == (RowReasoning("agent", "Look.") if name == "deepfabric_row" else None)


@pytest.mark.parametrize("name", ROWS)
def test_the_row_itself_is_not_changed(name: str) -> None:
    row = ROWS[name]()
    before = copy.deepcopy(row)
    normalize_row(row)
    assert row == before
    assert json.dumps(row) == json.dumps(before)


def test_a_row_that_needs_repair_everywhere_is_not_changed() -> None:
    row = {
        "messages": [
            {"role": "User", "content": [{"type": "text", "text": "a", "image": None}], "name": None},
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "f", "arguments": {"a": None, "b": (1,)}},
            },
            {"role": "tool", "content": {"a": np.int64(1)}, "tool_call_id": 1},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {"b": {}, "c": None}}}],
        "reasoning": {"style": None, "content": ("a",)},
    }
    before = copy.deepcopy(row)
    assert len(normalize_row(row).repairs) >= 8
    assert str(row) == str(before)


def test_normalizing_again_changes_nothing() -> None:
    once = normalize_row(openai_row())
    again = normalize_row({"messages": once.messages, "tools": once.tools})
    assert again.messages == once.messages
    assert [type(each["content"]) for each in again.messages] == [type(each["content"]) for each in once.messages]
    assert again.tools == once.tools
    assert not again.repairs


def test_json_text_of_messages_is_decoded() -> None:
    conversation = normalize_row({"messages": json.dumps([USER, ANSWER])})
    assert conversation.messages == [USER, ANSWER]
    assert conversation.repairs == {Repair.MESSAGES_JSON}


def test_sharegpt_roles_are_translated() -> None:
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    assert normalize_row(row).messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert normalize_row(row).repairs == {Repair.ROLE_NAMES}


def test_tools_in_the_system_message_are_left_there() -> None:
    system = {"from": "system", "value": "<tools>" + json.dumps([TOOL, OTHER_TOOL]) + "</tools>"}
    answer = {"from": "gpt", "value": "<tool_call>\n" + CALL_TEXT + "\n</tool_call>"}
    conversation = normalize_row({"conversations": [system, {"from": "human", "value": "Hi"}, answer]})
    assert conversation.tools is None
    assert conversation.messages[0]["content"] == system["value"]
    assert conversation.messages[2] == {"role": "assistant", "content": answer["value"]}


@pytest.mark.parametrize(
    ("reasoning", "style", "text"),
    [
        ("think", "text", "think"),
        ({"style": "freetext", "content": "think"}, "freetext", "think"),
        ({"style": None, "content": "think"}, "text", "think"),
        (
            {"style": "agent", "content": [{"step_number": 1, "thought": "a"}, {"thought": "b", "action": "x"}]},
            "agent",
            "a\nb",
        ),
        ({"style": "agent", "content": [{"reasoning": "a", "thought": None}]}, "agent", "a"),
        ({"style": "steps", "content": ["a", "b"]}, "steps", "a\nb"),
        (["a", "b"], "text", "a\nb"),
        ({"style": "steps", "content": np.array(["a", "b"], dtype=object)}, "steps", "a\nb"),
    ],
)
def test_the_reasoning_column_becomes_text(reasoning: Any, style: str, text: str) -> None:
    assert normalize_row({"messages": [USER], "reasoning": reasoning}).reasoning == RowReasoning(style, text)


@pytest.mark.parametrize(
    "reasoning", [None, "", [], float("nan"), {}, {"style": None, "content": None}, {"style": "a", "content": []}]
)
def test_no_reasoning_is_none(reasoning: Any) -> None:
    assert normalize_row({"messages": [USER], "reasoning": reasoning}).reasoning is None


def nested(depth: int) -> Any:
    value: Any = "a"
    for _ in range(depth):
        value = [value]
    return value


HOLDS_ITSELF: dict[str, Any] = {}
HOLDS_ITSELF["a"] = HOLDS_ITSELF


@pytest.mark.parametrize(
    ("row", "path", "words"),
    [
        ({"text": "a"}, "messages", "only `text`"),
        ({}, "messages", "only nothing"),
        ("hello", "messages", "type str"),
        (None, "messages", "type NoneType"),
        ({"messages": None}, "messages", "null"),
        ({"messages": float("nan")}, "messages", "null"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": np.array([])}, "messages", "empty"),
        ({"messages": "hello"}, "messages", "not JSON"),
        ({"messages": "[]"}, "messages", "empty"),
        ({"messages": "null"}, "messages", "null"),
        ({"messages": "{}"}, "messages", "type dict"),
        ({"messages": 3}, "messages", "type int"),
        ({"messages": USER}, "messages", "type dict"),
        ({"messages": '[{"role": "user", "content": "\\ud83d"}]'}, "messages[0].content", "half of a character"),
        ({"messages": '[{"role": "user", "content": 1e400}]'}, "messages", "1e400"),
        ({"conversations": [{"value": "a"}]}, "conversations[0].role", "None"),
        ({"messages": [USER], "reasoning": 3}, "reasoning", "type int"),
        ({"messages": [USER], "reasoning": {"content": 3}}, "reasoning.content", "type int"),
        ({"messages": [USER], "reasoning": {"content": ["a", {"x": 1}]}}, "reasoning.content[1]", "without a text"),
        ({"messages": [USER], "reasoning": {"content": "\ud83d"}}, "reasoning.content", "half of a character"),
        ({"messages": [USER, call("f", {"a": nested(2000)})]}, "messages", "nested too deeply"),
        ({"messages": [USER, call("f", HOLDS_ITSELF)]}, "messages", "nested too deeply"),
        ({"messages": [USER], "tools": [HOLDS_ITSELF]}, "messages", "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_named(row: Any, path: str, words: str) -> None:
    with pytest.raises(DataFormatError) as caught:
        normalize_row(row)
    assert caught.value.path == path
    assert words in caught.value.found
    assert caught.value.expected
    assert caught.value.fix


def test_a_prompt_and_its_completion_are_one_conversation_whose_prompt_is_not_trained() -> None:
    row = {
        "prompt": [{"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"}],
    }
    before = copy.deepcopy(row)
    assert normalize_row(row).messages == [
        {"role": "user", "content": "a", "train": False},
        {"role": "assistant", "content": "b"},
        {"role": "tool", "content": "c"},
    ]
    assert row == before


@pytest.mark.parametrize("completion", ["text", [], None, [1]])
def test_a_prompt_without_messages_to_go_on_with_is_no_conversation(completion: Any) -> None:
    with pytest.raises(DataFormatError, match="the row has no `messages`"):
        normalize_row({"prompt": [{"role": "user", "content": "a"}], "completion": completion})
