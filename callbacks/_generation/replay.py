"""Playing recorded conversations with the model in the assistant's place."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from deepfabric_trainer.callbacks._generation.prompts import Prompt
from deepfabric_trainer.callbacks._generation.turns import compare, generation_options, spread
from deepfabric_trainer.callbacks._measurements import ReplayedConversation, TurnSample
from deepfabric_trainer.generate import BatchGenerator, generation_mode
from deepfabric_trainer.toolcalls import wilson_interval

Conversation = Sequence[Prompt]
Known = Mapping[tuple[int, int], TurnSample]


def replay(
    model: Any,
    processing_class: Any,
    conversations: Sequence[Conversation],
    known: Known,
    *,
    max_new_tokens: int,
    batch_size: int,
    deadline: float | None = None,
) -> list[ReplayedConversation]:
    """Play conversations from their first turn until the model leaves the recording.

    When a turn's calls are as recorded, the recorded turn and its results are the history of the next one. A turn
    without recorded calls is right when no call is made, whatever the text. A batch of conversations is played turn
    by turn together, and what their prompts share, with each other and with the turn before, is computed once.

    Every process plays its share, and every process returns all.

    Args:
        model (`PreTrainedModel`): Put into generation mode for the time it takes.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Parses and decodes.
        conversations (`list[list[Prompt]]`): The turns of each, in their order.
        known (`dict[tuple[int, int], TurnSample]`): Turns that this model has generated already, by row and message.
        max_new_tokens (`int`): The most tokens a turn may take.
        batch_size (`int`): Conversations played at a time, in each process.
        deadline (`float`, *optional*): When to begin no more batches, by this process's `time.monotonic()`; the first
            one is always played, and each is played to its end, since the long ones of it would be missing.

    Returns:
        `list[ReplayedConversation]`: Those that were played, in the order of the rows.
    """
    prompts = [prompt for conversation in conversations for prompt in conversation]
    options = generation_options(model, processing_class, prompts, max_new_tokens)

    # Every process enters, also one without a share.
    with generation_mode(model) as ready:

        def play(mine: Sequence[int]) -> list[ReplayedConversation]:
            played: list[ReplayedConversation] = []
            for begin in range(0, len(mine), batch_size):
                if begin and deadline is not None and time.monotonic() >= deadline:
                    break
                batch = [conversations[index] for index in mine[begin : begin + batch_size]]
                played += _play(ready, processing_class, batch, known, options)
            return played

        played = spread(len(conversations), play)
    return sorted(played.values(), key=lambda conversation: conversation.row)


def summarize_replays(replays: Sequence[ReplayedConversation]) -> dict[str, float]:
    """Return the metrics of conversations that were played.

    Returns:
        `dict[str, float]`: `replay_success`, the share that was played to the end, with its 95% Wilson interval
        `replay_success_low`, `replay_success_high`; `replay_turns_right`, the share of all recorded turns that were
        made as recorded before the recording was left; `replay_conversations`, how many there were.
    """
    successes, total = sum(conversation.success for conversation in replays), len(replays)
    low, high = wilson_interval(successes, total)
    right = sum(conversation.turns_right for conversation in replays)
    return {
        "replay_success": successes / max(total, 1),
        "replay_success_low": low,
        "replay_success_high": high,
        "replay_turns_right": right / max(sum(conversation.turns for conversation in replays), 1),
        "replay_conversations": total,
    }


def _play(
    model: Any,
    processing_class: Any,
    conversations: Sequence[Conversation],
    known: Known,
    options: Mapping[str, Any],
) -> list[ReplayedConversation]:
    prompts = [prompt for conversation in conversations for prompt in conversation]
    number = {prompt.key: index for index, prompt in enumerate(prompts)}
    generator = BatchGenerator(model, [prompt.input_ids for prompt in prompts], **options)
    samples: list[list[TurnSample]] = [[] for _ in conversations]
    playing = list(range(len(conversations)))
    while playing:
        turns = [conversations[place][len(samples[place])] for place in playing]
        found = {turn.key: known[turn.key] for turn in turns if turn.key in known}
        generator.forget([number[key] for key in found])
        asked = [turn for turn in turns if turn.key not in found]
        generated = generator.generate([number[turn.key] for turn in asked]) if asked else []
        for turn, ids in zip(asked, generated, strict=True):
            found[turn.key] = compare(processing_class, turn, ids)
        goes_on = []
        for place, turn in zip(playing, turns, strict=True):
            samples[place].append(found[turn.key])
            rest = conversations[place][len(samples[place]) :]
            if not found[turn.key].score.exact_match:
                generator.forget([number[later.key] for later in rest])
            elif rest:
                goes_on.append(place)
        playing = goes_on
    return [
        ReplayedConversation(
            row=conversation[0].turn.row,
            turns=len(conversation),
            turns_right=sum(sample.score.exact_match for sample in made),
            samples=made,
        )
        for conversation, made in zip(conversations, samples, strict=True)
    ]
