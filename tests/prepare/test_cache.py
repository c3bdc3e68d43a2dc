"""Prepared rows are found again by whoever asks for the same, and by nobody else."""

import copy
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pytest
from datasets import Dataset, load_dataset

from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.prepare import cache, encode_dataset
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.templates import trl_template
from tests.fixtures.tiny import tiny_tokenizer, tool_rows

OPTIONS: dict[str, Any] = {
    "train_on": "all",
    "tool_strategy": "used_only",
    "reasoning": "inline",
    "max_length": 50,
    "truncation": "drop",
    "max_tool_result_length": 10,
    "min_tools": 2,
    "num_distractors": 1,
    "tool_seed": 1,
    "chat_template": trl_template("qwen3"),
    "chat_template_kwargs": {"enable_thinking": False},
    "stop_token_ids": (3,),
}
"""Every option of the encoder, with a value that is not its default."""
_SCRIPT = """
import sys
from datasets import load_dataset
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.prepare import encode_dataset
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.tiny import tiny_tokenizer, tool_rows

encoded = []
class Counting(ConversationEncoder):
    def encode_packed(self, *args):
        encoded.append(args)
        return super().encode_packed(*args)

tokenizer = tiny_tokenizer()
if sys.argv[1]:
    tokenizer.add_tokens([sys.argv[1]])
in_memory = to_dataset(tool_rows())
from_file = load_dataset("json", data_files=sys.argv[2], split="train")
for rows in (in_memory, from_file):
    encoder = Counting(tokenizer)
    prepared, report = encode_dataset(rows, encoder)
    print(len(encoded), report.examples, sum(map(sum, prepared["input_ids"])))
    encoded.clear()
"""


@pytest.fixture
def encoded() -> Iterator[mock.Mock]:
    """Counts the conversations that are encoded."""
    with mock.patch.object(
        ConversationEncoder, "encode_packed", autospec=True, side_effect=ConversationEncoder.encode_packed
    ) as counted:
        yield counted


def write_rows(path: Path) -> None:
    # Not with `Dataset.to_json`: datasets 4.7 writes columns of JSON as text in quotes.
    path.write_text("".join(json.dumps(row) + "\n" for row in tool_rows()), encoding="utf-8")


@pytest.fixture
def in_file(tmp_path: Path) -> Dataset:
    """The rows of a file, which `datasets` caches beside the others."""
    write_rows(tmp_path / "rows.jsonl")
    return load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=tmp_path / "cache")


def fingerprint(rows: Dataset, encoder: ConversationEncoder, *, check: bool = True) -> str:
    return cache.fingerprint_of(rows, encoder, check=check)


def test_what_an_encoder_has_learned_does_not_count() -> None:
    rows, used = to_dataset(tool_rows()), ConversationEncoder(tiny_tokenizer())
    fresh = fingerprint(rows, ConversationEncoder(tiny_tokenizer()))
    for row in tool_rows():
        used.encode(row)
    used.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert fingerprint(rows, used) == fresh
    assert fingerprint(to_dataset(tool_rows()), pickle.loads(pickle.dumps(used))) == fresh


def test_every_option_is_known_here() -> None:
    parameters = list(inspect.signature(ConversationEncoder).parameters)
    assert parameters == ["processing_class", *OPTIONS]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_counts(option: str) -> None:
    rows, tokenizer = to_dataset(tool_rows()), tiny_tokenizer()
    changed = ConversationEncoder(tokenizer, **{option: OPTIONS[option]})
    assert fingerprint(rows, changed) != fingerprint(rows, ConversationEncoder(tokenizer))


def add_tokens(tokenizer: Any) -> None:
    tokenizer.add_tokens(["Rome"])


def add_special_tokens(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["Rome"]})


def change_template(tokenizer: Any) -> None:
    tokenizer.chat_template += "\n"


def change_eos(tokenizer: Any) -> None:
    tokenizer.eos_token = "<|endoftext|>"


