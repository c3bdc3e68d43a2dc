from typing import Any

import pytest

from deepfabric_trainer.toolcalls import (
    ParsedResponse,
    overall_score,
    score_response,
    score_tool_calls,
)
from tests.fixtures.tiny import TOOLS, call

RIGHT = call("get_weather", city="Rome", days=1)


@pytest.mark.parametrize(
    ("predicted", "types", "valid"),
    [
        ([RIGHT], 1, 1),
        ([call("get_weather", city="Oslo")], 1, 1),
        ([call("get_weather", city=7)], 0, 1),
        ([call("get_weather", days=1)], 1, 0),
        ([call("get_weather", city="Rome", zip="x")], 1, 1),
        ([call("unknown", city="Rome")], 0, 0),
        ([RIGHT, call("get_weather", city=7)], 0, 1),
        ([{"name": "get_weather", "arguments": "no json"}], 0, 0),
        ([], 0, 0),
    ],
)
def test_types_and_validity(predicted: list[Any], types: int, valid: int) -> None:
    score = score_tool_calls(predicted, [RIGHT], TOOLS)
    assert (score.parameter_types, score.valid_call) == (types, valid)


def test_types_inside_unions_and_objects() -> None:
    union = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    parameters = {"type": "object", "properties": {"a": union, "b": {"items": {"type": "integer", "minimum": 3}}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    for arguments, right in (({"a": None}, 1), ({"a": 7}, 0), ({"b": [1]}, 1), ({"b": ["x"]}, 0)):
        assert score_tool_calls([call("f", **arguments)], [], tools).parameter_types == right


def test_weights() -> None:
    def score(*predicted: Any) -> float:
        return overall_score([score_tool_calls(predicted, [RIGHT], TOOLS)], expects_call=[True])

    assert score(RIGHT) == pytest.approx(1.0)
    assert score(call("send_mail", to="Ann", text="x")) == pytest.approx(0.60)
    assert score(call("get_weather", city=7)) == pytest.approx(0.65)
    assert score(call("get_weather")) == pytest.approx(0.75)
    assert score() == 0.0


def test_turns_without_calls_do_not_count() -> None:
    scores = [score_tool_calls([RIGHT], [RIGHT], TOOLS), score_tool_calls([], [], TOOLS)]
    assert overall_score(scores, expects_call=[True, False]) == pytest.approx(1.0)
    assert overall_score(scores[1:], expects_call=[False]) == 0.0
    false_call = score_tool_calls([RIGHT], [], TOOLS)
    assert overall_score([*scores, false_call], expects_call=[True, False, False]) == pytest.approx((1 + 0.6) / 2)


def test_a_malformed_call_has_nothing_right() -> None:
    broken = score_response(ParsedResponse("", None, [RIGHT], "bad"), [RIGHT], TOOLS)
    assert overall_score([broken], expects_call=[True]) == 0.0
