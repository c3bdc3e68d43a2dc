"""The tokenizer, the chat template and the model do not belong together."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset, concatenate_datasets, load_from_disk
from trl import SFTConfig

from deepfabric_trainer import ConfigError, ConversationEncoder, prepare_dataset
from deepfabric_trainer.prepare.origin import differences
from deepfabric_trainer.rows import to_dataset
from tests.faults.runs import make_trainer
from tests.fixtures.tiny import tiny_tokenizer, tool_rows

LARGER = "the tokenizer has 260 ids, the model 259 embeddings"


def larger_tokenizer(token: str) -> Any:
    """Return a tokenizer with a token that the model does not know."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([token])
    return tokenizer


def prepared(tokenizer: Any = None, **options: Any) -> Any:
    return prepare_dataset(to_dataset(tool_rows()), ConversationEncoder(tokenizer or tiny_tokenizer(), **options))


@pytest.mark.parametrize("config", [None, SFTConfig])
def test_ids_without_an_embedding_are_refused_before_training(tmp_path: Path, config: Any) -> None:
    kind = {} if config is None else {"config": config, "max_length": None}
    with pytest.raises(ConfigError) as error:
        make_trainer(tmp_path, processing_class=larger_tokenizer("Rome"), **kind)
    words = str(error.value)
    assert words.startswith("train dataset, example ")
    assert "the id 259 ('Rome') has no embedding: the model has 259 embeddings, the tokenizer 260 ids" in words
    assert "resize_token_embeddings" in words


def test_examples_that_were_tokenized_elsewhere_are_searched_too(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"input_ids": [1, 2]}, {"input_ids": [3, 4000]}])
    with pytest.raises(ConfigError, match=r"train dataset, example 1: the id 4000 has no embedding"):
        make_trainer(tmp_path, SFTConfig, train_dataset=rows)
    trainer = make_trainer(tmp_path, SFTConfig, train_dataset=rows.select([0]))
    assert len(trainer.train_dataset) == 1, "what was not selected does not matter"


def test_a_larger_vocabulary_that_no_example_uses_is_only_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path, processing_class=larger_tokenizer("Zagreb"))
    assert [message for message in caplog.messages if LARGER in message]


def test_a_pad_token_without_an_embedding_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = larger_tokenizer("<pad>")
    tokenizer.pad_token = "<pad>"
    with pytest.raises(ConfigError, match=r"the pad token \(id 259\) has none"):
        make_trainer(tmp_path, processing_class=tokenizer)
    make_trainer(tmp_path, SFTConfig, processing_class=tokenizer, max_length=None)
    assert [message for message in caplog.messages if LARGER in message]


def test_control_tokens_of_the_template_that_the_tokenizer_lacks_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path)
    assert "the chat template writes" not in caplog.text
    tokenizer = tiny_tokenizer()
    for mark in ("start", "end"):
        tokenizer.chat_template = tokenizer.chat_template.replace(f"<|im_{mark}|>", f"<|turn_{mark}|>")
    make_trainer(tmp_path, processing_class=tokenizer)
    assert "the chat template writes <|turn_end|>, <|turn_start|>, which the tokenizer has no token for" in caplog.text


def test_without_pad_and_stop_token_the_run_does_not_start(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"neither a pad token nor a stop token.*tokenizer\.pad_token"):
        make_trainer(tmp_path, processing_class=tokenizer)


def test_a_missing_pad_token_is_the_stop_token_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    trainer = make_trainer(tmp_path, processing_class=tokenizer, batching="padded")
    assert [message for message in caplog.messages if "has no pad token: the stop token '<|im_end|>'" in message]
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[6]])
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop in batch["labels"][0], "it is trained where it ends a turn"
    assert (batch["labels"][0][batch["attention_mask"][0] == 0] == -100).all(), "and nowhere else"


def test_a_missing_stop_token_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    make_trainer(tmp_path, processing_class=tokenizer)
    assert [message for message in caplog.messages if "has no stop token (`eos_token`)" in message]


def test_a_template_that_changed_since_the_rows_were_prepared_is_refused(tmp_path: Path) -> None:
    other = tiny_tokenizer()
    other.chat_template += "{# a remark #}"
    make_trainer(tmp_path, train_dataset=prepared())
    with pytest.raises(ConfigError, match=r"train dataset: .* with another chat template than the trainer's"):
        make_trainer(tmp_path, train_dataset=prepared(), processing_class=other)
    with pytest.raises(ConfigError, match=r"eval dataset: .* with another chat template"):
        make_trainer(tmp_path, eval_dataset=prepared(chat_template=other.chat_template))


def test_with_a_plain_config_a_changed_template_is_only_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = tiny_tokenizer()
    other.chat_template += "{# a remark #}"
    make_trainer(tmp_path, SFTConfig, train_dataset=prepared(), processing_class=other)
    assert [message for message in caplog.messages if "with another chat template than the trainer's" in message]


def test_a_vocabulary_that_changed_since_the_rows_were_prepared_is_refused(tmp_path: Path) -> None:
    other = larger_tokenizer("x1")
    with pytest.raises(ConfigError, match="with another vocabulary than the trainer's"):
        make_trainer(tmp_path, train_dataset=prepared(other))
    assert differences(prepared(), other) == [], "tokens that were added since change nothing"


def test_what_examples_were_encoded_with_goes_along_with_them(tmp_path: Path) -> None:
    examples, other = prepared(), tiny_tokenizer()
    other.chat_template += " "
    examples.save_to_disk(str(tmp_path / "examples"))
    ways = [
        examples.select([1, 2]),
        examples.shuffle(seed=0),
        examples.filter(lambda row: len(row["labels"]) > 2),
        examples.map(lambda row: {"length": len(row["labels"])}),
        examples.train_test_split(0.5, seed=0)["test"],
        concatenate_datasets([examples, prepared(other)]),
        load_from_disk(str(tmp_path / "examples")),
    ]
    assert [differences(way, other) for way in ways] == [["chat template"]] * len(ways)
    lost = Dataset.from_list(examples.to_list())
    assert differences(lost, other) == []


def test_streams_of_examples_are_not_compared(tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(prepared().to_list)
    assert make_trainer(tmp_path, train_dataset=stream).train_dataset is not None
