"""From generated ids or text to content, reasoning and tool calls."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.errors import DataFormatError
from deepfabric_trainer.processing import tokenizer_of
from deepfabric_trainer.toolcalls.argument_types import Schemas, schemas_of
from deepfabric_trainer.toolcalls.dialects import TurnDialect, find_dialect, find_form
from deepfabric_trainer.toolcalls.turns import TurnForm, cut


@dataclass(frozen=True)
class ParsedResponse:
    """What an assistant turn says.

    Args:
        content (`str`): The text outside reasoning and calls, stripped; up to the malformed call where there is one.
        reasoning (`str`, *optional*): The text of the reasoning (between `<think>` and `</think>`, or
            whatever the template writes), stripped; `None` when empty.
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
        tools (`list[dict[str, Any]]`, *optional*): The tools of the prompt. Notations that write all arguments as
            bare text need them to tell `"7"` from `7`.

    Returns:
        `ParsedResponse`: A malformed output is a result with an `error`, never an exception.

    Raises:
        TemplateError: If there is no chat template, or it drops calls, or the way it writes them cannot be learned.
        DataFormatError: If `ids_or_text` is neither text nor one sequence of ids.
    """
    dialect = find_dialect(processing_class)
    form, schemas = dialect.form, schemas_of(tools)
    text = _text(processing_class, ids_or_text, form)
    thoughts, text = _split_reasoning(text, dialect, schemas)
    contents: list[str] = []
    calls: list[dict[str, Any]] = []
    error, position = None, 0
    for found in dialect.calls.find(text, schemas):
        contents.append(text[position : found.start])
        error, position = found.error, found.end
        if found.function is not None:
            calls.append({"type": "function", "function": found.function})
    if error is None:
        contents.append(text[position:])
    content = "".join(map(form.unframed, contents)).strip()
    return ParsedResponse(content, "\n\n".join(filter(None, thoughts)) or None, calls, error)


def stop_token_ids(processing_class: Any) -> list[int]:
    """Return the ids that end an assistant turn: the eos token, and what this template and others write there."""
    tokenizer = tokenizer_of(processing_class)
    tokens = [stop for stop in find_form(processing_class).stops if _is_token(tokenizer, stop)]
    return sorted({*tokenizer.convert_tokens_to_ids(tokens), tokenizer.eos_token_id} - {None})


def turn_end(processing_class: Any) -> Callable[[Sequence[int]], bool] | None:
    """Return what tells of generated ids that the turn has ended, where several tokens spell out its end.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Its chat template says how a turn ends.

    Returns:
        `Callable`, *optional*: Asked after each token; `None` where a single token ends a turn.
    """
    tokenizer = tokenizer_of(processing_class)
    stops = _spelled_out(tokenizer, find_form(processing_class))
    if not stops:
        return None
    # No token is shorter than a byte, but for those that are nothing.
    most = max(len(stop.encode()) for stop in stops) + 1

    def has_ended(ids: Sequence[int]) -> bool:
        text = tokenizer.decode(ids[-most:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in stops)

    return has_ended


def _spelled_out(tokenizer: Any, form: TurnForm) -> list[str]:
    """Return the ends of turns that are no tokens."""
    return [stop for stop in form.own_stops if not _is_token(tokenizer, stop)]


def _is_token(tokenizer: Any, text: str) -> bool:
    return tokenizer.convert_tokens_to_ids(text) not in (None, tokenizer.unk_token_id)


def _text(processing_class: Any, ids_or_text: Any, form: TurnForm) -> str:
    """Return the text of a turn up to its end."""
    tokenizer = tokenizer_of(processing_class)
    if isinstance(ids_or_text, str):
        return cut(ids_or_text, filter(None, (*form.stops, tokenizer.eos_token, tokenizer.pad_token)))
    return cut(_decode(processing_class, ids_or_text), _spelled_out(tokenizer, form))


def _decode(processing_class: Any, ids: Any) -> str:
    tokenizer = tokenizer_of(processing_class)
    try:
        ids = [operator.index(token_id) for token_id in ids]
    except (TypeError, ValueError) as error:
        raise DataFormatError(
            "the generated ids are not one sequence of integers", expected="a list or 1-D tensor", fix="pass one row"
        ) from error
    if min(ids, default=0) < 0:
        raise DataFormatError(
            f"{min(ids)} among the generated ids", expected="ids of tokens", fix="leave out what labels mask with -100"
        )
    stops = {*stop_token_ids(processing_class), tokenizer.pad_token_id}
    end = next((index for index, token_id in enumerate(ids) if token_id in stops), len(ids))
    return str(tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _split_reasoning(text: str, dialect: TurnDialect, schemas: Schemas) -> tuple[list[str], str]:
    """Split off the reasoning, also one that is unclosed or that the prompt opened."""
    form = dialect.form
    thoughts, rest = form.leading_reasoning(text)
    if thoughts or not form.closes_unopened():
        return thoughts, rest
    close = text.find(form.reasoning_close)
    if close == -1 and not form.opens_reasoning:
        return [], text
    first = next(dialect.calls.find(text, schemas), None)
    if close == -1:
        return ([text.strip()], "") if first is None else ([], text)
    inside_call = first is not None and first.function is not None and first.start < close < first.end
    if inside_call and not form.opens_reasoning:
        return [], text
    more, rest = form.leading_reasoning(text[close + len(form.reasoning_close) :])
    return [text[:close].strip(), *more], rest
