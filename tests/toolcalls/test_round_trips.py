"""What a template writes is read back as it was, for every template at hand; what cannot be is listed."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.template import ChatTemplate
from deepfabric_trainer.toolcalls import ParsedResponse, parse_tool_calls
from deepfabric_trainer.toolcalls.pieces import after_common_start
from tests.fixtures import templates
from tests.fixtures.templates import recorded_templates
from tests.fixtures.tiny import tiny_tokenizer
from tests.toolcalls.cases import CASE_TOOLS, CASES
from tests.toolcalls.hand_made import HAND_MADE

DROPPING = [
    *("cohere", "cohere2", "deepseek_r1_distill", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next"),
    *("phi3", "phi3_5", "qwen2_5_vl", "smolvlm"),
]
"""Templates of trl that drop calls, each with its variant for training."""
_SEVERAL = {"two calls", "same call twice", "none, then some"}
REFUSED = {"llama3_1": _SEVERAL, "llama3_2": _SEVERAL}
"""Cases that a template refuses to render."""
LOST = {"gptoss": _SEVERAL}
"""Cases of which a template leaves something out: here all calls but the first."""
BARE_TEXT = ["glm4moe", "muse_glimmer", "nemotron", "qwen3_5", "qwen3_6", "qwen3_8", "invocations"]
"""Templates, by the beginning of their names, that write all arguments as bare text."""
AMBIGUOUS = {"numbers as text", "words as text", "json as text"}
"""Cases that only the tools' schemas tell apart where arguments are bare text."""
READABLE = [
    *("own", *(name for name in templates.ALL if name.removesuffix("_training") not in DROPPING)),
    *(name for name in HAND_MADE if name != "tags in tags"),
]


@cache
def tokenizer_with(name: str) -> Any:
    if name not in HAND_MADE:
        return templates.tokenizer_with(name)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = HAND_MADE[name]
    return tokenizer


def written_turn(tokenizer: Any, calls: list[dict[str, Any]], tools: Any = CASE_TOOLS, **fields: Any) -> str:
    """Return what the template writes behind its prompt for a turn."""
    template = ChatTemplate(tokenizer)
    question: list[Any] = [{"role": "user", "content": "Well?"}]
    turn = {"role": "assistant", "content": "", **fields}
    if calls:
        ids = [f"functions.{one['function']['name']}:{number}" for number, one in enumerate(calls)]
        if "call.id + '[ARGS]" in str(tokenizer.chat_template):
            ids = [f"abcd0000{number}" for number in range(len(calls))]
        turn["tool_calls"] = [{**one, "id": identifier} for one, identifier in zip(calls, ids, strict=True)]
    prompt = template.render(question, tools, add_generation_prompt=True)
    return after_common_start(template.render([*question, turn], tools), prompt)


@recorded_templates
def test_every_template_of_trl_is_in_a_list() -> None:
    for name in templates.ALL:
        if name.removesuffix("_training") in DROPPING:
            with pytest.raises(TemplateError, match="drops tool calls"):
                parse_tool_calls(tokenizer_with(name), "")


@pytest.mark.parametrize("name", READABLE)
def test_calls_are_read_back(name: str) -> None:
    tokenizer = tokenizer_with(name)
    family = name.removesuffix("_training")
    refused, wrong, untyped = set(), set(), set()
    for case, calls in CASES.items():
        try:
            turn = written_turn(tokenizer, calls)
        except TemplateError:
            refused.add(case)
            continue
        expected = ParsedResponse("", None, calls, None)
        if parse_tool_calls(tokenizer, turn, CASE_TOOLS) != expected:
            wrong.add(case)
        elif parse_tool_calls(tokenizer, turn) != expected:
            untyped.add(case)
    assert refused == REFUSED.get(family, set())
    assert wrong == LOST.get(family, set())
    assert untyped == (AMBIGUOUS if family.startswith(tuple(BARE_TEXT)) else set())


@pytest.mark.parametrize("name", READABLE)
def test_token_ids_give_the_same(name: str) -> None:
    tokenizer = tokenizer_with(name)
    for case in ("one call", "nested", "unicode"):
        turn = written_turn(tokenizer, CASES[case])
        ids = tokenizer(turn, add_special_tokens=False)["input_ids"]
        assert parse_tool_calls(tokenizer, ids, CASE_TOOLS) == ParsedResponse("", None, CASES[case], None)


# The templates of Llama leave out the content of a turn with calls; harmony has it as a reasoning.
_NO_CONTENT = {"llama3_1", "llama3_2", "gptoss", "muse_glimmer"}


@recorded_templates
@pytest.mark.parametrize("name", READABLE)
def test_content_beside_calls_is_kept(name: str) -> None:
    tokenizer = tokenizer_with(name)
    parsed = parse_tool_calls(tokenizer, written_turn(tokenizer, CASES["one call"], content="I look it up."))
    assert parsed.tool_calls == CASES["one call"]
    assert parsed.error is None
    assert parsed.content == ("" if name.removesuffix("_training") in _NO_CONTENT else "I look it up.")


@pytest.mark.parametrize("name", READABLE)
def test_a_turn_without_calls_is_its_content(name: str) -> None:
    tokenizer = tokenizer_with(name)
    expected = ParsedResponse("Just so.", None, [], None)
    if name.startswith("deepseekv3"):  # the prompt opens a reasoning, which this template's own turns do not close
        expected = ParsedResponse("", "Just so.", [], None)
    assert parse_tool_calls(tokenizer, written_turn(tokenizer, [], content="Just so.")) == expected


@pytest.mark.parametrize("name", READABLE)
def test_reasoning_before_calls_is_told_from_content(name: str) -> None:
    tokenizer = tokenizer_with(name)
    turn = written_turn(tokenizer, CASES["one call"], reasoning_content="Hm, Rome.")
    reasoning = "Hm, Rome." if "Hm, Rome." in turn else None
    parsed = parse_tool_calls(tokenizer, turn, CASE_TOOLS)
    assert parsed == ParsedResponse("", reasoning, CASES["one call"], None)


@pytest.mark.parametrize("name", READABLE)
def test_a_cut_turn_is_no_call(name: str) -> None:
    tokenizer = tokenizer_with(name)
    turn = written_turn(tokenizer, CASES["one call"])
    for length in range(0, len(turn), 3):
        parsed = parse_tool_calls(tokenizer, turn[:length])
        assert parsed.tool_calls in ([], CASES["one call"])


@pytest.fixture(scope="module")
def real_tokenizers(assets: Path) -> list[Any]:
    return [AutoTokenizer.from_pretrained(assets / folder) for folder in ("qwen3", "llama3_1")]


_REAL_CALLS = [
    {"base": 10, "height": 5.5, "unit": "units"},
    {"query": 'all "new" files', "deep": [{"a": None}]},
]


@pytest.mark.parametrize("name", [name for name in READABLE if not name.endswith("_training")])
def test_token_ids_of_real_tokenizers_are_read(real_tokenizers: list[Any], name: str) -> None:
    for tokenizer in real_tokenizers:
        tokenizer.chat_template = tokenizer_with(name).chat_template
        for arguments in _REAL_CALLS:
            calls: list[Any] = [{"type": "function", "function": {"name": "find.it", "arguments": arguments}}]
            turn = written_turn(tokenizer, calls, tools=[_declared(calls[0])])
            ids = tokenizer(turn, add_special_tokens=False)["input_ids"]
            assert parse_tool_calls(tokenizer, ids).tool_calls == calls


def _declared(one: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(CASE_TOOLS[0]).replace("get_weather", one["function"]["name"]))
