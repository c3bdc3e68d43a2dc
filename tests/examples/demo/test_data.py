"""The generator of the demo's rows: what it promises about the split, the schemas and the shares."""

import json
from collections import Counter
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from examples.demo import phrasings, talk
from examples.demo.catalogue import TOOLS
from examples.demo.data import HELD_OUT_SHARES, TRAINING_SHARES, held_out_rows, training_rows
from examples.demo.values import POOLS

SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
CLOSED = {"unit", "list"}  # arguments whose schema closes the choice: an enum


def calls(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        call["function"]
        for message in row["messages"]
        if message["role"] == "assistant"
        for call in message.get("tool_calls", [])
    ]


@pytest.fixture(scope="module")
def train() -> list[dict[str, Any]]:
    return training_rows(800, seed=0)


@pytest.fixture(scope="module")
def held_out() -> list[dict[str, Any]]:
    return held_out_rows(200, seed=0)


@pytest.mark.parametrize("make", [training_rows, held_out_rows])
def test_equal_seeds_give_equal_rows_and_others_do_not(make: Any) -> None:
    assert make(50, seed=3) == make(50, seed=3)
    assert make(50, seed=3) != make(50, seed=4)


def test_the_catalogue_is_in_openai_form() -> None:
    assert 12 <= len(TOOLS) <= 14
    assert len(SCHEMAS) == len(TOOLS)
    for tool in TOOLS:
        assert set(tool) == {"type", "function"}
        assert tool["type"] == "function"
        assert set(tool["function"]) == {"name", "description", "parameters"}
        Draft202012Validator.check_schema(tool["function"]["parameters"])


def test_closed_arguments_are_the_only_ones_without_a_pool() -> None:
    closed = {
        name
        for schema in SCHEMAS.values()
        for name, schema_of_one in schema["properties"].items()
        if "enum" in schema_of_one or schema_of_one["type"] == "boolean"
    }
    assert closed == CLOSED


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_tool_is_called_and_every_call_fits_its_schema(split: str, request: pytest.FixtureRequest) -> None:
    rows = request.getfixturevalue(split)
    called = [call for row in rows for call in calls(row)]
    assert {call["name"] for call in called} == set(SCHEMAS)
    for call in called:
        # Without additional properties: an argument that the schema does not declare is an error here.
        Draft202012Validator({**SCHEMAS[call["name"]], "additionalProperties": False}).validate(call["arguments"])


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_request_says_every_open_argument(split: str, request: pytest.FixtureRequest) -> None:
    for row in request.getfixturevalue(split):
        for call in calls(row):
            for name, value in call["arguments"].items():
                if name not in CLOSED:
                    # A sentence that is joined to another one loses its capital.
                    assert str(value).casefold() in row["messages"][0]["content"].casefold()


@pytest.mark.parametrize(("split", "shares"), [("train", TRAINING_SHARES), ("held_out", HELD_OUT_SHARES)])
def test_kinds_have_their_shares(split: str, shares: dict[str, float], request: pytest.FixtureRequest) -> None:
    rows = request.getfixturevalue(split)
    kinds = Counter(row["kind"] for row in rows)
    assert kinds.keys() == shares.keys()
    for kind, share in shares.items():
        assert kinds[kind] == pytest.approx(share * len(rows), abs=1)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_rows_have_the_form_of_their_kind(split: str, request: pytest.FixtureRequest) -> None:
    expected = {"single": 1, "parallel": 2, "result": 1, "none": 0}
    for row in request.getfixturevalue(split):
        assert row["tools"] == list(TOOLS)
        assert len(calls(row)) == expected[row["kind"]]
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant", *(["tool", "assistant"] if row["kind"] == "result" else [])]
        if row["kind"] == "none":
            assert row["messages"][1]["content"]


def test_answers_use_the_results(train: list[dict[str, Any]]) -> None:
    rows = [row for row in train if row["kind"] == "result"]
    with_number = 0
    for row in rows:
        call, result, answer = row["messages"][1:]
        assert result["tool_call_id"] == call["tool_calls"][0]["id"]
        numbers = [str(value) for value in json.loads(result["content"]).values() if isinstance(value, int)]
        assert all(number in answer["content"] for number in numbers)
        with_number += bool(numbers)
    assert with_number


def test_the_splits_share_no_prompt_phrasing_or_value(
    train: list[dict[str, Any]], held_out: list[dict[str, Any]]
) -> None:
    for pool in POOLS.values():
        assert not {str(value).casefold() for value in pool.train} & {str(value).casefold() for value in pool.held_out}
    for intent in phrasings.INTENTS:
        assert not {one.text for one in intent.train} & {one.text for one in intent.held_out}
    assert not {one.text for one in phrasings.JOINTS_TRAIN} & {one.text for one in phrasings.JOINTS_HELD_OUT}
    talk_train = {one.request for one in talk.SMALL_TALK_TRAIN + talk.UNSERVED_TRAIN}
    assert not talk_train & {one.request for one in talk.SMALL_TALK_HELD_OUT + talk.UNSERVED_HELD_OUT}

    assert not {row["messages"][0]["content"] for row in train} & {row["messages"][0]["content"] for row in held_out}

    def named(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
        return {
            (argument, str(value).casefold())
            for row in rows
            for call in calls(row)
            for argument, value in call["arguments"].items()
            if argument not in CLOSED
        }

    assert not named(train) & named(held_out)
    # No text of the held-out split stands in training under another argument either.
    texts = {value for _, value in named(held_out) if not value.replace(".", "").isdigit()}
    assert not texts & {value for _, value in named(train)}


def test_held_out_prompts_are_all_different(held_out: list[dict[str, Any]]) -> None:
    assert len({row["messages"][0]["content"] for row in held_out}) == len(held_out)


def test_small_sets_hold_every_tool() -> None:
    assert {call["name"] for row in held_out_rows(60, seed=1) for call in calls(row)} == set(SCHEMAS)


def test_more_rows_than_there_are_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="different prompts"):
        held_out_rows(40_000, seed=0)
