import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.callbacks import MetricEarlyStoppingCallback, SampleGenerationCallback
from deepfabric_trainer.collators import SharedPrefixCollator, ToolCallCollator
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.launch import AskedProcesses
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.tiny import QUIET, TOOLS, call, tiny_model, tiny_tokenizer, tool_rows

Run = Callable[..., Any]


@pytest.fixture
def make_trainer(tmp_path: Path) -> Run:
    """Makes trainers on fresh copies of the same tiny model: `make_trainer(SFTTrainer, SFTConfig, rows, ...)`."""

    def make(
        trainer_class: Any,
        config_class: Any,
        rows: Any,
        *,
        trainer_options: Any = None,
        model: Any = None,
        **args: Any,
    ) -> Any:
        tokenizer = tiny_tokenizer()
        options: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            **QUIET,
        }
        return trainer_class(
            model=tiny_model(tokenizer) if model is None else model,
            args=config_class(**(options | args)),
            processing_class=tokenizer,
            train_dataset=to_dataset(rows) if isinstance(rows, list) else rows,
            **(trainer_options or {}),
        )

    return make


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_plain_config_gives_the_loss_curve_of_sft_trainer(make_trainer: Run, accumulation: int) -> None:
    rows = tool_rows() * 3
    options = {"max_steps": 20, "max_length": None, "gradient_accumulation_steps": accumulation}
    expected = losses(make_trainer(SFTTrainer, SFTConfig, rows, **options))
    found = losses(make_trainer(DeepFabricTrainer, SFTConfig, rows, **options))
    assert len(expected) == 20
    assert expected[-1] < expected[0] - 0.1, "the model learns, so the curves say something"
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_plain_config_encodes_right_what_trl_would_corrupt_and_says_so_once(
    make_trainer: Run, caplog: pytest.LogCaptureFixture
) -> None:
    rows, broken = tool_rows(), tool_rows()
    for row in broken:
        for message in row["messages"]:
            for made in message.get("tool_calls", []):
                made["function"]["arguments"] = json.dumps(made["function"]["arguments"])
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer = make_trainer(DeepFabricTrainer, SFTConfig, broken, max_length=None)
    right = make_trainer(SFTTrainer, SFTConfig, rows, max_length=None)
    wrong = make_trainer(SFTTrainer, SFTConfig, broken, max_length=None)
    assert list(trainer.train_dataset["input_ids"]) == list(right.train_dataset["input_ids"])
    assert list(wrong.train_dataset["input_ids"]) != list(right.train_dataset["input_ids"])
    assert len([message for message in caplog.messages if "arguments came as JSON text" in message]) == 1


def test_rows_that_went_through_arrow_are_trained_as_they_were(make_trainer: Run) -> None:
    rows = [row for row in tool_rows() if len(row["messages"]) == 2]
    padded = Dataset.from_list(rows)
    assert "days" in padded[5]["tools"][1]["function"]["parameters"]["properties"], "Arrow pads structs"
    trainer = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, padded)
    texts = trainer.processing_class.batch_decode(list(trainer.train_dataset["input_ids"]))
    assert not any("null" in text.split("</tools>")[0] for text in texts)


def test_assistant_only_loss_works_on_templates_that_trl_does_not_know(make_trainer: Run) -> None:
    with pytest.raises(ValueError, match="template"):
        make_trainer(SFTTrainer, SFTConfig, tool_rows(), assistant_only_loss=True)
    trainer = make_trainer(DeepFabricTrainer, SFTConfig, tool_rows(), assistant_only_loss=True, max_length=None)
    ours = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, tool_rows())
    assert list(trainer.train_dataset["labels"]) == list(ours.train_dataset["labels"])
    assert trainer.args.assistant_only_loss is True
    assert len(losses(trainer)) == 3


def test_only_the_assistant_is_trained_by_default_and_rows_keep_their_order(make_trainer: Run) -> None:
    trainer = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, tool_rows())
    for row, prepared in zip(tool_rows(), trainer.train_dataset, strict=True):
        trained = trainer.processing_class.decode([label for label in prepared["labels"] if label != -100])
        assert trained.count("<|im_end|>") == sum(message["role"] == "assistant" for message in row["messages"])
        assert row["messages"][-1]["content"] in trained
        assert "<tools>" not in trained
        assert "<tool_response>" not in trained


def test_the_models_context_is_the_longest_row(make_trainer: Run) -> None:
    long = tool_rows()[0]
    long["messages"][0]["content"] *= 120
    trainer = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, [long])
    assert len(trainer.train_dataset[0]["input_ids"]) > 1024, "TRL's max_length"
    long["messages"][0]["content"] *= 3
    with pytest.raises(DataFormatError, match="max_length is 4096"):
        make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, [long])


