import copy
import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, IterableDataset, Json, List, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.rows import to_dataset
from deepfabric_trainer.schema import Message, Tool, normalize_row
from deepfabric_trainer.tools import (
    ToolStrategy,
    clean_tool_schema,
    filter_tools_for_sample,
    get_used_tool_names,
    leaves_no_choice,
    prepare_dataset_for_training,
    select_tools,
)


def tool(name: str, description: str = "", **properties: Any) -> Any:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def conversation(*called: str, request: str = "please") -> list[Message]:
    calls = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in called]
    answer = (
        {"role": "assistant", "content": "", "tool_calls": calls} if calls else {"role": "assistant", "content": "ok"}
    )
    return normalize_row({"messages": [{"role": "user", "content": request}, answer]}).messages


def names(tools: Any) -> list[str]:
    return [each["function"]["name"] for each in tools or []]


CATALOGUE: list[Tool] = [
    tool("read_file", "Read a file from the disk."),
    tool("getWeather", "The weather in a city."),
    tool("send_mail", "Send a mail to somebody."),
    tool("writeFile", "Write text into a file on the disk."),
    tool("get_forecast", "The weather in a city, for the coming days."),
    tool("roll_dice"),
]


class TestSelection:
    def test_all_keeps_all(self) -> None:
        assert select_tools(conversation("roll_dice"), CATALOGUE, "all", min_tools=0, num_distractors=0) == CATALOGUE

    @pytest.mark.parametrize("strategy", ToolStrategy)
    @pytest.mark.parametrize("tools", [None, []])
    def test_no_tools_give_none(self, strategy: ToolStrategy, tools: Any) -> None:
        assert select_tools(conversation("read_file"), tools, strategy) is None

    @pytest.mark.parametrize(
        ("called", "min_tools", "kept"),
        [
            (["roll_dice", "getWeather"], 1, ["getWeather", "roll_dice"]),
            (["roll_dice", "undeclared"], 1, ["roll_dice"]),
            (["roll_dice"], 3, ["read_file", "getWeather", "roll_dice"]),
            (["read_file"], 99, names(CATALOGUE)),
            (["read_file", "roll_dice"], 0, ["read_file", "roll_dice"]),
            ([], 2, ["read_file", "getWeather"]),
            (["undeclared"], 1, ["read_file"]),
            ([], 0, []),
        ],
    )
    def test_used_only_keeps_what_is_called_and_fills_up_from_the_first(
        self, called: list[str], min_tools: int, kept: list[str]
    ) -> None:
        selected = select_tools(conversation(*called), CATALOGUE, "used_only", min_tools=min_tools)
        assert names(selected) == kept
        assert (selected is None) == (not kept)

    def test_tools_of_one_name_are_all_kept_when_it_is_called(self) -> None:
        twins = [tool("twin", "a"), tool("other"), tool("twin", "b")]
        assert select_tools(conversation("twin"), twins, "used_only") == [twins[0], twins[2]]

    @pytest.mark.parametrize(
        ("called", "more", "kept"),
        [
            (["getWeather"], 1, ["getWeather", "get_forecast"]),
            (["read_file"], 1, ["read_file", "writeFile"]),
            (["getWeather", "read_file"], 2, ["read_file", "getWeather", "writeFile", "get_forecast"]),
            (["roll_dice"], 2, ["read_file", "getWeather", "roll_dice"]),
            (["roll_dice"], 0, ["roll_dice"]),
        ],
    )
    def test_related_tools_share_words_with_a_called_one_and_the_first_come_first(
        self, called: list[str], more: int, kept: list[str]
    ) -> None:
        selected = select_tools(conversation(*called), CATALOGUE, "used_plus_related", num_distractors=more)
        assert names(selected) == kept

    def test_the_words_of_names_count_without_descriptions(self) -> None:
        tools = [tool("closeHTTPSession"), tool("sum"), tool("open_http_session")]
        selected = select_tools(
            conversation("open_http_session"), tools[1:] + tools[:1], "used_plus_related", num_distractors=1
        )
        assert names(selected) == ["open_http_session", "closeHTTPSession"]

    def test_function_words_make_nothing_alike(self) -> None:
        tools = [
            tool("a", "Sum of the numbers in a list."),
            tool("b", "Name of the owner in a town."),
            tool("c", "Sum up."),
        ]
        assert names(select_tools(conversation("a"), tools, "used_plus_related", num_distractors=1)) == ["a", "c"]

    def test_where_none_is_called_the_last_request_tells_what_is_related(self) -> None:
        first: list[Message] = [{"role": "user", "content": "Read a file!"}, {"role": "assistant", "content": "No."}]
        messages = [*first, *conversation(request="And mail it to Ann?")]
        selected = select_tools(messages, CATALOGUE, "used_plus_related", num_distractors=1)
        assert names(selected) == ["send_mail"]

    @pytest.mark.parametrize("strategy", ["used_plus_related", "used_plus_sampled"])
    def test_min_tools_holds_for_the_other_strategies_too(self, strategy: str) -> None:
        messages = conversation("getWeather")
        assert len(select_tools(messages, CATALOGUE, strategy, num_distractors=1, min_tools=4) or []) == 4
        assert len(select_tools(messages, CATALOGUE, strategy, num_distractors=2, min_tools=1) or []) == 3
        assert select_tools(conversation(), CATALOGUE, strategy, num_distractors=0, min_tools=0) is None

    def test_draws_differ_with_the_seed_and_with_the_row(self) -> None:
        def drawn(messages: list[Message], seed: int = 0) -> tuple[str, ...]:
            return tuple(names(select_tools(messages, CATALOGUE, "used_plus_sampled", num_distractors=2, seed=seed)))

        messages = conversation("getWeather")
        assert len({drawn(messages, seed) for seed in range(40)}) == 10  # two of five
        assert len({drawn(conversation("getWeather", request=str(row))) for row in range(40)}) == 10

    def test_a_draw_is_the_same_in_another_process(self) -> None:
        code = (
            "import json, sys; from deepfabric_trainer.tools import select_tools;"
            "print(json.dumps(select_tools(*json.load(sys.stdin), 'used_plus_sampled', seed=7)))"
        )
        given = [conversation("getWeather"), CATALOGUE]
        run = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(given), capture_output=True, text=True, check=True
        )
        assert json.loads(run.stdout) == select_tools(*given, "used_plus_sampled", seed=7)

    def test_drawing_leaves_the_global_generator_alone(self) -> None:
        random.random()
        state = random.getstate()
        select_tools(conversation(), CATALOGUE, "used_plus_sampled")
        assert random.getstate() == state

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"strategy": "some"}, "'some'.*'all', 'used_only', 'used_plus_related', 'used_plus_sampled'"),
            ({"strategy": "all", "min_tools": -1}, "min_tools is -1"),
            ({"strategy": "used_only", "num_distractors": -2}, "num_distractors is -2"),
        ],
    )
    def test_options_that_cannot_be_are_named(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            select_tools(conversation(), None, **options)

    @settings(deadline=None)
    @given(
        tools=st.lists(st.builds(tool, st.sampled_from("abcdefgh"), st.sampled_from(["", "x", "x y"])), max_size=12),
        called=st.lists(st.sampled_from("abcdefghi"), max_size=4),
        strategy=st.sampled_from(ToolStrategy),
        min_tools=st.integers(0, 6),
        num_distractors=st.integers(0, 6),
        seed=st.integers(0, 3),
    )
    def test_used_tools_survive_in_order_each_once_and_always_the_same(
        self, tools: list[Any], called: list[str], strategy: ToolStrategy, **options: int
    ) -> None:
        messages, before = conversation(*called), copy.deepcopy(tools)
        selected = select_tools(messages, tools, strategy, **options) or []
        places = [next(place for place, each in enumerate(tools) if each is kept) for kept in selected]
        used = [place for place, each in enumerate(tools) if each["function"]["name"] in called]
        assert places == sorted(set(places))
        assert set(used) <= set(places)
        assert len(places) >= min(options["min_tools"], len(tools))
        if strategy in ("used_plus_related", "used_plus_sampled"):
            assert len(places) >= min(len(used) + options["num_distractors"], len(tools))
        assert select_tools(messages, copy.deepcopy(tools), strategy, **options) == (selected or None)
        assert tools == before


class TestUse:
    @pytest.mark.parametrize(
        "message",
        [
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "a", "arguments": "{}"}}]},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "a", "arguments": {}}]},
            {"role": "assistant", "content": "", "tool_calls": json.dumps([{"name": "a", "arguments": {}}])},
            {"role": "assistant", "content": "", "tool_calls": ['{"function": {"name": "a"}}']},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": None,
                "function_call": {"name": "a", "arguments": "{}"},
            },
            {"from": "function_call", "value": '{"name": "a", "arguments": {}}'},
        ],
    )
    def test_calls_are_found_in_every_form(self, message: dict[str, Any]) -> None:
        assert get_used_tool_names([{"role": "user", "content": "hi"}, message]) == {"a"}

    def test_names_stand_once_and_nothing_else_counts(self) -> None:
        assert get_used_tool_names([*conversation("a", "b"), *conversation("a")]) == {"a", "b"}
        assert get_used_tool_names([{"role": "tool", "name": "c", "content": "{}"}, *conversation()]) == set()
        assert get_used_tool_names([]) == set()

    @pytest.mark.parametrize(
        ("called", "shown", "no_choice"),
        [("ab", "ab", True), ("abc", "a", True), ("a", "ab", False), ("", "a", False), ("a", "", False)],
    )
    def test_there_is_no_choice_when_every_tool_is_called(self, called: str, shown: str, no_choice: bool) -> None:
        assert leaves_no_choice(conversation(*called), [tool(name) for name in shown]) is no_choice
        assert leaves_no_choice(conversation(*called), None) is False


