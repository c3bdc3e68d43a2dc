import pytest

from deepfabric_trainer.template import ChatTemplate, Habits
from tests.fixtures.templates import recorded_templates, tokenizer_with
from tests.fixtures.tiny import tiny_tokenizer


def habits(name: str) -> Habits:
    return Habits(ChatTemplate(tokenizer_with(name)))


@recorded_templates
@pytest.mark.parametrize(("name", "renders"), [("qwen3", True), ("gptoss_training", True), ("qwen2_5", False)])
def test_it_is_known_whether_a_template_renders_reasoning(name: str, renders: bool) -> None:
    assert habits(name).renders_reasoning is renders


@pytest.mark.parametrize(
    ("name", "prompt", "after"),
    [
        ("qwen3", "<|im_start|>assistant\n", "<|im_end|>"),
        ("llama3_1", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        ("qwen3_6", "<|im_start|>assistant\n<think>\n", "<|im_end|>"),
        ("glm4moe", "<|assistant|>", ""),
    ],
)
def test_what_stands_around_a_turn_is_learned(name: str, prompt: str, after: str) -> None:
    assert (habits(name).generation_prompt, habits(name).after_turn) == (prompt, after)


@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}{{ m.content }}{% endfor %}", "{{ raise_exception('no') }}"],
    ids=["appends nothing", "refuses the probe"],
)
def test_a_template_without_generation_prompt_has_an_empty_one(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert Habits(ChatTemplate(tokenizer)).generation_prompt == ""


@pytest.mark.parametrize(
    ("block", "is_empty"),
    [
        ("<think>\n\n</think>\n\n", True),
        ("<think></think>", True),
        ("\n<thinking> </thinking>\n", True),
        ("[THINK][/THINK]", True),
        ("<think>so</think>", False),
        ("<think></tool_call>", False),
    ],
)
def test_empty_reasoning_blocks_are_known_on_any_template(block: str, is_empty: bool) -> None:
    assert any(pattern.fullmatch(block) for pattern in habits("own").empty_thinking) is is_empty


def test_the_form_of_an_empty_block_is_learned_from_the_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: "
        "{% if m.reasoning_content %}<muse|>{{ m.reasoning_content }}<|muse>{% endif %}{{ m.content }}{% endfor %}"
    )
    assert any(p.fullmatch("<muse|>\n<|muse>") for p in Habits(ChatTemplate(tokenizer)).empty_thinking)
    assert not any(p.fullmatch("<muse|>\n<|muse>") for p in habits("own").empty_thinking)


@pytest.mark.parametrize(("name", "keys"), [("qwen3", {"enable_thinking"}), ("qwen2_5", set())])
def test_switches_are_those_that_the_template_reads(name: str, keys: set[str]) -> None:
    assert {key for switch in habits(name).switches for key in switch} == keys
