import json
from typing import Any, ClassVar

import pytest
from transformers import TrainerState

from deepfabric_trainer.callbacks import SampleGenerationCallback
from deepfabric_trainer.callbacks._generation import replay as replaying
from deepfabric_trainer.callbacks._generation import turns as generated_turns
from deepfabric_trainer.callbacks._generation.choice import choose_conversations, read_turns
from deepfabric_trainer.callbacks._generation.prompts import Prompt, PromptEncoder, Shown
from deepfabric_trainer.callbacks._generation.replay import replay, summarize_replays
from deepfabric_trainer.errors import ConfigError
from tests.fixtures.tiny import call

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "batch_size": 16}


def conversations_of(tokenizer: Any, rows: list[dict[str, Any]]) -> list[list[Prompt]]:
    encoder = PromptEncoder(tokenizer, Shown(), stop_token_ids=(), max_new_tokens=4, context_length=None)
    return [[encoder.encode(turn) for turn in turns] for turns in read_turns(rows, seed=0)]


def written(row: dict[str, Any], index: int) -> str:
    """Return a recorded call as the tests' template writes it."""
    (made,) = row["messages"][index]["tool_calls"]
    return f"<tool_call>\n{json.dumps(made['function'])}\n</tool_call>"


@pytest.fixture
def answers(monkeypatch, tiny_tokenizer):
    """What is generated, by the last user or tool message; and the rounds in which it was asked for."""

    class Reciting:
        by_prompt: ClassVar[dict[tuple[int, ...], str]] = {}
        rounds: ClassVar[list[int]] = []

        def __init__(self, model: Any, prompts: Any, **options: Any) -> None:
            self.prompts = prompts
            self.open = set(range(len(prompts)))

        def generate(self, indices: list[int]) -> list[list[int]]:
            self.rounds.append(len(indices))
            self.forget(indices)
            texts = [self.by_prompt.get(tuple(self.prompts[index]), "no idea") for index in indices]
            return [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

        def forget(self, indices: list[int]) -> None:
            assert self.open >= set(indices)
            self.open -= set(indices)

    monkeypatch.setattr(replaying, "BatchGenerator", Reciting)
    return Reciting


def test_a_conversation_goes_on_while_calls_are_as_recorded(tiny_model, tiny_tokenizer, tool_rows, answers):
    conversations = conversations_of(tiny_tokenizer, tool_rows)
    long, short = conversations[6], conversations[0]
    answers.by_prompt = {
        tuple(long[0].input_ids): written(tool_rows[6], 2),
        tuple(long[1].input_ids): written(tool_rows[6], 4),
        tuple(long[2].input_ids): "Whatever.",
    }
    played = replay(tiny_model, tiny_tokenizer, [long, short], {}, **OPTIONS)
    assert [(one.row, one.turns, one.turns_right, one.success) for one in played] == [
        (0, 1, 0, False),
        (6, 3, 3, True),
    ]
    assert answers.rounds == [2, 1, 1]
    assert [sample.expected_calls for sample in played[1].samples] == [
        [call("get_weather", city="Rome")],
        [call("send_mail", to="Ann", text="Rain.")],
        [],
    ]
    assert summarize_replays(played) == {
        "replay_success": 0.5,
        "replay_success_low": pytest.approx(0.0945, abs=1e-3),
        "replay_success_high": pytest.approx(0.9055, abs=1e-3),
        "replay_turns_right": 0.75,
        "replay_conversations": 2,
    }


@pytest.mark.parametrize(
    ("last", "right"), [("Done.", 3), ("", 3), ('<tool_call>\n{"name": "send_mail"', 2)], ids=["text", "", "malformed"]
)
def test_a_turn_without_calls_is_right_when_none_is_made(tiny_model, tiny_tokenizer, tool_rows, answers, last, right):
    (turns,) = conversations_of(tiny_tokenizer, tool_rows[6:7])
    said = [written(tool_rows[6], 2), written(tool_rows[6], 4), last]
    answers.by_prompt = {tuple(turn.input_ids): text for turn, text in zip(turns, said, strict=True)}
    (played,) = replay(tiny_model, tiny_tokenizer, [turns], {}, **OPTIONS)
    assert (played.turns_right, played.success) == (right, right == 3)


def test_it_ends_where_the_recording_is_left(tiny_model, tiny_tokenizer, tool_rows, answers):
    (turns,) = conversations_of(tiny_tokenizer, tool_rows[6:7])
    (played,) = replay(tiny_model, tiny_tokenizer, [turns], {}, **OPTIONS)
    assert (played.turns, played.turns_right, len(played.samples)) == (3, 0, 1)
    assert answers.rounds == [1]


def test_turns_that_were_generated_before_are_not_generated_again(tiny_model, tiny_tokenizer, tool_rows, answers):
    (turns,) = conversations_of(tiny_tokenizer, tool_rows[6:7])
    answers.by_prompt = {tuple(turns[0].input_ids): written(tool_rows[6], 2)}
    (first,) = replay(tiny_model, tiny_tokenizer, [turns], {}, **OPTIONS)
    known = {(0, len(sample.prompt)): sample for sample in first.samples}
    answers.rounds.clear()
    assert replay(tiny_model, tiny_tokenizer, [turns], known, **OPTIONS) == [first]
    assert answers.rounds == []


def test_with_a_real_model_it_is_what_each_prompt_gives_alone(tiny_model, tiny_tokenizer, tool_rows):
    conversations = conversations_of(tiny_tokenizer, tool_rows)
    played = replay(tiny_model, tiny_tokenizer, conversations, {}, max_new_tokens=4, batch_size=3)
    samples = [sample for conversation in played for sample in conversation.samples]
    prompts = [prompt for turns in conversations for prompt in turns]
    alone = generated_turns.generate_turns(tiny_model, tiny_tokenizer, prompts, max_new_tokens=4, batch_size=1)
    by_turn = {(sample.row, len(sample.prompt)): sample for sample in alone}
    assert samples == [by_turn[sample.row, len(sample.prompt)] for sample in samples]
    # It calls nothing, so it passes where nothing is to be called.
    assert [conversation.success for conversation in played] == [False] * 4 + [True] * 2 + [False] * 2


def test_a_batch_is_always_played_to_its_end(tiny_model, tiny_tokenizer, tool_rows, answers):
    conversations = conversations_of(tiny_tokenizer, tool_rows)
    answers.by_prompt = {tuple(conversations[6][0].input_ids): written(tool_rows[6], 2)}
    played = replay(tiny_model, tiny_tokenizer, conversations[5:], {}, max_new_tokens=4, batch_size=2, deadline=0.0)
    assert [(one.row, len(one.samples)) for one in played] == [(5, 1), (6, 2)]


def test_conversations_that_call_are_chosen(tool_rows):
    turns = read_turns(tool_rows, seed=0)
    chosen = choose_conversations(turns, 100, seed=0)
    assert sorted(one[0].row for one in chosen) == [0, 1, 2, 3, 6, 7]
    assert choose_conversations(turns, 3, seed=0) == choose_conversations(turns, 3, seed=0)
    assert [one[0].row for one in choose_conversations(turns[4:6], 9, seed=0)] in ([4, 5], [5, 4])


def test_nothing_to_play() -> None:
    assert summarize_replays([])["replay_success"] == 0.0
    assert summarize_replays([])["replay_success_high"] == 1.0


def test_the_callback_measures_it(tiny_model, tiny_tokenizer, tool_rows):
    given = {"model": tiny_model, "processing_class": tiny_tokenizer, "state": TrainerState()}
    subject = SampleGenerationCallback(tool_rows, max_new_tokens=4, replay=True, num_conversations=4)
    metrics = subject.compute_metrics(**given)
    assert metrics["eval_tool_call_replay_conversations"] == 4
    assert metrics["eval_tool_call_replay_success"] == 0.0
    assert len(subject.results[0].replays) == 4
    without = SampleGenerationCallback(tool_rows, max_new_tokens=4).compute_metrics(**given)
    assert not any("replay" in key for key in without)


def test_a_number_that_is_not_positive() -> None:
    with pytest.raises(ConfigError, match="num_conversations"):
        SampleGenerationCallback(num_conversations=0)
