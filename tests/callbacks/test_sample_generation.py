import copy
import logging
import math
import pickle
from typing import Any

import pytest
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from transformers import TrainerCallback, TrainerState

from deepfabric_trainer.callbacks import SampleGenerationCallback
from deepfabric_trainer.callbacks._generation import turns as generated_turns
from deepfabric_trainer.callbacks._generation.choice import Turn, choose_turns, read_turns
from deepfabric_trainer.callbacks._journal import journal_of
from deepfabric_trainer.errors import ConfigError, TemplateError
from tests.fixtures.tiny import call

_SHARES = (
    *("exact_match", "name", "arguments", "schema_valid", "decision", "parsed", "false_call", "missed_call"),
    *("parameter_types", "valid_call"),
)
METRICS = {
    *(f"eval_tool_call_{name}{bound}" for name in _SHARES for bound in ("", "_low", "_high")),
    *("eval_tool_call_overall_score", "eval_tool_call_turns", "eval_tool_call_turns_with_call"),
}


def callback(rows: Any, **options: Any) -> SampleGenerationCallback:
    return SampleGenerationCallback(rows, **({"max_new_tokens": 4} | options))


@pytest.fixture
def say(monkeypatch, tiny_tokenizer):
    """Makes every generation say a text, the same or one for each prompt, and counts the generations."""

    def replace(said: str | dict[str, str]) -> list[Any]:
        calls: list[Any] = []

        def generate(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
            calls.append(prompts)
            texts = [said if isinstance(said, str) else said[tiny_tokenizer.decode(prompt)] for prompt in prompts]
            return [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

        monkeypatch.setattr(generated_turns, "generate_with_shared_prefix", generate)
        return calls

    return replace


@pytest.fixture
def fail(monkeypatch):
    def generate(*args: Any, **options: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(generated_turns, "generate_with_shared_prefix", generate)


def measure(
    callback: SampleGenerationCallback, model: Any, tokenizer: Any, step: int = 0, **options: Any
) -> dict[str, float]:
    state = TrainerState(global_step=step)
    return callback.compute_metrics(model=model, processing_class=tokenizer, state=state, **options)


def choose(rows: Any, num_turns: int, seed: int) -> list[Turn]:
    return choose_turns(read_turns(rows, seed), num_turns, seed)


class TestChoice:
    def test_proportion(self, tool_rows):
        turns = choose(tool_rows * 10, 20, seed=0)
        assert sum(bool(turn.expected_calls) for turn in turns) == 14
        assert len({(turn.row, len(turn.prompt)) for turn in turns}) == 20

    @pytest.mark.parametrize("num_turns", [2, 3])
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("common", ["call", "text"])
    def test_both_kinds_are_present(self, tool_rows, num_turns, seed, common):
        with_call, without_call = tool_rows[:1], tool_rows[4:5]
        rows = with_call * 50 + without_call if common == "call" else with_call + without_call * 50
        assert {bool(turn.expected_calls) for turn in choose(rows, num_turns, seed)} == {True, False}

    def test_every_beginning_has_the_proportion(self, tool_rows):
        turns = choose(tool_rows * 10, 40, seed=0)
        shares = [sum(bool(turn.expected_calls) for turn in turns[:end]) / end for end in range(4, 41)]
        assert all(abs(share - 0.7) <= 0.2 for share in shares)
        assert [turn.row for turn in turns] != sorted(turn.row for turn in turns)

    def test_turns_that_say_that_they_are_not_trained_are_no_example(self, tool_rows):
        tool_rows[6]["messages"][2]["weight"] = 0
        tool_rows[6]["messages"][4]["train"] = False
        assert [len(turn.prompt) for turn in choose(tool_rows, 100, seed=0) if turn.row == 6] == [6]

    def test_seed(self, tool_rows):
        rows = tool_rows * 10
        from_arrow = choose(Dataset.from_list(rows), 8, seed=1)
        assert [turn.row for turn in from_arrow] == [turn.row for turn in choose(rows, 8, seed=1)]
        assert choose(rows, 8, seed=1) != choose(rows, 8, seed=2)

    def test_all_when_there_are_few(self, tool_rows):
        turns = choose(tool_rows, 100, seed=0)
        assert len(turns) == 10
        assert sorted(len(turn.prompt) for turn in turns if turn.row == 6) == [2, 4, 6]

    def test_unreadable_rows_are_counted(self, tool_rows, caplog):
        turns = choose([*tool_rows, {"messages": 7}, {"messages": []}], 100, seed=0)
        assert len(turns) == 10
        assert "2 of 10 rows" in caplog.text

    @pytest.mark.parametrize(
        "rows", [[], [{"messages": [{"role": "assistant", "content": "Hi"}]}], {"a": []}, iter([])]
    )
    def test_nothing_to_choose(self, rows):
        with pytest.raises(ConfigError):
            choose(rows, 4, seed=0)


class TestMetrics:
    def test_everything_right(self, tiny_model, tiny_tokenizer, tool_rows, say):
        rows = [tool_rows[0], tool_rows[4], tool_rows[7]]
        texts = {}
        for row in rows:
            options = {"tools": row["tools"], "tokenize": False}
            prompt = tiny_tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, **options)
            texts[prompt] = tiny_tokenizer.apply_chat_template(row["messages"], **options).removeprefix(prompt)
        say(texts)
        subject = callback(rows)
        metrics = measure(subject, tiny_model, tiny_tokenizer)
        assert set(metrics) == METRICS
        assert metrics["eval_tool_call_exact_match"] == 1.0
        assert metrics["eval_tool_call_turns"] == 3
        assert metrics["eval_tool_call_turns_with_call"] == 2
        assert [sample.row for sample in subject.results[0].samples] == [0, 1, 2]
        assert subject.results[0].samples[1].expected_text == "Hello."
        assert subject.results[0].samples[0].expected_calls == [call("get_weather", city="Rome", days=1)]

    def test_malformed(self, tiny_model, tiny_tokenizer, tool_rows, say):
        say('<tool_call>\n{"name": "get_weat')
        metrics = measure(callback(tool_rows), tiny_model, tiny_tokenizer)
        assert metrics["eval_tool_call_parsed"] == 0.0
        assert metrics["eval_tool_call_exact_match"] == 0.0
        assert metrics["eval_tool_call_false_call"] == 1.0
        assert metrics["eval_tool_call_missed_call"] == 0.0

    def test_a_call_where_no_tool_is_declared(self, tiny_model, tiny_tokenizer, tool_rows, say):
        say('<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>')
        with_call, without_call = ({"messages": tool_rows[number]["messages"]} for number in (0, 4))
        valid = [
            measure(callback([row]), tiny_model, tiny_tokenizer)["eval_tool_call_schema_valid"]
            for row in (with_call, without_call)
        ]
        assert valid == [1.0, 0.0], "a row with calls and without tools has declared them somewhere else"

    def test_prompt_is_the_recorded_history(self, tiny_model, tiny_tokenizer, tool_rows, say):
        prompts = say("Hi")
        measure(callback(tool_rows[6:7]), tiny_model, tiny_tokenizer)
        messages = tool_rows[6]["messages"]
        options = {"tools": tool_rows[6]["tools"], "add_generation_prompt": True, "tokenize": False}
        expected = [tiny_tokenizer.apply_chat_template(messages[:end], **options) for end in (2, 4, 6)]
        assert sorted(tiny_tokenizer.decode(prompt) for prompt in prompts[0]) == sorted(expected)

    def test_prefix(self, tiny_model, tiny_tokenizer, tool_rows, say):
        say("Hi")
        subject = callback(tool_rows, metric_prefix="heldout")
        assert measure(subject, tiny_model, tiny_tokenizer) == {}
        metrics = measure(subject, tiny_model, tiny_tokenizer, metric_key_prefix="heldout")
        assert metrics["heldout_tool_call_turns"] == 10

    @pytest.mark.parametrize(
        ("prefix", "measured"), [("eval", True), ("eval_a", True), ("test", False), ("evaluate", False)]
    )
    def test_other_evaluations(self, tiny_model, tiny_tokenizer, tool_rows, say, prefix, measured):
        say("Hi")
        metrics = measure(callback(tool_rows), tiny_model, tiny_tokenizer, metric_key_prefix=prefix)
        assert set(metrics) == (METRICS if measured else set())

    def test_one_measurement_a_step_and_model(self, tiny_model, tiny_tokenizer, tool_rows, say):
        generations = say("Hi")
        subject = callback(tool_rows)
        first = measure(subject, tiny_model, tiny_tokenizer, metric_key_prefix="eval_a")
        assert measure(subject, tiny_model, tiny_tokenizer, metric_key_prefix="eval_b") == first
        assert len(generations) == len(subject.results) == 1
        measure(subject, tiny_model, tiny_tokenizer, step=1)
        assert len(generations) == 2
        with torch.no_grad():
            tiny_model.lm_head.weight[0] += 1  # another checkpoint was loaded at the same step
        measure(subject, tiny_model, tiny_tokenizer, step=1)
        assert [result.step for result in subject.results] == [0, 1, 1]

    def test_turns_that_cannot_be_generated(self, tiny_model, tiny_tokenizer, tool_rows, say, caplog):
        say("Hi")
        tool_rows[0]["messages"][0]["content"] = "x" * 5000
        tiny_tokenizer.chat_template = (
            "{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{%- endif %}"
            + (tiny_tokenizer.chat_template)
        )
        subject = callback(tool_rows)
        for step in range(2):
            assert measure(subject, tiny_model, tiny_tokenizer, step=step)["eval_tool_call_turns"] == 6
        assert caplog.text.count("4 of 10 sampled turns are not generated") == 1


class TestTimeBudget:
    def test_what_was_done_is_scored_and_the_rest_counted(self, tiny_model, tiny_tokenizer, tool_rows, caplog):
        subject = callback(tool_rows, max_seconds=1e-9, batch_size=4)
        with caplog.at_level(logging.WARNING, logger="deepfabric_trainer"):
            metrics = [measure(subject, tiny_model, tiny_tokenizer, step=step) for step in range(2)]
        assert metrics[0] == metrics[1]
        assert metrics[0]["eval_tool_call_turns"] == 4
        assert metrics[0]["eval_tool_call_turns_left_out"] == 6
        assert metrics[0]["eval_tool_call_turns_with_call"] == 3
        assert caplog.text.count("left 6 of 10 sampled turns and conversations out") == 1
        alone = callback(tool_rows)
        measure(alone, tiny_model, tiny_tokenizer)
        by_turn = {(sample.row, len(sample.prompt)): sample for sample in alone.results[0].samples}
        done = subject.results[0].samples
        assert done == [by_turn[sample.row, len(sample.prompt)] for sample in done]

    def test_enough_time(self, tiny_model, tiny_tokenizer, tool_rows):
        metrics = measure(callback(tool_rows, max_seconds=600, batch_size=4), tiny_model, tiny_tokenizer)
        assert (metrics["eval_tool_call_turns"], metrics["eval_tool_call_turns_left_out"]) == (10, 0)

    @pytest.mark.parametrize("seconds", [0, -1.0, math.nan])
    def test_no_time_is_refused(self, seconds):
        with pytest.raises(ConfigError, match="max_seconds"):
            SampleGenerationCallback(max_seconds=seconds)


class TestErrors:
    @pytest.mark.parametrize(
        "name", ["num_samples", "max_new_tokens", "batch_size", "every_n_steps", "num_conversations"]
    )
    def test_numbers(self, name):
        with pytest.raises(ConfigError, match=name):
            SampleGenerationCallback(**{name: 0})

    def test_no_dataset(self, make_sft_trainer, tool_rows):
        trainer = make_sft_trainer(tool_rows, callbacks=[SampleGenerationCallback(at_start=False)])
        with pytest.raises(ConfigError, match="no dataset"):
            trainer.train()

    def test_no_usable_turn(self, make_sft_trainer, tool_rows):
        trainer = make_sft_trainer(
            tool_rows, callbacks=[callback([{"messages": [{"role": "user", "content": "Hi"}]}])]
        )
        with pytest.raises(ConfigError, match="none of 1 rows"):
            trainer.train()

    def test_no_processing_class(self, tiny_model, tool_rows):
        with pytest.raises(ConfigError, match="processing_class"):
            measure(callback(tool_rows), tiny_model, None)

    def test_template_without_calls(self, tiny_model, tiny_tokenizer, tool_rows):
        tiny_tokenizer.chat_template = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
        with pytest.raises(TemplateError):
            measure(callback(tool_rows), tiny_model, tiny_tokenizer)

    def test_prompts_longer_than_the_context(self, tiny_model, tiny_tokenizer, tool_rows):
        with pytest.raises(ConfigError, match="of 4096 tokens"):
            measure(callback(tool_rows, max_new_tokens=4096), tiny_model, tiny_tokenizer)

    def test_failure_is_logged_once_and_the_run_goes_on(self, make_sft_trainer, tool_rows, fail, caplog):
        trainer = make_sft_trainer(
            tool_rows,
            callbacks=[callback(tool_rows)],
            eval_dataset=Dataset.from_list(tool_rows),
            eval_strategy="steps",
            eval_steps=1,
            metric_for_best_model="tool_call_exact_match",
        )
        with caplog.at_level(logging.WARNING, logger="deepfabric_trainer"):
            trainer.train()
        assert trainer.state.global_step == 2
        assert caplog.text.count("generation failed") == 1
        assert "RuntimeError: out of memory" in caplog.text

    def test_weights_that_are_spread_over_processes_are_logged(self, tiny_model, tiny_tokenizer, tool_rows, caplog):
        PartialState()  # which would take the group below for that of a run
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            head = tiny_model.lm_head
            head.weight = torch.nn.Parameter(distribute_tensor(head.weight.detach(), init_device_mesh("cpu", (1,))))
            with caplog.at_level(logging.WARNING, logger="deepfabric_trainer"):
                assert measure(callback(tool_rows), tiny_model, tiny_tokenizer) == {}
        finally:
            torch.distributed.destroy_process_group()
        assert "spread over processes" in caplog.text

    def test_failure_is_raised_if_asked(self, tiny_model, tiny_tokenizer, tool_rows, fail):
        with pytest.raises(RuntimeError, match="out of memory"):
            measure(callback(tool_rows, raise_on_error=True), tiny_model, tiny_tokenizer)


class Watch(TrainerCallback):
    """Keeps what a callback after ours sees."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.metrics.append(dict(metrics))


class TestInATrainer:
    @pytest.mark.slow
    def test_when_it_measures(self, make_sft_trainer, tool_rows, say):
        generations = say("Hi")
        subject, watch = callback(tool_rows, every_n_steps=2), Watch()
        trainer = make_sft_trainer(
            tool_rows,
            callbacks=[subject, watch],
            eval_dataset={name: Dataset.from_list(tool_rows) for name in ("a", "b")},
            eval_strategy="steps",
            eval_steps=3,
            max_steps=4,
        )
        trainer.train()
        assert [result.step for result in subject.results] == [0, 2, 3, 4]
        assert len(generations) == 4
        assert [set(metrics) >= METRICS for metrics in watch.metrics] == [True] * 4
        logged = [entry["step"] for entry in trainer.state.log_history if set(entry) >= METRICS]
        assert logged == [0, 2, 3, 3, 4, 4, 4]

    @pytest.mark.slow
    def test_metrics_choose_the_best_model(self, make_sft_trainer, tool_rows, say):
        say("Hi")
        trainer = make_sft_trainer(
            tool_rows,
            callbacks=[callback(tool_rows, at_start=False)],
            eval_dataset=Dataset.from_list(tool_rows),
            eval_strategy="steps",
            save_strategy="steps",
            save_steps=1,
            eval_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_tool_call_exact_match",
            greater_is_better=True,
        )
        trainer.train()
        assert trainer.state.best_metric == 0.3
        assert trainer.state.best_global_step == 1
        assert set(trainer.evaluate()) >= METRICS

    def test_metrics_that_the_trainer_put_there_stay(self, make_sft_trainer, tool_rows, say):
        generations = say("Hi")
        trainer = make_sft_trainer(tool_rows, callbacks=[callback(tool_rows)])
        metrics = {"eval_loss": 1.0, "eval_tool_call_exact_match": 0.5}
        trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        assert metrics == {"eval_loss": 1.0, "eval_tool_call_exact_match": 0.5}
        assert generations == []

    def test_failed_best_metric_is_nan(self, make_sft_trainer, tool_rows, fail):
        trainer = make_sft_trainer(
            tool_rows, callbacks=[callback(tool_rows)], metric_for_best_model="eval_tool_call_exact_match"
        )
        metrics = {"eval_loss": 1.0}
        trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        assert math.isnan(metrics["eval_tool_call_exact_match"])

    @pytest.mark.slow
    def test_every_measurement_is_told_once(self, make_sft_trainer, tool_rows, say):
        say("Hi")
        subject = callback(tool_rows, every_n_steps=1)
        trainer = make_sft_trainer(
            tool_rows,
            callbacks=[subject],
            eval_dataset={name: Dataset.from_list(tool_rows) for name in ("a", "b")},
            eval_strategy="steps",
            eval_steps=2,
        )
        trainer.train()
        assert [result.step for result in subject.results] == [0, 1, 2]
        assert journal_of(trainer.control).since(0) == subject.results
        assert [result.epoch for result in subject.results] == [0, 0.25, 0.5]
        assert all(result.seconds > 0 for result in subject.results)

    def test_a_dataset_that_fails_later_does_not_stop_the_run(self, make_sft_trainer, tool_rows, say, caplog):
        say("Hi")
        subject = callback(tool_rows, every_n_steps=1)

        class Empties(TrainerCallback):
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                subject.dataset = []

        trainer = make_sft_trainer(tool_rows, callbacks=[Empties(), subject])
        with caplog.at_level(logging.WARNING, logger="deepfabric_trainer"):
            trainer.train()
        assert [result.step for result in subject.results] == [0]
        assert caplog.text.count("the run goes on without its metrics") == 1

    def test_not_at_start(self, make_sft_trainer, tool_rows, say):
        generations = say("Hi")
        make_sft_trainer(tool_rows, callbacks=[callback(tool_rows, at_start=False)]).train()
        assert generations == []

    def test_resume_does_not_measure_the_start(self, make_sft_trainer, tool_rows, say):
        say("Hi")
        make_sft_trainer(tool_rows, save_strategy="steps", save_steps=1, max_steps=1).train()
        subject = callback(tool_rows)
        make_sft_trainer(tool_rows, callbacks=[subject]).train(resume_from_checkpoint=True)
        assert subject.results == []

    def test_shows_samples(self, tiny_model, tiny_tokenizer, tool_rows, say, capsys):
        say("\x1b[31mHi")
        measure(callback(tool_rows, print_samples=1), tiny_model, tiny_tokenizer)
        first, *lines = capsys.readouterr().out.splitlines()
        assert first.startswith("step 0: eval_tool_call_exact_match 0.3 (0.11 to 0.6), eval_tool_call_name 0.3 (")
        assert "_low" not in first
        assert lines == [
            "  row 0, message 1: WRONG",
            '    expected   get_weather(city="Rome", days=1)',
            "    generated  '\\x1b[31mHi'",
        ]
        measure(callback(tool_rows), tiny_model, tiny_tokenizer)
        assert capsys.readouterr().out == ""

    def test_two_processes_share_the_turns(self, tiny_model, tiny_tokenizer, tool_rows, monkeypatch):
        """Both ranks, one after the other: what each sends is what the other receives."""
        alone = callback(tool_rows)
        measure(alone, tiny_model, tiny_tokenizer)
        sent: list[Any] = []

        class Rank:
            num_processes, is_main_process = 2, True

            def __init__(self) -> None:
                self.process_index = len(sent)

        def collect(objects: list[Any]) -> list[Any]:
            sent.append(objects[0])
            unknown = ({index: [] for index in range(10)}, None)
            return list(sent) if len(sent) == 2 else [unknown, objects[0]]

        monkeypatch.setattr(generated_turns, "PartialState", Rank)
        monkeypatch.setattr(generated_turns, "gather_object", collect)
        ranks = [callback(tool_rows), callback(tool_rows)]
        for rank in ranks:
            measure(rank, tiny_model, tiny_tokenizer)
        assert [sorted(share) for share, _ in sent] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
        together, expected = ranks[1].results[0], alone.results[0]
        assert (together.metrics, together.samples) == (expected.metrics, expected.samples)


def test_leaves_its_rows_alone_and_is_picklable(tiny_model, tiny_tokenizer, tool_rows):
    before = copy.deepcopy(tool_rows)
    subject = callback(tool_rows)
    measure(subject, tiny_model, tiny_tokenizer)
    assert tool_rows == before
    again = pickle.loads(pickle.dumps(subject))
    assert again.results == subject.results
    assert measure(again, tiny_model, tiny_tokenizer, step=1) == subject.results[0].metrics