class TestCleaning:
    def test_padding_goes(self) -> None:
        padded = tool("f", city={"type": "string", "description": None, "enum": None}, days=None)
        padded["function"]["strict"] = None
        assert clean_tool_schema(padded) == tool("f", city={"type": "string"})

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": ["string", "null"], "default": None},
            {"type": "string", "default": None},
            {"enum": ["a", None], "examples": [None]},
            {"type": "object", "properties": {}, "required": []},
            {"type": "object", "additionalProperties": {}},
            {"type": "array", "items": {}, "default": []},
            {"type": "string", "default": ""},
            {"type": "object", "properties": {"default": {"type": "string"}}, "default": {"a": None}},
        ],
    )
    def test_what_means_something_stays(self, schema: dict[str, Any]) -> None:
        assert clean_tool_schema(tool("f", it=schema)) == tool("f", it=schema)

    def test_the_tool_itself_is_not_changed(self) -> None:
        padded = tool("f", city={"type": "string", "examples": ["Rome"]}, days=None)
        before = copy.deepcopy(padded)
        clean_tool_schema(padded)["function"]["parameters"]["properties"]["city"]["examples"].append("Oslo")
        assert padded == before


PADDED = [tool("a", "first", x={"type": "string"}, y=None), tool("b", "second", x=None, y={"type": "integer"})]
CLEAN = [tool("a", "first", x={"type": "string"}), tool("b", "second", y={"type": "integer"})]


