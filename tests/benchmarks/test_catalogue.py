import json

import pytest

from benchmarks.catalogue import as_text, briefly, make_rows, make_tools
from benchmarks.tokenizer import small_tokenizer
from deepfabric_trainer.validate import validate_dataset


def test_tools_are_different_the_same_each_time_and_as_long_as_real_ones() -> None:
    tools = make_tools(200)
    assert tools[:20] == make_tools(20)
    assert tools != make_tools(200, seed=1)
    assert len({tool["function"]["name"] for tool in tools}) == 200
    assert all(3 <= len(tool["function"]["parameters"]["properties"]) <= 6 for tool in tools)
    tokenizer = small_tokenizer()
    lengths = [len(tokenizer(json.dumps(tool))["input_ids"]) for tool in tools]
    assert 150 < sum(lengths) / len(lengths) < 250
    assert min(lengths) > 100
    assert max(lengths) < 320


def test_there_are_no_more_tools_than_names() -> None:
    with pytest.raises(ValueError, match="372 different tools, not 400"):
        make_tools(400)


@pytest.mark.parametrize("catalogue", [5, 50])
def test_rows_call_their_own_tools_validly(catalogue: int) -> None:
    tools = make_tools(catalogue)
    rows = make_rows(40, catalogue=tools, tools_per_row=5)
    assert rows[:10] == make_rows(10, catalogue=tools, tools_per_row=5)
    assert [[message["role"] for message in row["messages"]] for row in rows] == [
        ["user", "assistant", "tool", "assistant"]
    ] * 40
    assert len({json.dumps(row["messages"]) for row in rows}) == 40
    assert all(len(row["tools"]) == 5 for row in rows)
    assert all(row["tools"] == tools for row in rows) == (catalogue == 5)
    assert not validate_dataset(rows).findings


def test_tools_as_text_are_the_same_tools() -> None:
    rows = make_rows(3, catalogue=make_tools(6), tools_per_row=2)
    assert [json.loads(row["tools"]) for row in as_text(rows)] == [row["tools"] for row in rows]


def test_the_small_tokenizer_renders_tools_and_gives_the_text_back() -> None:
    tokenizer = small_tokenizer(2048)
    (row,) = make_rows(1, catalogue=make_tools(2), tools_per_row=2)
    text = tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)
    ids = tokenizer(text)["input_ids"]
    assert len(tokenizer) == 2048
    assert tokenizer.decode(ids) == text
    assert row["tools"][1]["function"]["name"] in text
    assert ids == small_tokenizer(2048)(text)["input_ids"]
    assert len(ids) < len(text) / 3


def test_brief_tools_have_the_required_parameters_and_are_valid():
    tools = make_tools(20)
    brief = briefly(tools)
    assert len(json.dumps(brief)) < 0.5 * len(json.dumps(tools))
    for tool, short in zip(tools, brief, strict=True):
        assert short["function"]["description"] == tool["function"]["description"]
        assert sorted(short["function"]["parameters"]["properties"]) == sorted(
            tool["function"]["parameters"]["required"]
        )
    rows = make_rows(8, catalogue=brief, tools_per_row=20)
    assert not validate_dataset(rows).findings
