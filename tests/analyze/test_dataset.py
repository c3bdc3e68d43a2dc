"""What `analyze_dataset` counts, and what it says about it."""

import copy
import doctest
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from deepfabric_trainer import ConfigError, ConversationEncoder, DataFormatError, analyze_dataset, validate_dataset
from deepfabric_trainer.analyze import Catalogue, dataset
from deepfabric_trainer.analyze.tokens import shared_part
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.tiny import TOOLS, call, tiny_tokenizer, tool_rows


def row(question: str, answer: str = "", *calls: dict[str, Any], tools: Any = TOOLS) -> dict[str, Any]:
    assistant = {"role": "assistant", "content": answer, **({"tool_calls": list(calls)} if calls else {})}
    return {"messages": [{"role": "user", "content": question}, assistant], "tools": tools}


class TestCounts:
    def test_of_messages_turns_and_calls(self) -> None:
        report = analyze_dataset(tool_rows())
        assert report.rows == 8
        assert report.messages == {"assistant": 10, "user": 8, "tool": 2, "system": 1}
        assert (report.turns_with_call, report.turns_without_call) == (7, 3)
        assert report.calls_by_tool == {"get_weather": 7, "send_mail": 1}
        assert report.rejected_rows == ()
        assert report.tokens is None

    def test_of_tools_and_catalogues(self) -> None:
        rows = [row("a", "A"), row("b", "", call("get_weather", city="Rome")), row("c", "C", tools=TOOLS[:1])]
        rows.append(row("d", "D", tools=None))
        report = analyze_dataset(rows)
        assert report.rows_by_tool == {"get_weather": 3, "send_mail": 2}
        assert report.tools_never_called == ["send_mail"]
        assert report.catalogues == (Catalogue(2, 2, 0), Catalogue(1, 1, 2), Catalogue(0, 1, 3))

    def test_tools_in_another_form_are_the_same_catalogue(self) -> None:
        rows = [row("a", "A"), row("b", "B", tools=json.dumps(TOOLS)), row("c", "C", tools=copy.deepcopy(TOOLS))]
        assert [catalogue.rows for catalogue in analyze_dataset(rows).catalogues] == [3]

    def test_of_rows_that_would_be_rejected(self) -> None:
        broken = row("b", "", call("fly"))
        report = analyze_dataset([*tool_rows(), broken, {"text": "no conversation"}, "no row"])
        assert report.rejected_by_rule == {"format": 2, "undeclared-tool": 1}
        assert report.rejected_rows == (8, 9, 10)

    def test_of_a_dataset_a_stream_and_no_rows(self) -> None:
        def stream() -> Iterator[dict[str, Any]]:
            yield from tool_rows()

        expected = analyze_dataset(tool_rows())
        assert analyze_dataset(to_dataset(tool_rows())) == expected
        assert analyze_dataset(to_dataset(tool_rows()).to_iterable_dataset()) == expected
        assert analyze_dataset(stream()) == expected
        assert str(analyze_dataset([])) == (
            "0 rows, 0 messages\nturns       0 by the assistant: 0 make a call, 0 make none\n\n"
            "What to look at\n- There are no rows."
        )

    @pytest.mark.parametrize("dataset", [None, 7])
    def test_of_what_has_no_rows(self, dataset: Any) -> None:
        with pytest.raises(DataFormatError, match=f"the dataset is of type {type(dataset).__name__}"):
            analyze_dataset(dataset)
        with pytest.raises(DataFormatError, match="Expected rows"):
            validate_dataset(dataset)

    def test_rows_stay_as_they_are(self) -> None:
        rows = tool_rows()
        analyze_dataset(rows, tiny_tokenizer())
        assert rows == tool_rows()

    def test_several_datasets_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="splits"):
            analyze_dataset({"train": Dataset.from_list(tool_rows())})  # type: ignore[arg-type]


