"""Damaged output is a result, never an exception, and never takes long."""

import time
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.toolcalls import ParsedResponse, parse_tool_calls
from tests.toolcalls.cases import CASE_TOOLS, CASES
from tests.toolcalls.test_round_trips import HAND_MADE, tokenizer_with, written_turn

NAMES = [
    *("own", "deepseekv3", "gemma4", "glm4moe", "gptoss", "lfm2_2_5", "lfm2_v2", "llama3_1", "muse_glimmer"),
    *("nemotron_3_nano", *(name for name in HAND_MADE if name != "tags in tags")),
]
_known = cache(tokenizer_with)


@cache
def _turns(name: str) -> list[str]:
    turns = []
    for calls in CASES.values():
        try:
            turns.append(written_turn(_known(name), calls, content="Well."))
        except TemplateError:
            continue
    return turns


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_gives_a_result(data: Any) -> None:
    name = data.draw(st.sampled_from(NAMES))
    turn = data.draw(st.sampled_from(_turns(name)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(turn)))
        end = data.draw(st.integers(start, len(turn)))
        other = data.draw(st.sampled_from(_turns(name)))
        piece = data.draw(
            st.one_of(st.just(""), st.text(max_size=8), st.sampled_from(["'", '"', "}", "<", "\\", other]))
        )
        turn = turn[:start] + piece + turn[end:]
    parsed = parse_tool_calls(_known(name), turn, CASE_TOOLS)
    assert isinstance(parsed, ParsedResponse)
    for one in parsed.tool_calls:
        assert isinstance(one["function"]["name"], str)
        assert isinstance(one["function"]["arguments"], dict)


_JUNK = ["[", "{", "(", '"', "'", "\\'", '{"a":', "f(a=", " ", "\n", "<", "a:", "</parameter>\n"]


@pytest.mark.parametrize("name", NAMES)
def test_long_junk_is_read_in_a_moment(name: str) -> None:
    tokenizer = _known(name)
    turn = written_turn(tokenizer, CASES["one call"])
    key, value = turn.find("city"), turn.find("Rome")
    began = time.process_time()
    for junk in _JUNK:
        text = junk * (20_000 // len(junk))
        for damaged in (text, turn[:value] + text + turn[value:], turn[:value] + text, turn[:key] + text, turn + text):
            parse_tool_calls(tokenizer, damaged, CASE_TOOLS)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", ["own", "gemma4", "lfm2_v2", "llama3_1"])
@pytest.mark.parametrize("junk", ["[", "{", '{"a":', "f(a="])
def test_many_brackets_are_read_in_a_moment(name: str, junk: str) -> None:
    turn = written_turn(_known(name), CASES["one call"])
    began = time.process_time()
    parse_tool_calls(_known(name), turn[: turn.find("Rome") - 1] + junk * 100_000)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", NAMES)
def test_many_calls_are_read_in_a_moment(name: str) -> None:
    tokenizer = _known(name)
    turn = written_turn(tokenizer, CASES["one call"])
    began = time.process_time()
    for _ in range(1000):
        parse_tool_calls(tokenizer, turn, CASE_TOOLS)
    parse_tool_calls(tokenizer, turn * 1000, CASE_TOOLS)
    assert time.process_time() - began < 2