class TestSample:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (PADDED, CLEAN[1:]),
            (json.dumps(CLEAN), json.dumps(CLEAN[1:])),
            (json.dumps(PADDED), json.dumps(PADDED[1:])),
            ([json.dumps(each) for each in CLEAN], [json.dumps(CLEAN[1])]),
            (PADDED[1:], CLEAN[1:]),
            (None, None),
            ([], []),
            ("", ""),
            ("null", "null"),
        ],
    )
    def test_tools_come_back_in_the_shape_they_had(self, given: Any, expected: Any) -> None:
        row = {"messages": conversation("b"), "tools": given, "id": 7}
        before = copy.deepcopy(row)
        assert filter_tools_for_sample(row) == {**before, "tools": expected}
        assert row == before

    def test_json_text_of_which_nothing_goes_stays_letter_by_letter(self) -> None:
        text = json.dumps(CLEAN, indent=3)
        assert filter_tools_for_sample({"messages": conversation("a", "b"), "tools": text})["tools"] == text

    @pytest.mark.parametrize(("given", "expected"), [(PADDED, []), (json.dumps(PADDED), "[]")])
    def test_no_tool_at_all_is_an_empty_list(self, given: Any, expected: Any) -> None:
        row = {"messages": conversation(), "tools": given}
        assert filter_tools_for_sample(row, min_tools=0)["tools"] == expected

    def test_cleaning_can_be_left_out(self) -> None:
        row = {"messages": conversation("b"), "tools": PADDED}
        assert filter_tools_for_sample(row, "all", clean_schemas=False)["tools"] == PADDED
        assert filter_tools_for_sample(row, "used_only", clean_schemas=False)["tools"] == PADDED[1:]

    def test_the_copy_shares_no_tool_with_the_row(self) -> None:
        row = {"messages": conversation("b"), "tools": copy.deepcopy(PADDED)}
        for clean in (True, False):
            filter_tools_for_sample(row, "all", clean_schemas=clean)["tools"][0]["function"]["name"] = "changed"
        assert row["tools"] == PADDED

    def test_bare_functions_stay_bare(self) -> None:
        bare = [each["function"] for each in CLEAN]
        assert filter_tools_for_sample({"messages": conversation("b"), "tools": bare})["tools"] == bare[1:]

    def test_rows_without_tools_are_copied(self) -> None:
        row = {"messages": conversation("b")}
        assert filter_tools_for_sample(row) == row
        assert filter_tools_for_sample(row) is not row

    @pytest.mark.parametrize(
        "columns",
        [
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "function_call", "value": '{"name": "b"}'}]},
            {"messages": json.dumps(conversation("b"))},
            {"prompt": conversation("b")[:1], "completion": conversation("b")[1:]},
        ],
    )
    def test_the_conversation_is_found_in_other_columns_too(self, columns: dict[str, Any]) -> None:
        assert filter_tools_for_sample({**columns, "tools": PADDED})["tools"] == CLEAN[1:]

    @pytest.mark.parametrize("columns", [{"messages": None}, {"messages": "?"}, {"text": "?"}, {"prompt": "?"}])
    def test_every_tool_stays_where_the_conversation_cannot_be_read(self, columns: dict[str, Any]) -> None:
        assert filter_tools_for_sample({**columns, "tools": PADDED})["tools"] == CLEAN

    def test_tools_that_cannot_be_read_are_an_error(self) -> None:
        with pytest.raises(DataFormatError, match="tools"):
            filter_tools_for_sample({"messages": conversation(), "tools": "[{"})
        with pytest.raises(ConfigError):
            filter_tools_for_sample({"messages": conversation(), "tools": None}, "some")


