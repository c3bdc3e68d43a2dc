"""Which tools of a row the model is shown, and tool schemas without the nulls that Arrow put there."""

import copy
import hashlib
import json
import logging
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any

from datasets import Dataset, Features, IterableDataset, Json, LargeList, List, Value

from deepfabric_trainer.errors import ConfigError, DataFormatError
from deepfabric_trainer.json_columns import json_text
from deepfabric_trainer.schema import Message, Tool, normalize_row
from deepfabric_trainer.schema.nulls import drop_schema_padding
from deepfabric_trainer.schema.strict_json import decode
from deepfabric_trainer.schema.tools import normalize_tools

logger = logging.getLogger(__name__)

_CASE_CHANGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_FUNCTION_WORDS = {"a", "an", "and", "at", "by", "for", "from", "in", "is", "of", "on", "or", "the", "to", "with"}
_COUNTS = {"_tools_before": Value("int32"), "_tools_after": Value("int32"), "_no_choice": Value("bool")}


class ToolStrategy(StrEnum):
    """Which tools of a row are kept, always in the row's order, so that no place gives away the one to call."""

    ALL = "all"
    """Every tool."""
    USED_ONLY = "used_only"
    """The tools that the conversation calls; no wrong one is left to choose."""
    USED_PLUS_RELATED = "used_plus_related"
    """The called tools and a few that are most like them, which makes the choice a hard one."""
    USED_PLUS_SAMPLED = "used_plus_sampled"
    """The called tools and a few others, drawn at random."""


def select_tools(
    messages: Sequence[Message],
    tools: Sequence[Tool] | None,
    strategy: str,
    *,
    min_tools: int = 1,
    num_distractors: int = 3,
    seed: int = 0,
) -> list[Tool] | None:
    """Return the tools that a conversation is shown; one that it calls is never left out.

    Likeness is the cosine of two sets of words: of the names and descriptions of two tools, with `camelCase` and
    `snake_case` split and words such as "the" left out. What counts is the called tool that a tool is most like or,
    where none is called, the last request; of equals the first goes first. A draw depends on the seed, the requests,
    the called names and the names of the tools, and on nothing else.

    Args:
        messages (`Sequence[Message]`): The conversation; its calls of tools that are not declared are passed over.
        tools (`Sequence[Tool]`, *optional*): The tools of the row.
        strategy (`str`): A [`ToolStrategy`].
        min_tools (`int`, *optional*, defaults to 1): With fewer tools than this, the next ones of the strategy are
            added: for `"used_only"` the row's first.
        num_distractors (`int`, *optional*, defaults to 3): How many tools that the conversation does not call
            `"used_plus_related"` and `"used_plus_sampled"` add.
        seed (`int`, *optional*, defaults to 0): Of the draw.
    Returns:
        `list[Tool]`, *optional*: `None` when no tool is left.
    Raises:
        ConfigError: For a strategy that does not exist, or a negative number of tools.
    """
    _check_options(strategy, min_tools, num_distractors)
    tools = tools or []
    return [tools[place] for place in _kept(messages, tools, strategy, min_tools, num_distractors, seed)] or None


def leaves_no_choice(messages: Iterable[Message], tools: Sequence[Tool] | None) -> bool:
    """Tell whether there are tools and the conversation calls them all, so that none of them would be a wrong call."""
    called = _called(messages)
    return bool(tools) and all(tool["function"]["name"] in called for tool in tools or ())