@pytest.mark.parametrize("change", [add_tokens, add_special_tokens, change_template, change_eos])
def test_the_tokenizer_counts_even_if_it_is_changed_later(change: Any) -> None:
    rows, encoder = to_dataset(tool_rows()), ConversationEncoder(tiny_tokenizer())
    before = fingerprint(rows, encoder)
    change(encoder.tokenizer)
    assert fingerprint(rows, encoder) != before


def test_the_rows_and_whether_they_are_checked_count() -> None:
    rows, encoder = tool_rows(), ConversationEncoder(tiny_tokenizer())
    other = copy.deepcopy(rows)
    other[3]["messages"][0]["content"] += "?"
    before = fingerprint(to_dataset(rows), encoder)
    assert fingerprint(to_dataset(other), encoder) != before
    assert fingerprint(to_dataset(rows).select(range(4)), encoder) != before
    assert fingerprint(to_dataset(rows), encoder, check=False) != before


@pytest.fixture
def other_code(tmp_path: Path) -> Iterator[Path]:
    """A library of one file in the place of this one."""
    (tmp_path / "__init__.py").write_text('__version__ = "1"')
    cache._code.cache_clear()
    with mock.patch.object(cache.deepfabric_trainer, "__file__", str(tmp_path / "__init__.py")):
        yield tmp_path / "__init__.py"
    cache._code.cache_clear()


def test_another_version_of_the_library_counts(other_code: Path) -> None:
    rows, encoder = to_dataset(tool_rows()), ConversationEncoder(tiny_tokenizer())
    before = fingerprint(rows, encoder)
    other_code.write_text('__version__ = "2"')
    cache._code.cache_clear()
    assert fingerprint(rows, encoder) != before


@pytest.mark.parametrize("kind", ["in memory", "in a file"])
def test_the_same_rows_are_encoded_once(kind: str, in_file: Dataset, encoded: mock.Mock) -> None:
    rows = in_file
    if kind == "in memory":
        rows = to_dataset([*tool_rows(), tool_rows()[0]])  # other rows than in other tests, which may have been first
    first, first_report = encode_dataset(rows, ConversationEncoder(tiny_tokenizer()))
    assert encoded.call_count == len(rows)
    again, report = encode_dataset(rows, ConversationEncoder(tiny_tokenizer()))
    assert encoded.call_count == len(rows)
    assert again.to_list() == first.to_list()
    assert report == first_report
    assert report.rows_of_examples.tolist() == first_report.rows_of_examples.tolist()
    assert first.cache_files  # in a file, not in memory


def test_another_template_gives_other_examples_not_those_in_the_cache() -> None:
    rows = to_dataset(tool_rows())
    tokenizer = tiny_tokenizer()
    before, _ = encode_dataset(rows, ConversationEncoder(tokenizer))
    tokenizer.chat_template = tokenizer.chat_template.replace("# Tools", "# The tools")
    after, _ = encode_dataset(rows, ConversationEncoder(tokenizer))
    expected = [ConversationEncoder(tokenizer).encode(row)[0].input_ids for row in tool_rows()]
    assert after["input_ids"][:] == expected
    assert before["input_ids"][:] != expected


def test_without_a_cache_nothing_is_looked_up(encoded: mock.Mock) -> None:
    rows = to_dataset(tool_rows())
    datasets.disable_caching()
    try:
        for _ in range(2):
            prepared, _ = encode_dataset(rows, ConversationEncoder(tiny_tokenizer()))
    finally:
        datasets.enable_caching()
    assert encoded.call_count == 2 * len(rows)
    assert prepared.cache_files


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_one_prepared(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl")

    def run(added_token: str = "") -> list[list[int]]:
        command = [sys.executable, "-c", _SCRIPT, added_token, str(tmp_path / "rows.jsonl")]
        environment = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
        with mock.patch.dict("os.environ", environment):
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [[int(number) for number in line.split()] for line in output.splitlines()]

    first, second, other = run(), run(), run("Rome")
    assert [line[0] for line in first] == [8, 8]
    assert [line[0] for line in second] == [0, 0]
    assert [line[1:] for line in second] == [line[1:] for line in first]
    assert [line[0] for line in other] == [8, 8]
    assert [line[2] for line in other] != [line[2] for line in first]