def rows_of_every_shape() -> list[dict[str, Any]]:
    """Rows that a plain `Dataset.from_list` pads: no two tools have the same properties."""
    ratio = {"type": "number", "minimum": 0.7, "maximum": 6.02214076e23, "multipleOf": 1e-12}
    tools = [
        tool("f0", "zero", city={"type": "string", "enum": ["a", None], "default": "a"}),
        tool("f1", 'From 0.7 to "0.3"', ratio=ratio, free={"type": "object", "additionalProperties": {}}),
        tool("f2", "two", tags={"type": "array", "items": {"type": "string"}, "examples": [None, "x"]}),
        {"type": "function", "function": {"name": "f3", "parameters": {"type": "object", "required": []}}},
    ]
    rows: list[dict[str, Any]] = [
        {
            "messages": conversation(f"f{number % 4}", request=f"q{number}"),
            "tools": copy.deepcopy(tools),
            "score": number / 7,
        }
        for number in range(8)
    ]
    rows[2]["tools"] = None
    rows[5]["tools"] = rows[5]["tools"][:2]
    return rows


def check(dataset: Dataset, strategy: str, folder: Path, **options: Any) -> None:
    """Check that every row that comes out is what the function for single rows gives, here and from disk."""
    prepared = prepare_dataset_for_training(dataset, strategy, **options)
    expected = [filter_tools_for_sample(row, strategy) for row in dataset]
    assert list(prepared) == expected
    assert prepared.column_names == dataset.column_names
    prepared.save_to_disk(str(folder))
    assert list(load_from_disk(str(folder))) == expected


