from typing import Any

import pytest

from deepfabric_trainer.reasoning import ReasoningMode, place_reasoning
from deepfabric_trainer.schema import normalize_row

ROW: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "early"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "late"},
    ],
    "reasoning": {"style": "freetext", "content": "because"},
}


def place(mode: ReasoningMode, row: dict[str, Any] = ROW, *, has_place: bool = True) -> list[Any]:
    return place_reasoning(normalize_row(row), mode, lambda: has_place)


def test_the_trace_goes_to_the_turn_that_first_answers_the_last_request() -> None:
    placed = place(ReasoningMode.AUTO)
    assert [index for index, message in enumerate(placed) if "reasoning_content" in message] == [3]
    assert placed[3]["reasoning_content"] == "because"


def test_auto_leaves_it_out_where_the_template_has_no_place() -> None:
    assert place(ReasoningMode.AUTO, has_place=False) == normalize_row(ROW).messages


def test_inline_writes_it_into_the_content() -> None:
    assert place(ReasoningMode.INLINE)[3]["content"] == "<think>\nbecause\n</think>\n\n"


@pytest.mark.parametrize("own", [{"reasoning_content": "own"}, {"content": "<think>\nown\n</think>\n\nlate"}])
def test_what_a_message_already_has_is_not_replaced(own: dict[str, str]) -> None:
    row = {**ROW, "messages": [*ROW["messages"][:5], {**ROW["messages"][5], **own}]}
    placed = place(ReasoningMode.AUTO, row)
    assert placed == normalize_row(row).messages


def test_none_leaves_out_the_messages_own_too() -> None:
    row = {**ROW, "messages": [*ROW["messages"][:5], {**ROW["messages"][5], "reasoning_content": "own"}]}
    assert not any("reasoning_content" in message for message in place(ReasoningMode.NONE, row))
