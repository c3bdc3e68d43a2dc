import copy
import doctest
import importlib
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.validate import Finding, Rule, validate_dataset
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer, tool_rows
from tests.validate.rows import DONE, USER, assistant


def broken_rows() -> list[dict[str, Any]]:
    rows = tool_rows()
    rows[2]["messages"][1]["tool_calls"][0]["function"]["name"] = "fly"
    return rows


def test_datasets_streams_and_iterators_give_the_same_findings() -> None:
    from_list = validate_dataset(broken_rows())
    assert [finding.row for finding in from_list.findings] == [2]
    assert from_list.rows == 8
    dataset = Dataset.from_list(broken_rows(), on_mixed_types="use_json")
    for given_rows in (dataset, dataset.to_iterable_dataset(), iter(broken_rows()), tuple(broken_rows())):
        assert validate_dataset(given_rows) == from_list


def test_rows_padded_by_arrow_have_no_findings() -> None:
    rows = [{"messages": [USER, assistant(call("get_weather", city="Rome"))], "tools": TOOLS[:1]}]
    rows += [{"messages": [USER, assistant(call("send_mail", to="a", text="b"))], "tools": TOOLS[1:]}]
    padded = Dataset.from_list(rows)
    assert padded[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]["to"] is None
    assert validate_dataset(padded).findings == []


def test_the_rows_are_left_as_they_were() -> None:
    rows = broken_rows()
    before = copy.deepcopy(rows)
    validate_dataset(rows)
    assert rows == before


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (DatasetDict({"train": Dataset.from_list([{"messages": []}])}), "splits (train)"),
        ({"messages": [USER]}, "splits (messages)"),
        ("rows.jsonl", "a text"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(dataset: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_dataset(dataset)
    assert words in str(caught.value)
    assert "pass one split" in str(caught.value)


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError):
        validate_dataset(tool_rows(), tokenizer)


def test_no_rows_are_no_findings() -> None:
    report = validate_dataset(IterableDataset.from_generator(lambda: iter(())))
    assert (report.rows, report.findings, report.ok) == (0, [], True)


@pytest.mark.parametrize("row", [None, 3, "text", [], {}, {"text": "a"}, {"messages": None}, {"messages": [3]}])
def test_what_is_no_conversation_is_one_finding(row: Any) -> None:
    report = validate_dataset([row, {"messages": [USER, DONE]}])
    ((finding),) = report.findings
    assert (finding.row, finding.rule) == (0, Rule.FORMAT)
    assert finding.found
    assert finding.fix


def test_what_the_encoder_refuses_is_a_finding_also_when_no_rule_foresaw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(encoder: Any, row: Any) -> Any:
        raise DataFormatError("the row is odd", expected="an even one", path="messages")

    monkeypatch.setattr("deepfabric_trainer.encode.ConversationEncoder.encode", refuse)
    report = validate_dataset([*tool_rows()[:1], {"messages": [USER]}], tiny_tokenizer())
    assert [(finding.row, finding.rule, finding.found) for finding in report.findings] == [
        (0, Rule.NOTHING_TO_TRAIN, "the row is odd"),
        (1, Rule.NO_ASSISTANT, "the conversation has no assistant turn, so there is nothing to train"),
    ]
    assert report.findings[0].fix == "give it an even one"


def test_halves_of_characters_can_be_printed_and_written() -> None:
    (finding,) = validate_dataset([{"\ud800": 1}]).findings
    assert "\\ud800" in finding.found.encode().decode()


def test_the_docstrings_example_is_true() -> None:
    module = importlib.import_module("deepfabric_trainer.validate.dataset")
    tested = doctest.testmod(module)
    assert tested.attempted > 0
    assert tested.failed == 0


_KEYS = st.sampled_from(
    ["role", "content", "tool_calls", "function", "name", "arguments", "id", "type", "tool_call_id"]
)
_KEYS |= st.sampled_from(["parameters", "properties", "required", "function_call", "from", "value", "items", "$ref"])
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["user", "assistant", "tool", "get_weather", "object", "{}", '{"name": "get_weather"', "[]"])
)
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=12
)
_FUNCTIONS = st.fixed_dictionaries(
    {},
    optional={"name": st.just("get_weather") | _JSON, "arguments": _JSON, "parameters": _JSON, "description": _JSON},
)
_CALLS = st.fixed_dictionaries({}, optional={"id": _JSON, "type": _JSON, "function": _FUNCTIONS | _JSON})
_MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "x"]) | _JSON},
    optional={
        "content": _JSON,
        "tool_calls": st.lists(_CALLS | _JSON, max_size=2) | _JSON,
        "tool_call_id": _JSON,
        "name": _JSON,
        "reasoning_content": _JSON,
    },
)
_ROWS = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(_MESSAGES | _JSON, max_size=4) | _JSON,
        "tools": st.lists(st.fixed_dictionaries({"function": _FUNCTIONS}) | _JSON, max_size=2) | _JSON,
        "reasoning": _JSON,
        "conversations": _JSON,
    },
)


@settings(max_examples=100, deadline=None)
@given(st.lists(_ROWS | _JSON, max_size=3))
def test_junk_gives_findings_and_never_an_error(rows: list[Any]) -> None:
    report = validate_dataset(rows)
    assert report.rows == len(rows)
    places = [(finding.row, finding.path, finding.rule) for finding in report.findings]
    assert len(places) == len(set(places))
    for finding in report.findings:
        assert isinstance(finding, Finding)
        assert finding.found
        assert finding.fix
        (finding.path + finding.found + finding.fix).encode("utf-8")
    assert str(report)
