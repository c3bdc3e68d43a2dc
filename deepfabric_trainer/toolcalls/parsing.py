"""From generated ids or text to content, reasoning and tool calls."""

import operator
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.toolcalls.formats import Dialect, find_dialect

STOP_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>")


@dataclass(frozen=True)
class ParsedResponse:
    """What an assistant turn says.

    Args:
        content (`str`): The text outside reasoning and calls, stripped; up to the malformed call where there is one.
        reasoning (`str`, *optional*): The text between `<think>` and `</think>`, stripped; `None` when empty.
        tool_calls (`list[dict[str, Any]]`): The well-formed calls, each
            `{"type": "function", "function": {"name": str, "arguments": dict}}`.
        error (`str`, *optional*): What is malformed, or `None`. Calls before the malformed one are kept.
    """

    content: str
    reasoning: str | None
    tool_calls: list[dict[str, Any]]
    error: str | None


def parse_tool_calls(
    processing_class: Any, ids_or_text: Any, tools: list[dict[str, Any]] | None = None
) -> ParsedResponse:
    """Read content, reasoning and tool calls from what a model generated.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Its chat template says how calls are written.
        ids_or_text (`list[int]`, `torch.Tensor` or `str`): The generated token ids, [T], or text, without the prompt.
            Whatever follows the first stop token is ignored.
        tools (`list[dict[str, Any]]`, *optional*): The tools of the prompt. The formats known today write typed JSON
            and do not need them.

    Returns:
        `ParsedResponse`: A malformed output is a result with an `error`, never an exception.

    Raises:
        TemplateError: If there is no chat template, or it writes calls in no known format.
        DataFormatError: If `ids_or_text` is neither text nor one sequence of ids.
    """
    dialect = find_dialect(processing_class)
    text = ids_or_text if isinstance(ids_or_text, str) else _decode(processing_class, ids_or_text)
    if isinstance(ids_or_text, str):
        text = _cut_text(processing_class, text)
    reasoning, text = _split_reasoning(text, dialect)
    content: list[str] = []
    calls: list[dict[str, Any]] = []
    error, position = None, 0
    while error is None and (found := dialect.call_format.next_call(text, position)) is not None:
        content.append(text[position : found.start])
        error, position = found.error, found.end
        if found.function is not None:
            calls.append({"type": "function", "function": found.function})
    if error is None:
        content.append(text[position:])
    return ParsedResponse("".join(content).strip(), reasoning, calls, error)


def stop_token_ids(processing_class: Any) -> list[int]:
    """Return the ids that end an assistant turn: the tokenizer's eos and the known end-of-turn tokens it has."""
    tokenizer = _tokenizer(processing_class)
    known = (tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS)
    ids = {token_id for token_id in known if token_id is not None and token_id != tokenizer.unk_token_id}
    return sorted(ids | ({tokenizer.eos_token_id} - {None}))


def _tokenizer(processing_class: Any) -> Any:
    return getattr(processing_class, "tokenizer", processing_class)


def _decode(processing_class: Any, ids: Any) -> str:
    tokenizer = _tokenizer(processing_class)
    try:
        ids = [operator.index(token_id) for token_id in ids]
    except (TypeError, ValueError) as error:
        raise DataFormatError(
            "the generated ids are not one sequence of integers", expected="a list or 1-D tensor", fix="pass one row"
        ) from error
    stops = {*stop_token_ids(processing_class), tokenizer.pad_token_id}
    end = next((index for index, token_id in enumerate(ids) if token_id in stops), len(ids))
    return str(tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _cut_text(processing_class: Any, text: str) -> str:
    tokenizer = _tokenizer(processing_class)
    stops = filter(None, {*STOP_TOKENS, tokenizer.eos_token, tokenizer.pad_token})
    return text[: min((at for at in map(text.find, stops) if at != -1), default=len(text))]


def _split_reasoning(text: str, dialect: Dialect) -> tuple[str | None, str]:
    """Split off the reasoning, also one that is unclosed or whose `<think>` stands in the prompt."""
    body = text.lstrip()
    if body.startswith("<think>"):
        reasoning, _, rest = body.removeprefix("<think>").partition("</think>")
        return reasoning.strip() or None, rest
    close = text.find("</think>")
    first = dialect.call_format.next_call(text, 0)
    if close == -1:
        return (text.strip() or None, "") if dialect.opens_reasoning and first is None else (None, text)
    inside_call = first is not None and first.function is not None and first.start < close < first.end
    if inside_call and not dialect.opens_reasoning:
        return None, text
    return text[:close].strip() or None, text[close + len("</think>") :]
