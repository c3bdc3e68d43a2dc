import logging
import re
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deepfabric_trainer.encode import chunks
from deepfabric_trainer.encode.chunks import ChunkTokenizer
from deepfabric_trainer.encode.cuts import find_cut

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOOL = '{"name": "%s", "description": "It\'s a test.\\n Of é and 日本 and numbers 12345.", "required": ["a", "b"]}'
CORPUS = [
    "]}\n{" * 40,
    TOOL % "get_weather",
    "}}\n{",
    "</tools>\n\nFor each call",
    "\n\n\nabc  def\t\n  x",
    "<|im_end|>\n<|im_start|>user\n",
]


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def trained(pre_tokenizer: Any, normalizer: Any = None) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that has merged whatever its pre-tokenizer leaves together."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


SAFE = {
    "qwen": lambda: trained(split(QWEN), normalizers.NFC()),
    "o200k": lambda: trained(split(O200K)),
    "gpt2": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
}
UNSAFE = {
    "merges over line ends": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "space before the first word": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "looks behind": lambda: trained(split(r"(?<=x)\n|" + QWEN)),
    "begins of texts": lambda: trained(split(r"^\{|" + QWEN)),
    "no words": lambda: trained(split(r"\n\{|" + QWEN)),
    "changes spaces": lambda: trained(split(QWEN), normalizers.Replace("\n", " ")),
    "other joiner": lambda: trained(pre_tokenizers.Metaspace()),
}


@pytest.mark.parametrize("name", SAFE)
def test_tokenizers_that_end_words_at_line_ends_are_known(name: str) -> None:
    assert find_cut(SAFE[name]()) is not None


@pytest.mark.parametrize("name", UNSAFE)
def test_all_others_tokenize_whole_texts(name: str) -> None:
    tokenizer = UNSAFE[name]()
    assert find_cut(tokenizer) is None
    text = "\n".join([TOOL % "a"] * 8)
    encoder = ChunkTokenizer(tokenizer)
    for _ in range(3):
        assert encoder.encode(text) == encoder.encode_whole(text)


@pytest.mark.parametrize("token", [AddedToken("a\n", normalized=False), AddedToken("<x>", lstrip=True)])
def test_added_tokens_that_reach_over_line_ends_are_not_cut(token: AddedToken) -> None:
    tokenizer = SAFE["qwen"]()
    tokenizer.add_tokens([token])
    assert find_cut(tokenizer) is None


LINES = [
    *(TOOL % name for name in ("get_weather", "send_mail", "x" * 60, "<|im_end|>")),
    *(
        "</tools>",
        "",
        "  ",
        "abc",
        "é\u0301",
        "日本",
        "/path",
        "#",
        "</tool_call><|im_end|>",
        "<|im_start|>user",
        "1" * 70,
    ),
    *("You are a helper who does what is asked of it, and nothing else.", "\t", "\r", "x  ", "\u3000", "a\u2028"),
    TOOL % "search " * 4,
]


@pytest.mark.parametrize("name", SAFE)
def test_the_tokens_of_any_text_are_those_of_the_whole(name: str) -> None:
    tokenizer = SAFE[name]()
    encoder = ChunkTokenizer(tokenizer)

    @settings(
        max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(st.sampled_from(LINES), min_size=4, max_size=14), st.floats(0, 1))
    def encode(lines: list[str], part: float) -> None:
        text = "\n".join(lines)
        start = int(part * len(text))
        found, whole = encoder.encode(text, start), encoder.encode_whole(text)
        assert found.input_ids == whole.input_ids
        assert found.offsets == whole.offsets[found.first :]
        assert all(end <= start for _, end in whole.offsets[: found.first])

    encode()


