"""Generating recorded turns with all processes, and comparing them with what was recorded."""

import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from deepfabric_trainer.callbacks._generation.prompts import Prompt
from deepfabric_trainer.callbacks._measurements import TurnSample
from deepfabric_trainer.generate import generate_with_shared_prefix, generation_mode
from deepfabric_trainer.processing import tokenizer_of
from deepfabric_trainer.toolcalls import (
    parse_tool_calls,
    score_response,
    stop_token_ids,
    summarize_scores,
    turn_end,
)

_T = TypeVar("_T")


def generate_turns(
    model: Any,
    processing_class: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    deadline: float | None = None,
) -> list[TurnSample]:
    """Generate turns greedily and compare them with the recorded ones.

    Every process generates its share, and every process returns all samples.

    Args:
        model (`PreTrainedModel`): Put into generation mode for the time it takes.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Parses and decodes.
        prompts (`list[Prompt]`): The turns, the most wanted first.
        max_new_tokens (`int`): The most tokens a turn may take.
        batch_size (`int`): Turns generated at a time, in each process.
        deadline (`float`, *optional*): When to begin no more batches, by this process's `time.monotonic()`; the first
            one is always done.

    Returns:
        `list[TurnSample]`: Those that were done, in the order of the rows.
    """
    options = generation_options(model, processing_class, prompts, max_new_tokens)

    # Every process enters, also one without a share.
    with generation_mode(model) as ready:

        def generate(mine: Sequence[int]) -> list[list[int]]:
            ids = [prompts[index].input_ids for index in mine]
            return generate_with_shared_prefix(ready, ids, batch_size=batch_size, deadline=deadline, **options)

        generated = spread(len(prompts), generate)
    samples = [compare(processing_class, prompts[index], ids) for index, ids in generated.items()]
    return sorted(samples, key=lambda sample: (sample.row, len(sample.prompt)))


def summarize_samples(samples: list[TurnSample]) -> dict[str, float]:
    """Return the metrics of [`~deepfabric_trainer.toolcalls.summarize_scores`] for these samples."""
    return summarize_scores(
        [sample.score for sample in samples],
        parsed=[sample.parsed.error is None for sample in samples],
        expects_call=[bool(sample.expected_calls) for sample in samples],
    )


def generation_options(
    model: Any, processing_class: Any, prompts: Iterable[Prompt], max_new_tokens: int
) -> dict[str, Any]:
    """Return what all batches of a measurement are generated with; a turn stops as the model, or as it was trained."""
    pad_token_id = tokenizer_of(processing_class).pad_token_id
    trained = {prompt.stop_token_id for prompt in prompts if prompt.stop_token_id is not None}
    stops = sorted({*stop_token_ids(processing_class), *stop_ids_of(model), *trained})
    return {
        "max_new_tokens": max_new_tokens,
        "stop_token_ids": stops,
        "has_ended": turn_end(processing_class),
        "pad_token_id": min(stops, default=0) if pad_token_id is None else pad_token_id,
    }


def compare(processing_class: Any, prompt: Prompt, ids: list[int]) -> TurnSample:
    """Return what was generated for a prompt beside what was recorded."""
    turn = prompt.turn
    parsed = parse_tool_calls(processing_class, ids, tools=prompt.tools)
    return TurnSample(
        row=turn.row,
        prompt=turn.prompt,
        expected_calls=turn.expected_calls,
        expected_text=turn.expected["content"],
        predicted_text=tokenizer_of(processing_class).decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        ),
        parsed=parsed,
        score=score_response(parsed, turn.expected_calls, prompt.tools),
    )


def spread(count: int, work: Callable[[Sequence[int]], Sequence[_T]]) -> dict[int, _T]:
    """Spread numbered work over all processes; each gets all results, or the failure of any.

    Args:
        count (`int`): How much there is.
        work (`Callable`): Gets the numbers of this process's share, perhaps none; returns the results of the first of
            them, as far as it came.

    Returns:
        `dict[int, Any]`: The results by number, ascending.

    Raises:
        RuntimeError: If another process failed; with its traceback.
    """
    process = PartialState()
    mine = range(process.process_index, count, process.num_processes)
    done: Sequence[_T] = []
    failure: Exception | None = None
    report: str | None = None
    try:
        done = work(mine) if mine else []
    except Exception as error:
        failure, report = error, traceback.format_exc()
    # Also after a failure: the others wait here.
    shares = gather_object([(dict(zip(mine, done, strict=False)), report)])
    if failure is not None:
        raise failure
    for _, other in shares:
        if other is not None:
            raise RuntimeError(f"generation failed in another process:\n{other}")
    together = {index: result for share, _ in shares for index, result in share.items()}
    return dict(sorted(together.items()))


def stop_ids_of(model: Any) -> list[int]:
    """Return the ids at which the model's own generation stops."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