def test_rows_that_cannot_be_trained_stop_the_run_or_are_written_down(
    make_trainer: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*tool_rows(), {"messages": [{"role": "user", "content": "?"}], "tools": None}]
    with pytest.raises(DataFormatError, match="1 of 9 rows"):
        make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, rows)
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, rows, on_invalid="drop")
    assert len(trainer.train_dataset) == 8
    assert "1 of 9 rows cannot be trained on" in caplog.text
    assert json.loads((tmp_path / "run" / "rejected.jsonl").read_text())["row"] == 8


def test_with_a_plain_config_rows_beyond_max_length_are_cut_with_a_word(
    make_trainer: Run, caplog: pytest.LogCaptureFixture
) -> None:
    long = tool_rows()[0]
    long["messages"][0]["content"] *= 120
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer = make_trainer(DeepFabricTrainer, SFTConfig, [*tool_rows(), long])
    assert [len(row["input_ids"]) for row in trainer.train_dataset][8:] == [1024]
    assert "1 of 9 examples are longer than `max_length`, 1024, and were cut at their end" in caplog.text


def test_with_a_plain_config_rows_that_are_cut_before_what_is_trained_are_left_out(
    make_trainer: Run, caplog: pytest.LogCaptureFixture
) -> None:
    long = tool_rows()[0]
    long["messages"][0]["content"] *= 120
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer = make_trainer(DeepFabricTrainer, SFTConfig, [*tool_rows(), long], assistant_only_loss=True)
    assert len(trainer.train_dataset) == 8
    assert "1 of 9 examples have no trained token left and were left out" in caplog.text
    with pytest.raises(DataFormatError, match="no trained token is left"):
        make_trainer(DeepFabricTrainer, SFTConfig, tool_rows(), max_length=20, assistant_only_loss=True)


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "hello there"}] * 4,
        [{"prompt": "a question", "completion": "an answer"}] * 4,
        [{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}] * 4,
        [{"input_ids": [1, 2, 3, 4]}] * 4,
    ],
    ids=["text", "prompt-completion", "conversational prompt-completion", "tokenized"],
)
@pytest.mark.parametrize("config", [SFTConfig, DeepFabricSFTConfig])
def test_rows_that_are_no_conversations_go_trls_way(make_trainer: Run, rows: Any, config: Any) -> None:
    expected = make_trainer(SFTTrainer, SFTConfig, rows)
    trainer = make_trainer(DeepFabricTrainer, config, rows)
    assert list(trainer.train_dataset) == list(expected.train_dataset)
    assert type(trainer.data_collator) is DataCollatorForLanguageModeling
    assert losses(trainer) == pytest.approx(losses(expected), rel=1e-6)


def test_a_formatting_function_goes_trls_way(make_trainer: Run) -> None:
    options = {"formatting_func": lambda row: row["messages"][0]["content"]}
    expected = make_trainer(SFTTrainer, SFTConfig, tool_rows(), trainer_options=options)
    trainer = make_trainer(DeepFabricTrainer, SFTConfig, tool_rows(), trainer_options=options)
    assert list(trainer.train_dataset["input_ids"]) == list(expected.train_dataset["input_ids"])


def test_shared_prefixes_give_the_curve_of_padded_batches_and_count_real_tokens(make_trainer: Run) -> None:
    shared = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, tool_rows(), max_steps=6)
    padded = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, tool_rows(), max_steps=6, batching="padded")
    assert type(shared.data_collator) is SharedPrefixCollator
    assert type(padded.data_collator) is ToolCallCollator
    assert losses(shared) == pytest.approx(losses(padded), rel=1e-5)
    counts = [trainer.state.log_history[5]["num_tokens"] for trainer in (shared, padded)]
    assert counts[0] == counts[1]
    assert shared.state.log_history[5]["num_computed_tokens"] < counts[0] / 2


def test_a_model_that_cannot_share_is_padded_with_a_word_or_refused(
    make_trainer: Run, caplog: pytest.LogCaptureFixture
) -> None:
    def windowed() -> Any:
        model = tiny_model(tiny_tokenizer(), family="qwen2")
        model.config.layer_types = ["sliding_attention", "full_attention"]
        return model

    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, tool_rows(), model=windowed())
    assert type(trainer.data_collator) is ToolCallCollator
    assert "batches are padded" in caplog.text
    with pytest.raises(ConfigError, match="cannot share prefixes"):
        make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, tool_rows(), model=windowed(), batching="shared_prefix")


def test_a_collator_of_the_users_stays(make_trainer: Run) -> None:
    collator = ToolCallCollator(pad_token_id=0)
    trainer = make_trainer(
        DeepFabricTrainer, DeepFabricSFTConfig, tool_rows(), trainer_options={"data_collator": collator}
    )
    assert trainer.data_collator is collator


