"""Which examples come together, in which order, and when they are encoded."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from deepfabric_trainer import ConversationEncoder, DeepFabricSFTConfig, DeepFabricTrainer, prepare_dataset
from deepfabric_trainer.collators import SharedPrefixCollator
from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.prepare.lazy import EncodedOnDemand
from deepfabric_trainer.rows import to_dataset
from deepfabric_trainer.training_order import find_sampler
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

Run = Callable[..., Any]


@pytest.fixture
def make_trainer(tmp_path: Path) -> Run:
    def make(rows: Any, *, trainer_options: Any = None, **args: Any) -> Any:
        tokenizer = tiny_tokenizer()
        options: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            **QUIET,
        }
        return DeepFabricTrainer(
            model=tiny_model(tokenizer),
            args=DeepFabricSFTConfig(**(options | args)),
            processing_class=tokenizer,
            train_dataset=to_dataset(rows) if isinstance(rows, list) else rows,
            **(trainer_options or {}),
        )

    return make


def rows_of_two_catalogues() -> list[dict[str, Any]]:
    """Return 16 rows without a system message, in turn with one list of tools and with another."""
    rows, some = [], [row for row in tool_rows() if row["messages"][0]["role"] == "user"]
    some = [*some, some[0]]
    for row in some:
        rows += [copy.deepcopy(row), {**copy.deepcopy(row), "tools": row["tools"][::-1]}]
    return rows


def losses(trainer: Any, **options: Any) -> list[float]:
    trainer.train(**options)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def batches(trainer: Any, epoch: int = 0) -> list[list[int]]:
    """Return the rows of each batch of an epoch, by their number in the dataset."""
    sampler = find_sampler(trainer.get_train_dataloader())
    assert sampler is not None
    sampler.set_epoch(epoch)
    order, size = list(sampler), trainer.args.train_batch_size
    return [order[start : start + size] for start in range(0, len(order), size)]


def test_rows_with_the_same_tools_come_together_and_every_row_once(make_trainer: Run) -> None:
    trainer = make_trainer(rows_of_two_catalogues())
    orders = [batches(trainer, epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(number for batch in order for number in batch) == list(range(16))
        assert all(len({number % 2 for number in batch}) == 1 for batch in order)
    assert orders[0] != orders[1] != orders[2]


def test_the_order_is_the_same_in_every_layout_and_not_grouped_when_that_is_turned_off(make_trainer: Run) -> None:
    rows = rows_of_two_catalogues()
    orders = [batches(make_trainer(rows, batching=layout)) for layout in ("auto", "packed", "padded")]
    assert orders[0] == orders[1] == orders[2]
    for options in ({"group_by_prefix": False}, {"train_sampling_strategy": "sequential"}):
        loader = make_trainer(rows, **options).get_train_dataloader()
        assert find_sampler(loader) is None
    one_catalogue = make_trainer(tool_rows()[:6])
    assert find_sampler(one_catalogue.get_train_dataloader()) is None, "there is nothing to group"


def test_a_dataset_that_is_put_in_later_is_not_drawn_by_the_codes_of_another(make_trainer: Run) -> None:
    trainer = make_trainer(rows_of_two_catalogues())
    trainer.train_dataset = trainer.train_dataset.select(range(5))
    assert find_sampler(trainer.get_train_dataloader()) is None


@pytest.mark.slow
def test_a_shuffled_dataset_is_grouped_by_its_own_rows(make_trainer: Run) -> None:
    trainer = make_trainer(rows_of_two_catalogues(), shuffle_dataset=True)
    decode = trainer.processing_class.decode
    mails_first = ["send_mail" in decode(row["input_ids"]).split("get_weather")[0] for row in trainer.train_dataset]
    assert sum(mails_first) == 8
    assert mails_first != [False, True] * 8, "it is shuffled"
    assert all(len({mails_first[number] for number in batch}) == 1 for batch in batches(trainer))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_that_are_encoded_when_they_are_wanted_make_the_same_run(
    make_trainer: Run, workers: int, shuffle: bool
) -> None:
    rows = rows_of_two_catalogues()
    eager = make_trainer(rows, shuffle_dataset=shuffle)
    lazy = make_trainer(rows, preparation="lazy", dataloader_num_workers=workers, shuffle_dataset=shuffle)
    assert isinstance(lazy.train_dataset, EncodedOnDemand)
    assert losses(lazy) == pytest.approx(losses(eager), rel=1e-6)
    counts = [trainer.state.log_history[-2]["num_tokens"] for trainer in (eager, lazy)]
    assert counts[0] == counts[1]


def test_the_first_step_waits_for_its_own_rows_only(make_trainer: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    encode = ConversationEncoder.encode_conversation

    def count(self: Any, *args: Any) -> Any:
        encoded.append(1)
        return encode(self, *args)

    monkeypatch.setattr(ConversationEncoder, "encode_conversation", count)
    trainer = make_trainer(rows_of_two_catalogues() * 20, preparation="lazy")
    assert len(encoded) == 0
    next(iter(trainer.get_train_dataloader()))
    assert len(encoded) <= 8, "the batch, and the one that is fetched ahead"


@pytest.mark.slow
def test_rows_that_cannot_be_trained_on_stop_a_lazy_run_or_are_left_out_of_it(
    make_trainer: Run, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of_two_catalogues()
    rows[5]["messages"] = rows[5]["messages"][:1]
    with pytest.raises(DataFormatError, match="row 5"):
        make_trainer(rows, preparation="lazy").train()
    trainer = make_trainer(rows, preparation="lazy", on_invalid="drop")
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        assert len(losses(trainer)) == 8
    assert len([message for message in caplog.messages if "left out: row 5" in message]) == 1
    rejected = (Path(trainer.args.output_dir) / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in rejected] == [5]


def test_what_a_lazy_run_repairs_is_said_once(make_trainer: Run, caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of_two_catalogues()
    for row in rows:
        for message in row["messages"]:
            for made in message.get("tool_calls", []):
                made["function"]["arguments"] = json.dumps(made["function"]["arguments"])
    trainer = make_trainer(rows, preparation="lazy")
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        assert len(list(trainer.get_train_dataloader())) == 4
    assert len([message for message in caplog.messages if "arguments came as JSON text" in message]) == 1


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_not_interrupted(make_trainer: Run) -> None:
    rows = rows_of_two_catalogues()
    for preparation in ("eager", "lazy"):
        options = {"preparation": preparation, "save_strategy": "steps", "save_steps": 3}
        whole = losses(make_trainer(rows, **options))
        resumed = make_trainer(rows, **options)
        checkpoint = str(Path(resumed.args.output_dir) / "checkpoint-6")
        assert losses(resumed, resume_from_checkpoint=checkpoint) == pytest.approx(whole, rel=1e-6)


@pytest.mark.slow
def test_encoded_examples_go_in_as_they_are(make_trainer: Run, caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of_two_catalogues()
    prepared = prepare_dataset(to_dataset(rows), ConversationEncoder(tiny_tokenizer()))
    trainer = make_trainer(prepared)
    assert isinstance(trainer.data_collator, SharedPrefixCollator)
    assert trainer.train_dataset.column_names == ["input_ids", "labels", "regions"]
    assert all(len({number % 2 for number in batch}) == 1 for batch in batches(trainer))
    ungrouped = [make_trainer(some, group_by_prefix=False) for some in (prepared, rows)]
    assert losses(ungrouped[0]) == pytest.approx(losses(ungrouped[1]), rel=1e-6)
    longest = sorted(len(ids) for ids in prepared["input_ids"])
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        shorter = make_trainer(prepared, max_length=longest[-3])
    assert len(shorter.train_dataset) == sum(length <= longest[-3] for length in longest)
    assert "longer than `max_length`" in caplog.text
    with pytest.raises(DataFormatError, match="every encoded example"):
        make_trainer(prepared, max_length=10)


def test_what_was_encoded_for_another_trainer_is_not_taken_for_ours(make_trainer: Run) -> None:
    plain = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}] * 8)
    trainer = make_trainer(plain)
    assert not isinstance(trainer.data_collator, SharedPrefixCollator)
