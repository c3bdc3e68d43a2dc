from typing import Any

import pytest

from deepfabric_trainer import ConversationEncoder, DeepFabricSFTConfig
from deepfabric_trainer.callbacks._generation.choice import read_turns
from deepfabric_trainer.callbacks._generation.prompts import Prompt, PromptEncoder, Shown
from deepfabric_trainer.errors import DataFormatError
from tests.fixtures.templates import NAMES, tokenizer_with
from tests.fixtures.tiny import TOOLS, tool_rows


def prompts_of(tokenizer: Any, row: dict[str, Any], shown: Shown | None = None, **options: Any) -> list[Prompt]:
    given = {"stop_token_ids": (), "max_new_tokens": 8, "context_length": None, **options}
    encoder = PromptEncoder(tokenizer, shown or Shown(), **given)
    return [encoder.encode(turn) for turn in read_turns([row], seed=0)[0]]


def contexts_of(encoder: ConversationEncoder, row: dict[str, Any]) -> set[tuple[int, ...]]:
    """Return what stands before each turn that the encoder trains in a row."""
    contexts = set()
    for example in encoder.encode(row):
        for place, label in enumerate(example.labels):
            if label != -100 and example.labels[place - 1] == -100:
                contexts.add(tuple(example.input_ids[:place]))
    return contexts


def rows() -> list[dict[str, Any]]:
    made = tool_rows()
    made[0]["messages"][0]["content"] = "Is <|im_end|>\n<|im_start|>assistant a token, and <tool_call> another?"
    made[1]["chat_template_kwargs"] = {"enable_thinking": False}
    made[6]["messages"][2]["content"] = ""  # Llama's template leaves it out, and the row is refused
    made[6]["messages"][3]["content"] = "rain <|im_end|>"
    return made


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_the_contexts_that_are_trained(name: str) -> None:
    tokenizer = tokenizer_with(name)
    encoder = ConversationEncoder(tokenizer)
    for row in rows()[:7]:
        prompts = prompts_of(tokenizer, row)
        assert {tuple(prompt.input_ids) for prompt in prompts} == contexts_of(encoder, row)


def test_a_template_for_tool_use_is_found(tiny_tokenizer):
    row = rows()[6]
    alone = prompts_of(tiny_tokenizer, row)
    tiny_tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": tiny_tokenizer.chat_template}
    assert prompts_of(tiny_tokenizer, row) == alone


def test_control_tokens_in_texts_are_plain_text(tiny_tokenizer):
    (prompt,) = prompts_of(tiny_tokenizer, rows()[0])
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prompt.input_ids.count(end) == 2  # of the system message and the user's
    assert "Is <|im_end|>" in tiny_tokenizer.decode(prompt.input_ids)


def test_the_trained_stop_token_is_known(tiny_tokenizer):
    assert [prompt.stop_token_id for prompt in prompts_of(tiny_tokenizer, rows()[6])] == [
        tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    ] * 3


def test_the_trainers_choice_of_tools_and_reasoning(tiny_tokenizer, tmp_path):
    args = DeepFabricSFTConfig(str(tmp_path), tool_strategy="used_only", reasoning="inline", use_cpu=True, bf16=False)
    row = {**tool_rows()[0], "reasoning": {"style": "freetext", "content": "Rome is a city."}}
    row["tools"] = [*TOOLS[1:], TOOLS[0]]
    (prompt,) = prompts_of(tiny_tokenizer, row, Shown.by(args))
    assert prompt.tools == [TOOLS[0]]
    encoder = ConversationEncoder(tiny_tokenizer, tool_strategy="used_only", reasoning="inline")
    assert {tuple(prompt.input_ids)} == contexts_of(encoder, row)
    assert Shown.by(object()) == Shown()


def test_what_does_not_fit_is_refused(tiny_tokenizer):
    (prompt,) = prompts_of(tiny_tokenizer, rows()[4])
    length = len(prompt.input_ids)
    assert prompts_of(tiny_tokenizer, rows()[4], context_length=length + 8) == [prompt]
    with pytest.raises(DataFormatError, match=f"takes {length} \\+ 8 of {length + 7} tokens"):
        prompts_of(tiny_tokenizer, rows()[4], context_length=length + 7)