@pytest.mark.filterwarnings("ignore")
def test_conversations_can_be_packed_whole(make_trainer: Run) -> None:
    trainer = make_trainer(
        DeepFabricTrainer,
        DeepFabricSFTConfig,
        tool_rows(),
        packing=True,
        packing_strategy="bfd",
        max_length=2048,
        model=tiny_model(tiny_tokenizer()),
    )
    encoder = ConversationEncoder(tiny_tokenizer())
    trained = sum(label != -100 for row in tool_rows() for label in encoder.encode(row)[0].labels)
    assert len(trainer.train_dataset) < 8
    assert sum(label != -100 for row in trainer.train_dataset for label in row["labels"]) == trained
    assert len(losses(trainer)) == 3


def test_packing_that_cuts_calls_is_refused(make_trainer: Run) -> None:
    with pytest.raises(ConfigError, match="cuts examples anywhere"):
        make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, tool_rows(), packing=True, packing_strategy="wrapped")


def test_packed_rows_without_a_trained_token_are_left_out_with_a_word(
    make_trainer: Run, caplog: pytest.LogCaptureFixture
) -> None:
    turns = [
        [("user", "x" * 400), ("assistant", "a")],
        [("user", "b"), ("assistant", "c"), ("user", "x" * 850)],
        [("user", "x" * 900), ("assistant", "d")],
    ]
    rows = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in turns]
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        trainer = make_trainer(
            DeepFabricTrainer,
            SFTConfig,
            rows,
            model=tiny_model(tiny_tokenizer()),
            packing=True,
            packing_strategy="wrapped",
            max_length=1000,
            assistant_only_loss=True,
            shuffle_dataset=False,
        )
    assert len(trainer.train_dataset) == 2
    assert all(any(label != -100 for label in row["labels"]) for row in trainer.train_dataset)
    assert "1 of 3 packed rows have no trained token" in caplog.text


CALL = call("get_weather", city="Rome")
COMPLETION = {
    "prompt": [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "Where?"},
        {"role": "user", "content": "Rome"},
    ],
    "completion": [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "heavy rain"},
        {"role": "assistant", "content": "It pours."},
    ],
    "tools": TOOLS,
}


@pytest.mark.parametrize("config", [SFTConfig, DeepFabricSFTConfig])
def test_tool_results_in_a_completion_are_not_trained(make_trainer: Run, config: Any) -> None:
    trainer = make_trainer(DeepFabricTrainer, config, [COMPLETION] * 4)
    row = trainer.train_dataset[0]
    trained = tiny_tokenizer().decode([label for label in row["labels"] if label != -100])
    assert "get_weather" in trained
    assert trained.endswith("It pours.<|im_end|>")
    assert "heavy rain" not in trained
    assert "Where?" not in trained


def test_streams_are_trained(make_trainer: Run) -> None:
    stream = to_dataset(tool_rows()).to_iterable_dataset()
    trainer = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, stream)
    assert isinstance(trainer.train_dataset, IterableDataset)
    assert losses(trainer) == pytest.approx(
        losses(make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, stream, batching="padded")), rel=1e-5
    )