def test_a_tool_in_front_of_what_is_trained_is_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_FIRST", 0)
    encoder = ChunkTokenizer(SAFE["qwen"]())
    tools = [f"{TOOL % name} {'Of many words. ' * 12}" for name in ("search", "send", "fetch", "book")]
    first, second = "\n".join([*tools, "question one"]), "\n".join([*reversed(tools), "question two"])
    encoder.encode(first, first.index("question"))
    with mock.patch.object(encoder, "_run", side_effect=encoder._run) as run:
        found = encoder.encode(second, second.index("question"))
    assert [call.args for call in run.call_args_list] == [("question two",)]
    assert found.input_ids == encoder.encode_whole(second).input_ids


def test_known_beginnings_are_left_out_of_the_offsets() -> None:
    tokenizer = SAFE["qwen"]()
    encoder = ChunkTokenizer(tokenizer)
    tools = "\n".join(TOOL % f"tool_{number}" for number in range(12))
    for number in range(20):
        text = f"{tools}\n</tools>\nquestion {number}"
        found, whole = encoder.encode(text, len(tools)), encoder.encode_whole(text)
        assert found.input_ids == whole.input_ids
        assert found.offsets == whole.offsets[found.first :]
    assert found.first > 0


@pytest.mark.parametrize("name", SAFE)
def test_a_known_beginning_ends_where_a_text_may_be_cut(name: str) -> None:
    tokenizer = SAFE[name]()
    encoder = ChunkTokenizer(tokenizer)
    shared = "\n".join(TOOL % f"tool_{number}" for number in range(16)) + "\n"
    for behind in [*(f"foo {number}" for number in range(14)), "\nbar", " bar", "\t\n x", "é", "/", "\n{", "foo"]:
        text = f"{shared}{behind}\n<|im_end|>\n<|im_start|>assistant\nyes"
        found, whole = encoder.encode(text, len(text) - 3), encoder.encode_whole(text)
        assert found.input_ids == whole.input_ids
        assert found.offsets == whole.offsets[found.first :]


def test_what_other_calls_leave_in_the_tokenizer_changes_nothing() -> None:
    tokenizer = SAFE["qwen"]()
    encoder = ChunkTokenizer(tokenizer)
    text = "\n".join(TOOL % f"tool_{number}" for number in range(12))
    whole = encoder.encode_whole(text)
    for _ in range(12):
        assert encoder.encode(text) == whole
        tokenizer("some text", truncation=True, max_length=2)
    tokenizer.split_special_tokens = True
    marked = f"{text}\n<|im_end|>"
    for _ in range(3):
        assert encoder.encode(marked).input_ids.tolist() == tokenizer(marked)["input_ids"]


@pytest.mark.parametrize("token", ["weather", "\n{"])
def test_tokens_that_are_added_later_are_known(token: str) -> None:
    tokenizer = SAFE["qwen"]()
    encoder = ChunkTokenizer(tokenizer)
    text = "\n".join([TOOL % "get_weather"] * 16)
    for _ in range(12):
        before = encoder.encode(text)
    tokenizer.add_tokens([token])
    for _ in range(3):
        assert encoder.encode(text) == encoder.encode_whole(text) != before


def test_a_difference_is_noticed_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chunks, "find_cut", lambda tokenizer: re.compile(r"\n(?=[!-.0-~])"))
    encoder = ChunkTokenizer(UNSAFE["merges over line ends"]())
    texts = ["\n".join(TOOL % f"{name}{number}" for number in range(8)) for name in ("a", "b", "a", "a", "b")]
    with caplog.at_level(logging.WARNING, chunks.__name__):
        for text in texts * 2:
            assert encoder.encode(text) == encoder.encode_whole(text)
    assert len(caplog.records) == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_MOST_CHARACTERS", 2000)
    monkeypatch.setattr(chunks, "_MOST_SEEN", 16)
    tokenizer = SAFE["qwen"]()
    encoder = ChunkTokenizer(tokenizer)
    for number in range(60):
        text = "\n".join(TOOL % f"tool_{number // 2}_{line}" for line in range(6))
        assert encoder.encode(text).input_ids == encoder.encode_whole(text).input_ids
    assert all(sum(map(len, kept)) <= 2200 for kept in (encoder._chunks, encoder._older))
    assert len(encoder._seen) <= 16
