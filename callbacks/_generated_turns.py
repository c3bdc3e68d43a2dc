"""Generating recorded turns with all processes, and comparing them with what was recorded."""

import traceback
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from deepfabric_trainer.callbacks._measurements import TurnSample
from deepfabric_trainer.callbacks._sampled_turns import Turn
from deepfabric_trainer.generate import generate_with_shared_prefix
from deepfabric_trainer.toolcalls import (
    parse_tool_calls,
    score_response,
    stop_token_ids,
    summarize_scores,
)


def generate_turns(
    model: Any, processing_class: Any, turns: list[tuple[Turn, list[int]]], *, max_new_tokens: int, batch_size: int
) -> list[TurnSample]:
    """Generate each turn greedily and compare it with the recorded one.

    Every process generates its share, and every process returns all samples.

    Args:
        model (`PreTrainedModel`): Put into generation mode for the time it takes.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Parses and decodes.
        turns (`list[tuple[Turn, list[int]]]`): Each with the token ids of its prompt.
        max_new_tokens (`int`): The most tokens a turn may take.
        batch_size (`int`): Turns generated at a time, in each process.

    Returns:
        `list[TurnSample]`: In the order of `turns`.
    """
    tokenizer = _tokenizer(processing_class)
    stops = {*stop_token_ids(processing_class), *_stop_ids_of(model)}
    generated = _generate_spread(
        model,
        [ids for _, ids in turns],
        max_new_tokens=max_new_tokens,
        stop_token_ids=sorted(stops),
        pad_token_id=min(stops, default=0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        batch_size=batch_size,
    )
    return [_compare(processing_class, turn, ids) for (turn, _), ids in zip(turns, generated, strict=True)]


def summarize_samples(samples: list[TurnSample]) -> dict[str, float]:
    """Return the metrics of [`~deepfabric_trainer.toolcalls.summarize_scores`] for these samples."""
    return summarize_scores(
        [sample.score for sample in samples],
        parsed=[sample.parsed.error is None for sample in samples],
        expects_call=[bool(sample.expected_calls) for sample in samples],
    )


def _compare(processing_class: Any, turn: Turn, ids: list[int]) -> TurnSample:
    parsed = parse_tool_calls(processing_class, ids, tools=turn.tools)
    return TurnSample(
        row=turn.row,
        prompt=turn.prompt,
        expected_calls=turn.expected_calls,
        expected_text=turn.expected["content"],
        predicted_text=_tokenizer(processing_class).decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        ),
        parsed=parsed,
        score=score_response(parsed, turn.expected_calls, turn.tools),
    )


def _generate_spread(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Generate with all processes, each its share; every process gets all results, or the failure of any."""
    process = PartialState()
    mine = range(process.process_index, len(prompts), process.num_processes)
    generated: list[list[int]] = []
    failure: Exception | None = None
    report: str | None = None
    try:
        generated = generate_with_shared_prefix(model, [prompts[index] for index in mine], **options)
    except Exception as error:
        failure, report = error, traceback.format_exc()
    # Also after a failure: the others wait here.
    shares = gather_object([(dict(zip(mine, generated, strict=False)), report)])
    if failure is not None:
        raise failure
    for _, other in shares:
        if other is not None:
            raise RuntimeError(f"generation failed in another process:\n{other}")
    together = {index: ids for share, _ in shares for index, ids in share.items()}
    return [together[index] for index in range(len(prompts))]


def _stop_ids_of(model: Any) -> list[int]:
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _tokenizer(processing_class: Any) -> Any:
    return getattr(processing_class, "tokenizer", processing_class)
