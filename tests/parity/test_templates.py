from pathlib import Path

import pytest

from tests.fixtures.tiny import tiny_tokenizer
from tests.parity.features import Feature, lora, rows
from tests.parity.runs import (
    TRAINERS,
    assert_same_history,
    assert_same_weights,
    make_trainer,
    train,
)
from tests.parity.samples import CHATS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # TRL warns of many of its own features, in both runs
]


def test_a_template_and_its_tokens_are_taken_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(
        "{{ mood }}{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + ': ' + message.content + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
    )
    moody = [{**row, "chat_template_kwargs": {"mood": "calm"}} for row in CHATS]
    feature = Feature("template", rows(moody), {"chat_template_path": str(tmp_path / "own.jinja")})
    theirs, ours = (make_trainer(trainer_class, feature, tmp_path) for trainer_class in TRAINERS)
    assert "calm<|im_start|>system: Be" in ours.processing_class.decode(ours.train_dataset[0]["input_ids"])
    assert list(ours.train_dataset["input_ids"]) == list(theirs.train_dataset["input_ids"])
    assert_same_history(train(ours).history, train(theirs).history)


def test_a_template_is_cloned_with_its_tokenizer(tmp_path: Path) -> None:
    feature = Feature("clone", rows(CHATS), {"chat_template_path": saved_tokenizer(tmp_path / "source")}, lora())
    theirs, ours = (
        train(make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__)) for trainer_class in TRAINERS
    )
    assert "<|extra|>" in ours.trainer.processing_class.get_vocab()
    assert_same_history(ours.history, theirs.history)
    assert_same_weights(ours.weights, theirs.weights)


def saved_tokenizer(folder: Path) -> str:
    """Return the folder of a tokenizer with one more token."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    tokenizer.save_pretrained(folder)
    return str(folder)
