"""Which column of a row holds the conversation, and whether it is one."""

import json
from typing import Any

import numpy as np
import pytest

from deepfabric_trainer.schema import conversation_key, is_conversation, normalize_row
from tests.schema.rows import USER

ANSWER = {"role": "assistant", "content": "Hello"}


def test_a_column_that_another_row_had_is_passed_over() -> None:
    row = {"messages": None, "conversations": [{"from": "human", "value": "Hi"}]}
    assert conversation_key(row) == "conversations"
    assert normalize_row(row).messages == [{"role": "user", "content": "Hi"}]
    assert conversation_key({"messages": None, "conversations": None}) == "messages"
    assert conversation_key({"text": "a"}) is None


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER]}, True),
        ({"messages": (USER,)}, True),
        ({"messages": np.array([USER, ANSWER], dtype=object)}, True),
        ({"messages": json.dumps([USER])}, True),
        ({"messages": []}, True),
        ({"messages": "hello"}, False),
        ({"messages": ["hello"]}, False),
        ({"messages": None}, False),
        ({"messages": 3}, False),
        ({"text": "a"}, False),
        ({"query": "a", "answers": "[]", "tools": "[]"}, False),
        ({"system": "a", "chat": "USER: a"}, False),
    ],
)
def test_conversations_are_told_from_other_rows(row: dict[str, Any], expected: bool) -> None:
    assert is_conversation(row) is expected