def test_lora_is_trained_and_the_base_is_not(make_trainer: Run) -> None:
    trainer = make_trainer(
        DeepFabricTrainer,
        DeepFabricSFTConfig,
        tool_rows(),
        trainer_options={"peft_config": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")},
    )
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    assert type(trainer.data_collator) is SharedPrefixCollator
    losses(trainer)
    changed = {
        name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed
    assert all("lora" in name for name in changed)


def test_evaluate_takes_rows_and_metrics_of_callbacks_are_there_before_anyone_reads_them(make_trainer: Run) -> None:
    logged: list[dict[str, float]] = []
    generation = SampleGenerationCallback(num_samples=4, max_new_tokens=4, at_start=False)
    stopping = MetricEarlyStoppingCallback("eval_tool_call_exact_match", patience=1)
    trainer = make_trainer(
        DeepFabricTrainer,
        DeepFabricSFTConfig,
        tool_rows(),
        max_steps=6,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_tool_call_exact_match",
        trainer_options={"callbacks": [stopping, generation], "eval_dataset": to_dataset(tool_rows())},
    )
    trainer.log = lambda logs, *args: (logged.append(dict(logs)), type(trainer).log(trainer, logs, *args))[1]
    trainer.train()
    assert trainer.state.global_step == 2, "nothing is learned in one step, so patience ends the run"
    evaluations = [logs for logs in logged if "eval_loss" in logs]
    assert all("eval_tool_call_exact_match" in logs for logs in evaluations)
    assert trainer.state.best_metric is not None
    metrics = trainer.evaluate(to_dataset(tool_rows()[:2]))
    assert metrics["eval_loss"] > 0
    assert metrics["eval_tool_call_turns"] == 2, "generated from the rows that are evaluated"
    assert trainer.evaluate()["eval_tool_call_turns"] == 4
    assert generation.dataset is None


@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
def test_predictions_have_a_row_an_example_and_no_generation(make_trainer: Run) -> None:
    trainer = make_trainer(
        DeepFabricTrainer,
        DeepFabricSFTConfig,
        tool_rows(),
        trainer_options={
            "callbacks": [SampleGenerationCallback(max_new_tokens=2)],
            "eval_dataset": to_dataset(tool_rows()),
            "compute_metrics": lambda prediction: {"rows": len(prediction.predictions)},
        },
    )
    output = trainer.predict(trainer.eval_dataset)
    assert output.label_ids.shape[0] == output.predictions.shape[0] == 8
    assert not any("tool_call" in name for name in output.metrics)
    assert trainer.evaluate()["eval_rows"] == 8
    assert type(trainer.data_collator) is SharedPrefixCollator


def test_the_evaluation_loss_does_not_depend_on_the_layout_of_the_batch(make_trainer: Run) -> None:
    found = []
    for batching in ("shared_prefix", "padded"):
        trainer = make_trainer(
            DeepFabricTrainer, DeepFabricSFTConfig, tool_rows(), batching=batching, per_device_eval_batch_size=3
        )
        found.append(trainer.evaluate(to_dataset(tool_rows()))["eval_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"messages": None}, *tool_rows()[:1]], "row 0, `messages`: the conversation is null"),
        ([{"messages": []}, *tool_rows()[:1]], "row 0, `messages`: the conversation is empty"),
    ],
)
def test_a_first_row_without_messages_is_named(make_trainer: Run, rows: Any, words: str) -> None:
    with pytest.raises(DataFormatError, match=words):
        make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, rows)


def test_an_empty_dataset_is_said_to_be_empty(make_trainer: Run) -> None:
    with pytest.raises(DataFormatError, match="the dataset is empty"):
        make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, to_dataset(tool_rows()).select([]))


def test_other_columns_are_left_alone(make_trainer: Run) -> None:
    rows = [{**row, "prompt": "of somebody", "source": 3} for row in tool_rows()]
    trainer = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, rows)
    assert len(losses(trainer)) == 3


def test_a_stream_is_evaluated(make_trainer: Run) -> None:
    found = []
    for evaluation in (to_dataset(tool_rows()), to_dataset(tool_rows()).to_iterable_dataset()):
        trainer = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, tool_rows())
        found.append(trainer.evaluate(evaluation)["eval_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_long_rows_of_a_stream_are_cut_with_a_plain_config(
    make_trainer: Run, caplog: pytest.LogCaptureFixture
) -> None:
    long = tool_rows()[0]
    long["messages"][0]["content"] *= 120
    stream = to_dataset([*tool_rows(), long]).to_iterable_dataset()
    trainer = make_trainer(DeepFabricTrainer, SFTConfig, stream)
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        assert [len(row["input_ids"]) for row in trainer.train_dataset][8:] == [1024]
    assert "examples longer than `max_length`, 1024, are cut" in caplog.text


def test_callbacks_that_are_added_later_get_the_rows(make_trainer: Run) -> None:
    options = {"eval_dataset": to_dataset(tool_rows())}
    trainer = make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, tool_rows(), trainer_options=options)
    trainer.add_callback(SampleGenerationCallback(num_samples=3, max_new_tokens=2))
    assert trainer.evaluate()["eval_tool_call_turns"] == 3


def test_several_evaluation_sets_and_a_model_by_name(make_trainer: Run, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    sets = {"first": to_dataset(tool_rows()[:2]), "second": to_dataset(tool_rows()[2:4])}
    trainer = make_trainer(
        DeepFabricTrainer,
        DeepFabricSFTConfig,
        tool_rows(),
        model=str(tmp_path / "model"),
        trainer_options={"eval_dataset": sets, "callbacks": [SampleGenerationCallback(max_new_tokens=2)]},
    )
    metrics = trainer.evaluate()
    assert {"eval_first_loss", "eval_second_loss"} <= set(metrics)


def test_the_constructor_is_sft_trainers() -> None:
    ours, theirs = (
        list(inspect.signature(trainer.__init__).parameters) for trainer in (DeepFabricTrainer, SFTTrainer)
    )
    assert ours == theirs


def test_without_args_the_config_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    trainer = DeepFabricTrainer(
        tiny_model(tokenizer), train_dataset=to_dataset(tool_rows()), processing_class=tokenizer
    )
    assert isinstance(trainer.args, DeepFabricSFTConfig)


def test_processes_that_accelerate_did_not_start_are_missed(
    make_trainer: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("deepfabric_trainer.launch.missing_cpu_processes", lambda: AskedProcesses(2))
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        make_trainer(DeepFabricTrainer, DeepFabricSFTConfig, tool_rows())
    assert "asked for 2 processes" in caplog.text