class TestDataset:
    @pytest.mark.parametrize("strategy", ToolStrategy)
    def test_a_padded_dataset_comes_back_as_its_rows_were(self, strategy: str, tmp_path: Path) -> None:
        rows = rows_of_every_shape()
        dataset = Dataset.from_list(rows)
        assert "f0" in str(dataset[1]["tools"])
        assert dataset[1]["tools"][0] != rows[1]["tools"][0]
        check(dataset, strategy, tmp_path / "rows")
        prepared = prepare_dataset_for_training(dataset, strategy)
        assert [row["tools"] for row in prepared] == [filter_tools_for_sample(row, strategy)["tools"] for row in rows]

    def test_a_dataset_of_json_values_stays_one(self, tmp_path: Path) -> None:
        check(to_dataset(rows_of_every_shape()), "used_only", tmp_path / "rows")

    @pytest.mark.parametrize("encode", [json.dumps, lambda tools: tools and [json.dumps(each) for each in tools]])
    def test_json_text_stays_json_text(self, encode: Any, tmp_path: Path) -> None:
        dataset = Dataset.from_list([{**row, "tools": encode(row["tools"])} for row in rows_of_every_shape()])
        check(dataset, "used_only", tmp_path / "rows")
        assert prepare_dataset_for_training(dataset).features == dataset.features

    @pytest.mark.parametrize("tools", [None, []])
    def test_tools_that_no_row_has(self, tools: Any, tmp_path: Path) -> None:
        rows = [{"messages": conversation("a"), "tools": tools}] * 3
        check(Dataset.from_list(rows), "used_only", tmp_path / "rows")

    def test_rows_need_not_have_one_shape(self, tmp_path: Path) -> None:
        rows = rows_of_every_shape()[:3]
        rows[0]["tools"] = {"f0": rows[0]["tools"][0]["function"]}
        check(to_dataset(rows), "all", tmp_path / "rows")

    @pytest.mark.parametrize("feature", [Json(), List(Json())])
    def test_json_values_keep_their_digits(self, feature: Any) -> None:
        given = [tool("a", limit={"type": "number", "maximum": 0.123456789012})]
        encoded = json.dumps(given) if feature == Json() else [json.dumps(each) for each in given]
        features = Features({"messages": List(Json()), "tools": feature})
        dataset = Dataset.from_list([{"messages": conversation("a"), "tools": encoded}], features=features)
        assert dataset[0]["tools"] == given
        prepared = prepare_dataset_for_training(dataset)
        assert prepared[0]["tools"] == given
        assert prepared.features == features

    def test_padding_stays_when_it_may(self) -> None:
        dataset = Dataset.from_list(rows_of_every_shape())
        prepared = prepare_dataset_for_training(dataset, "all", clean_tool_schemas=False)
        assert list(prepared) == list(dataset)

    def test_other_columns_are_not_touched(self) -> None:
        rows = [{**row, "messages": [*row["messages"]]} for row in rows_of_every_shape()]
        rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"x": 0.1234567890123}
        dataset = Dataset.from_list(rows)
        prepared = prepare_dataset_for_training(dataset)
        for name in ("messages", "score"):
            assert prepared.data.column(name).equals(dataset.data.column(name))
            assert prepared.features[name] == dataset.features[name]

    @pytest.mark.parametrize("rows", [[{"messages": conversation()}], []])
    def test_without_tools_it_is_returned(self, rows: list[Any]) -> None:
        dataset = Dataset.from_list(rows)
        assert prepare_dataset_for_training(dataset) is dataset

    def test_an_empty_dataset_stays_empty(self) -> None:
        dataset = Dataset.from_list(rows_of_every_shape()).select([])
        assert prepare_dataset_for_training(dataset).column_names == dataset.column_names

    def test_a_draw_does_not_depend_on_the_place_in_the_dataset(self) -> None:
        dataset = to_dataset(rows_of_every_shape())
        turned = prepare_dataset_for_training(dataset.select(range(7, -1, -1)), "used_plus_sampled")
        assert list(turned)[::-1] == list(prepare_dataset_for_training(dataset, "used_plus_sampled"))

    def test_the_row_that_cannot_be_read_is_named(self) -> None:
        dataset = Dataset.from_list([{"messages": conversation(), "tools": text} for text in ("[]", "[{")])
        with pytest.raises(DataFormatError, match=r"row 1, `tools"):
            prepare_dataset_for_training(dataset)
        with pytest.raises(DataFormatError, match=r"row 1, `tools"):
            list(prepare_dataset_for_training(dataset.to_iterable_dataset()))

    def test_options_that_cannot_be_are_named_before_a_row_is_read(self) -> None:
        stream = Dataset.from_list(rows_of_every_shape()).to_iterable_dataset()
        with pytest.raises(ConfigError, match="'some'"):
            prepare_dataset_for_training(stream, "some")
        with pytest.raises(ConfigError, match="min_tools is -1"):
            prepare_dataset_for_training(stream, min_tools=-1)

    def test_two_processes_give_what_one_gives(self, tmp_path: Path) -> None:
        check(Dataset.from_list(rows_of_every_shape()), "used_plus_sampled", tmp_path / "rows", num_proc=2)