def get_used_tool_names(messages: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of the tools that a conversation calls, in any form that `normalize_row` reads.

    Raises:
        DataFormatError: For what it cannot read; it names the field.
    """
    return _called(normalize_row({"messages": messages}).messages) if messages else set()


def clean_tool_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a tool without the null keys that are padding by Arrow.

    What somebody meant stays: nulls inside `enum` and `examples`, empty objects and lists, and a null `default` where
    the schema around it admits null or nothing else in the tool is null.
    """
    return dict(copy.deepcopy(drop_schema_padding([tool])[0]))


def filter_tools_for_sample(
    sample: Mapping[str, Any], strategy: str = "used_only", min_tools: int = 1, clean_schemas: bool = True
) -> dict[str, Any]:
    """Return a copy of a row with the tools that a strategy keeps, in the shape they came in.

    Args:
        sample (`Mapping[str, Any]`): A row of `messages` (or `conversations`, or `prompt` and `completion`) and
            `tools`: a list, a list of JSON texts, the JSON text of a list, or null. Where no messages can be read,
            every tool is kept.
        strategy (`str`, *optional*, defaults to `"used_only"`): A [`ToolStrategy`].
        min_tools (`int`, *optional*, defaults to 1): The fewest tools to keep, where the row has them.
        clean_schemas (`bool`, *optional*, defaults to `True`): Whether null keys that are padding by Arrow are
            dropped. Tools that are JSON text have none, and stay as they are.
    Raises:
        ConfigError: For a strategy that does not exist, or a negative number of tools.
        DataFormatError: If `tools` cannot be read.
    """
    _check_options(strategy, min_tools)
    tools, *_ = _filter(sample, strategy, min_tools, clean_schemas)
    return {**sample, "tools": tools} if "tools" in sample else dict(sample)


def prepare_dataset_for_training(
    dataset: Dataset | IterableDataset,
    tool_strategy: str = "used_only",
    clean_tool_schemas: bool = True,
    min_tools: int = 1,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Apply `filter_tools_for_sample` to every row, and keep Arrow from padding the tools again.

    Tools that are objects go into a column of JSON values, which reads as before; other columns are not touched. The
    log tells how many tools a row has before and after, and how often `"used_only"` leaves no wrong one to choose,
    but nothing of an `IterableDataset`, which is read later.

    Args:
        dataset (`Dataset` or `IterableDataset`): Returned as it is when it has no column `tools`.
        tool_strategy (`str`, *optional*, defaults to `"used_only"`): A [`ToolStrategy`].
        clean_tool_schemas (`bool`, *optional*, defaults to `True`): As `clean_schemas` there.
        min_tools (`int`, *optional*, defaults to 1): The fewest tools to keep, where the row has them.
        num_proc (`int`, *optional*): Processes to spread the work over; not for an `IterableDataset`.
    Raises:
        ConfigError: For a strategy that does not exist, or a negative number of tools.
        DataFormatError: If the tools of a row cannot be read; it names the row. A stream raises it when read.
    """
    options = {"strategy": tool_strategy, "min_tools": min_tools, "clean_schemas": clean_tool_schemas}
    _check_options(tool_strategy, min_tools)
    known = dataset.features  # `None` of a stream that has not been looked at
    if known and "tools" not in known:
        return dataset
    features = known and Features({**known, "tools": _unpadded(known["tools"])})
    if isinstance(dataset, IterableDataset):
        return dataset.map(_filter_row, with_indices=True, features=features, fn_kwargs=options)
    if not len(dataset):
        return dataset
    # What the function is not given is copied as it is; a whole row would be encoded again, and its numbers rounded.
    read = [name for name in known if name in ("messages", "conversations", "prompt", "completion", "tools")]
    mapped = dataset.map(
        _filter_cells,
        input_columns=read,
        with_indices=True,
        features=Features({**features, **_COUNTS}),
        fn_kwargs={"names": read, "feature": features["tools"], **options},
        num_proc=num_proc,
        desc="Filtering tools",
    )
    _log_counts(tool_strategy, *(mapped[name][:] for name in _COUNTS))
    return mapped.remove_columns(list(_COUNTS))


def _check_options(strategy: str, min_tools: int, num_distractors: int = 0) -> None:
    if strategy not in list(ToolStrategy):
        choices = ", ".join(repr(choice.value) for choice in ToolStrategy)
        raise ConfigError(f"the tool strategy is {strategy!r}", expected=f"one of {choices}")
    for name, number in (("min_tools", min_tools), ("num_distractors", num_distractors)):
        if number < 0:
            raise ConfigError(f"{name} is {number}", expected="0 or a positive number of tools")


def _kept(
    messages: Sequence[Message], tools: Sequence[Tool], strategy: str, least: int, more: int = 3, seed: int = 0
) -> list[int]:
    """Return the places of the tools that are kept, ascending."""
    if strategy == ToolStrategy.ALL:
        return list(range(len(tools)))
    names = [tool["function"]["name"] for tool in tools]
    called = _called(messages)
    used = [place for place, name in enumerate(names) if name in called]
    unused = [place for place, name in enumerate(names) if name not in called]
    requests = [message["content"] for message in messages if message["role"] == "user"]
    if strategy == ToolStrategy.USED_PLUS_RELATED:
        targets = [_words_of(tools[place]) for place in used] or [_words("".join(requests[-1:]))]
        unused.sort(key=lambda place: -max(_squared_cosine(_words_of(tools[place]), target) for target in targets))
    if strategy == ToolStrategy.USED_PLUS_SAMPLED:
        content = json.dumps([seed, requests, sorted(called), names])
        generator = random.Random(int.from_bytes(hashlib.sha256(content.encode()).digest()))
        unused = generator.sample(unused, len(unused))
    added = 0 if strategy == ToolStrategy.USED_ONLY else more
    return sorted([*used, *unused[: max(added, least - len(used))]])


def _called(messages: Iterable[Message]) -> set[str]:
    return {call["function"]["name"] for message in messages for call in message.get("tool_calls", ())}


def _words_of(tool: Tool) -> frozenset[str]:
    return _words(f"{tool['function']['name']} {tool['function'].get('description', '')}")


@lru_cache(maxsize=4096)
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W_]+", _CASE_CHANGE.sub(" ", text).lower())) - _FUNCTION_WORDS


def _squared_cosine(words: frozenset[str], target: frozenset[str]) -> float:
    return len(words & target) ** 2 / (len(words) * len(target) or 1)


def _filter(row: Any, strategy: str, min_tools: int, clean_schemas: bool, where: str = "") -> tuple[Any, ...]:
    """Return the kept tools as they came, how many there were and are, and whether they leave no choice."""
    value, messages = row.get("tools"), _messages(row)
    try:
        tools = normalize_tools(value, set()) or []
    except DataFormatError as error:
        raise error.at(where) from error
    kept = _kept(messages or (), tools, strategy if messages is not None else ToolStrategy.ALL, min_tools)
    counts = len(tools), len(kept), leaves_no_choice(messages or (), [tools[place] for place in kept])
    given = decode(value) if isinstance(value, str) and tools else value
    listed = given if isinstance(given, list) else tools
    if isinstance(value, str):
        text = json.dumps([listed[place] for place in kept], ensure_ascii=False)
        return value if len(kept) == len(tools) else text, *counts
    listed = drop_schema_padding(listed) if clean_schemas else listed
    return copy.deepcopy([listed[place] for place in kept]) if tools else value, *counts


def _messages(row: Mapping[str, Any]) -> list[Message] | None:
    """Return the normalized messages of a row, `None` if they cannot be read: `validate_dataset` says why."""
    try:
        return normalize_row({**row, "tools": None, "reasoning": None}).messages
    except DataFormatError:
        return None


def _filter_row(row: Any, index: int, **options: Any) -> dict[str, Any]:
    return {"tools": _filter(row, **options, where=f"row {index}")[0]} if "tools" in row else {}


def _filter_cells(*cells: Any, names: Sequence[str], feature: Any, **options: Any) -> dict[str, Any]:
    row = dict(zip(names, cells[:-1], strict=True))
    tools, *counts = _filter(row, **options, where=f"row {cells[-1]}")
    if feature == List(Json()):
        tools = tools and [json_text(tool) for tool in tools]
    elif feature == Json():
        tools = tools and json_text(tools)
    return {"tools": tools, **dict(zip(_COUNTS, counts, strict=True))}


def _log_counts(strategy: str, before: Sequence[int], after: Sequence[int], no_choice: Sequence[bool]) -> None:
    rows = len(before)
    logger.info("%s: %.1f tools a row, %.1f before (%d rows)", strategy, sum(after) / rows, sum(before) / rows, rows)
    if strategy == ToolStrategy.USED_ONLY and any(no_choice):
        effect = "the model learns to call whatever it sees; used_plus_related and used_plus_sampled leave it a choice"
        logger.warning("used_only leaves only called tools in %d of %d rows: %s", sum(no_choice), rows, effect)


def _unpadded(feature: Any) -> Any:
    """Return a feature that stores each tool as it is, where a struct would give it the keys of all tools."""
    if isinstance(feature, List | LargeList):
        return feature if isinstance(feature.feature, Value) else List(Json())
    return feature if isinstance(feature, Value) else Json()
