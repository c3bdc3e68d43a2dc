import json
from typing import Any

import pytest

from deepfabric_trainer.schema import Repair, normalize_row
from deepfabric_trainer.schema.tool_texts import ItemTexts
from tests.schema.rows import USER, tools_of

LONG = {"name": "a" * 100, "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
OTHER = {"name": "a" * 100, "parameters": {"type": "object", "properties": {"y": {"type": "string"}}}}


def items_of(texts: ItemTexts[Any], value: Any, **options: Any) -> Any:
    return texts.of_list(json.dumps(value, **options))


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"separators": (",", ":")}])
def test_lists_of_objects_are_read_as_json_reads_them(options: dict[str, Any]) -> None:
    texts: ItemTexts[Any] = ItemTexts(lambda value: value)
    for value in ([LONG], [LONG, OTHER], [OTHER, LONG, LONG], [{}, {"b": "]}"}, LONG]):
        assert items_of(texts, value, **options) == value
        assert texts.of_list(f" {json.dumps(value, **options)}\n") == value


def test_what_was_read_before_is_the_same_object() -> None:
    read = []
    texts: ItemTexts[Any] = ItemTexts(lambda value: read.append(value) or value)
    first = items_of(texts, [LONG, OTHER])
    second = items_of(texts, [OTHER, LONG])
    assert second[0] is first[1]
    assert second[1] is first[0]
    assert len(read) == 2


def test_items_that_begin_alike_are_told_apart() -> None:
    texts: ItemTexts[Any] = ItemTexts(lambda value: value)
    alike = [{**LONG, "number": number} for number in range(20)]
    for _ in range(2):
        assert items_of(texts, alike) == alike
    longer = {**LONG, "parameters": LONG["parameters"], "more": 1}
    assert items_of(texts, [longer, LONG]) == [longer, LONG]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "{}",
        "null",
        '["a"]',
        "[{}",
        "[{},]",
        "[{}] x",
        "[{}{}]",
        '[{"a": NaN}]',
        '[{"a": 1e999}]',
        "[3]",
    ],
)
def test_anything_else_is_left_to_others(text: str) -> None:
    texts: ItemTexts[Any] = ItemTexts(lambda value: value)
    assert texts.of_list(text) is None


def test_an_item_that_cannot_be_read_is_left_to_others_each_time() -> None:
    def refuse(value: Any) -> Any:
        raise ValueError("no")

    texts: ItemTexts[Any] = ItemTexts(refuse)
    assert items_of(texts, [LONG]) is None
    assert items_of(texts, [LONG]) is None


def test_repairs_are_told_for_every_row_that_needs_them() -> None:
    bare = json.dumps([{"name": "bare_" + "x" * 100, "parameters": {}}])
    for _ in range(2):
        for more in ("", " "):  # another text with the same item
            repairs = normalize_row({"messages": [USER], "tools": bare + more}).repairs
            assert repairs == {Repair.TOOLS_JSON, Repair.TOOL_SHAPE}


def test_a_changed_list_changes_no_other() -> None:
    text = json.dumps([LONG, OTHER])
    first = tools_of(text)
    assert first is not None
    first.clear()
    assert len(tools_of(text) or []) == 2