class TestStream:
    @pytest.mark.parametrize("make", [Dataset.from_list, to_dataset])
    def test_it_gives_the_rows_of_the_dataset(self, make: Any) -> None:
        dataset = make(rows_of_every_shape())
        expected = [filter_tools_for_sample(row, "used_plus_related") for row in dataset]
        stream = prepare_dataset_for_training(dataset.to_iterable_dataset(), "used_plus_related")
        assert list(stream) == expected
        assert stream.column_names == dataset.column_names
        assert list(stream.map(lambda row: row).filter(lambda row: row["tools"])) == [
            row for row in expected if row["tools"]
        ]

    def test_it_need_not_know_its_columns(self) -> None:
        rows = [*rows_of_every_shape(), {"messages": conversation()}]
        stream = prepare_dataset_for_training(IterableDataset.from_generator(lambda: iter(rows)))
        assert list(stream) == [filter_tools_for_sample(row) for row in rows]

    def test_without_tools_it_is_returned(self) -> None:
        stream = Dataset.from_list([{"messages": conversation()}]).to_iterable_dataset()
        assert prepare_dataset_for_training(stream) is stream


class TestLog:
    def test_it_tells_the_means_and_warns_once(self, caplog: pytest.LogCaptureFixture) -> None:
        rows = [{"messages": conversation(*called), "tools": CLEAN} for called in (["a"], ["b", "a"], [])]
        rows.append({"messages": conversation(), "tools": None})
        with caplog.at_level(logging.INFO, "deepfabric_trainer.tools"):
            prepare_dataset_for_training(to_dataset(rows))
        told, warned = caplog.records
        assert told.getMessage() == "used_only: 1.0 tools a row, 1.5 before (4 rows)"
        assert warned.levelno == logging.WARNING
        assert "in 2 of 4 rows" in warned.getMessage()

    @pytest.mark.parametrize(
        ("called", "strategy", "min_tools"),
        [("a", "used_only", 2), ("a", "used_plus_related", 1), ("ab", "used_plus_related", 1), ("ab", "all", 1)],
    )
    def test_it_does_not_warn_where_a_choice_is_left_or_never_was(
        self, called: str, strategy: str, min_tools: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = [{"messages": conversation(*called), "tools": CLEAN}]
        prepare_dataset_for_training(to_dataset(rows), strategy, min_tools=min_tools)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