class TestDuplicates:
    def test_ids_of_calls_make_no_difference(self) -> None:
        first, second = (row("Rain?", "", {**call("get_weather", city="Rome"), "id": name}) for name in "ab")
        for conversation, name in ((first, "a"), (second, "b")):
            conversation["messages"].append({"role": "tool", "tool_call_id": name, "content": "yes"})
            conversation["messages"].append({"role": "assistant", "content": "Yes."})
        report = analyze_dataset([row("Hi", "Hello."), first, second, second])
        assert report.duplicate_rows == ((1, 2, 3),)
        assert report.copies == 2
        assert report.conflicting_prompts == ()

    def test_a_prompt_with_two_answers(self) -> None:
        rows = [row("Hi", "Hello."), row("Hi", "Bye."), row("Hi", "Hello.", tools=TOOLS[:1]), row("Hey", "Hello.")]
        report = analyze_dataset(rows)
        assert report.duplicate_rows == ()
        assert report.repeated_prompts == report.conflicting_prompts == ((0, 1),)

    def test_conversations_that_part_later_are_no_conflict(self) -> None:
        rows = [row("Hi", "Hello."), row("Hi", "Hello.")]
        rows[1]["messages"] += [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        report = analyze_dataset(rows)
        assert report.repeated_prompts == ((0, 1),)
        assert report.conflicting_prompts == report.duplicate_rows == ()


class TestTokens:
    def test_are_those_that_are_trained(self) -> None:
        encoder = ConversationEncoder(tiny_tokenizer())
        rows = [*tool_rows(), row("b", "", call("fly"))]
        examples = [example for one in tool_rows() for example in encoder.encode(one)]
        report = analyze_dataset(rows, tiny_tokenizer()).tokens
        assert report is not None
        assert report.tokens == sum(len(example.input_ids) for example in examples)
        assert report.trained == sum(label != -100 for example in examples for label in example.labels)
        assert report.by_region["stop"] == 10
        assert report.by_region["tool_name"] == 7 * len("get_weather") + len("send_mail")
        lengths = [max(len(example.input_ids) for example in encoder.encode(one)) for one in tool_rows()]
        assert (report.lengths["min"], report.lengths["max"]) == (min(lengths), max(lengths))
        assert report.longest_rows[0] == (6, max(lengths))
        assert report.rows_over == {
            limit: sum(length > limit for length in lengths) for limit in (1024, 2048, 4096, 8192)
        }
        assert 0.3 < report.shared < 0.9

    def test_what_the_template_refuses_is_rejected(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}"
        report = analyze_dataset(tool_rows()[:1], tokenizer)
        assert report.rejected_by_rule == {"template": 1}
        assert report.tokens is None

    def test_shared_part_is_what_stands_once(self) -> None:
        """Eight examples share 99 of 101 tokens: all but the last that they have in common."""
        examples = [(np.array([*range(100), 500 + number], np.int32), 100) for number in range(8)]
        assert shared_part(examples) == pytest.approx(1 - (99 + 8 * 2) / (8 * 101))
        alone = [(np.array(range(number, number + 100), np.int32), 50) for number in range(8)]
        assert shared_part(alone) == 0


class TestWords:
    def test_nothing_to_look_at(self) -> None:
        report = analyze_dataset(tool_rows()[:6])
        assert report.remarks == []
        assert "What to look at" not in str(report)

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ([row("a", "", call("fly"))], "1 row of 1 cannot be trained on, the first is row 0."),
            ([row("a", "A"), row("a", "B")], "1 prompt is answered in different ways, such as in rows 0 and 1."),
            ([row("a", "A")] * 3, "2 rows are copies of earlier ones, such as row 1 of row 0."),
            ([row("a", "", call("get_weather", city="Rome"))], "Every turn calls a tool."),
            ([row("a", "A")], "No turn calls a tool."),
            ([row("a", "A", tools=TOOLS[:1])], "100% of the rows with tools offer just one"),
        ],
    )
    def test_what_to_look_at(self, rows: Any, said: str) -> None:
        assert any(remark.startswith(said) for remark in analyze_dataset(rows).remarks)

    def test_tools_never_called_and_one_called_always(self) -> None:
        tools = [{"type": "function", "function": {"name": f"tool_{number}"}} for number in range(9)]
        rows = [row(str(number), "", call(f"tool_{max(number - 5, 0)}"), tools=tools) for number in range(8)]
        remarks = analyze_dataset(rows).remarks
        assert "6 of 9 tools are offered and never called, such as tool_3, tool_4 and tool_5." in remarks[1]
        assert remarks[2].startswith("75% of the calls are of tool_0.")

    def test_long_rows_and_little_that_is_trained(self) -> None:
        rows = [row("word " * 1000 + str(number), "A") for number in range(2)]
        remarks = " ".join(analyze_dataset(rows, tiny_tokenizer()).remarks)
        assert "2 rows have more than 4,096 tokens" in remarks
        assert "of the tokens are trained, the others are context." in remarks
        assert "of all tokens repeat others: `batching='auto'` computes them once." in remarks

    def test_the_lines(self) -> None:
        lines = str(analyze_dataset(tool_rows(), tiny_tokenizer())).splitlines()
        assert lines[0] == "8 rows, 21 messages (10 assistant, 8 user, 2 tool, 1 system)"
        assert lines[2] == "calls       8 of 2 tools: get_weather (7), send_mail (1)"
        assert lines[3] == "tools       2 offered, 0 never called; 2 a row"

    def test_json_holds_all(self) -> None:
        report = analyze_dataset(tool_rows() * 2, tiny_tokenizer())
        content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert content["rows"] == 16
        assert content["copies"] == 8
        assert content["tokens"]["trained"] == report.tokens.trained  # type: ignore[union-attr]
        assert content["remarks"] == report.remarks

    def test_the_example_in_the_documentation(self) -> None:
        assert doctest.testmod(dataset) == (0, 3)
