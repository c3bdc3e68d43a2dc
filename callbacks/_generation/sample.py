"""The fixed sample that a generation callback measures: turns, and conversations to replay, with their prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deepfabric_trainer.callbacks._generation.choice import Turn, choose_conversations, choose_turns, read_turns
from deepfabric_trainer.callbacks._generation.prompts import Prompt, PromptEncoder, Shown
from deepfabric_trainer.errors import ConfigError, DeepFabricTrainerError
from deepfabric_trainer.toolcalls import parse_tool_calls


@dataclass(frozen=True)
class Sample:
    """What is generated.

    Args:
        turns (`list[Prompt]`): At least one; every beginning of the list has calls in the same proportion.
        conversations (`list[list[Prompt]]`): The turns of conversations to replay.
        remarks (`dict[str, str]`): What could not be taken, by cause, in words.
    """

    turns: list[Prompt]
    conversations: list[list[Prompt]]
    remarks: dict[str, str]


@dataclass(frozen=True)
class SampleSettings:
    """What makes a sample, besides the rows and the tokenizer.

    Args:
        num_turns (`int`): How many turns.
        num_conversations (`int`): How many conversations to replay.
        seed (`int`): Chooses both.
        shown (`Shown`): What of a row the model is shown.
        stop_token_ids (`tuple[int, ...]`): Ids at which the model's generation stops.
        max_new_tokens (`int`): What must fit behind a prompt.
        context_length (`int`, *optional*): Of the model, in tokens.
    """

    num_turns: int
    num_conversations: int
    seed: int
    shown: Shown
    stop_token_ids: tuple[int, ...]
    max_new_tokens: int
    context_length: int | None


class Sampler:
    """Makes samples, and keeps the last one while rows, tokenizer and settings stay the same."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._sample: Sample | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: a sample can be made again."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Sampler.__init__(self)

    def sample(self, rows: Sequence[Any] | None, processing_class: Any, settings: SampleSettings) -> Sample:
        """Return the sample of these rows.

        Raises:
            ConfigError: If there are no rows, no tokenizer, or no turn that can be generated.
            TemplateError: If the chat template's tool calls cannot be read.
        """
        if processing_class is None:
            raise ConfigError(
                "the trainer has no processing_class",
                expected="a tokenizer with a chat template",
                fix="pass `processing_class=tokenizer` to the trainer",
            )
        if rows is None:
            raise ConfigError(
                "`SampleGenerationCallback` has no dataset",
                expected="rows of `messages` and `tools`",
                fix="pass `SampleGenerationCallback(dataset=rows)`, or use `DeepFabricTrainer` with an `eval_dataset`",
            )
        parse_tool_calls(processing_class, "")  # raises for a template whose calls nobody could read
        template = processing_class.chat_template
        known = self._key
        if self._sample is None or not (
            known[0] is rows and known[1] is processing_class and known[2:] == (template, settings)
        ):
            self._sample = _make_sample(rows, processing_class, settings)
            self._key = (rows, processing_class, template, settings)
        return self._sample


def _make_sample(rows: Sequence[Any], processing_class: Any, settings: SampleSettings) -> Sample:
    encoder = PromptEncoder(
        processing_class,
        settings.shown,
        stop_token_ids=settings.stop_token_ids,
        max_new_tokens=settings.max_new_tokens,
        context_length=settings.context_length,
    )
    read = read_turns(rows, settings.seed)
    chosen = choose_turns(read, settings.num_turns, settings.seed)
    turns, no_turns = _encodable([[turn] for turn in chosen], encoder.encode)
    if not turns:
        raise ConfigError(
            f"none of the {len(chosen)} sampled turns can be generated: {no_turns[0]}",
            expected="prompts that the chat template renders and the model's context holds",
            fix="pass other rows, or a smaller `max_new_tokens`",
        )
    whole = choose_conversations(read, settings.num_conversations, settings.seed)
    conversations, no_conversations = _encodable(whole, encoder.encode)
    remarks = {}
    if no_turns:
        remarks["turns"] = f"{len(no_turns)} of {len(chosen)} sampled turns are not generated: {no_turns[0]}"
    if no_conversations:
        remarks["conversations"] = (
            f"{len(no_conversations)} of {len(whole)} conversations are not played: {no_conversations[0]}"
        )
    return Sample([turn for (turn,) in turns], conversations, remarks)


def _encodable(
    groups: Sequence[Sequence[Turn]], encode: Callable[[Turn], Prompt]
) -> tuple[list[list[Prompt]], list[DeepFabricTrainerError]]:
    """Return the groups whose turns can all be encoded, and why the others cannot."""
    prompts, errors = [], []
    for turns in groups:
        try:
            prompts.append([encode(turn) for turn in turns])
        except DeepFabricTrainerError as error:
            errors.append(error.at(f"row {turns[0].row}"))
    return prompts, errors
