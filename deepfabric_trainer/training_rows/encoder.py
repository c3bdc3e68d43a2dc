"""The encoder that a trainer's settings and model ask for."""

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, GenerationConfig, TrainingArguments

from deepfabric_trainer.config import DeepFabricSFTConfig
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.hub import wanted


@dataclass(frozen=True)
class ModelFacts:
    """What examples must know of the model.

    Args:
        context_length (`int`, *optional*): In tokens.
        stop_token_ids (`tuple[int, ...]`): The ids at which its generation stops.
    """

    context_length: int | None
    stop_token_ids: tuple[int, ...]


def facts_of(model: Any, args: TrainingArguments) -> ModelFacts:
    """Return the facts of a model, or of one that is loaded by its name."""
    if isinstance(model, str):
        init_kwargs = getattr(args, "model_init_kwargs", None) or {}
        trust = init_kwargs.get("trust_remote_code", getattr(args, "trust_remote_code", False))
        revision = init_kwargs.get("revision")
        with wanted("the model", model):
            config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust)
        try:
            generation = GenerationConfig.from_pretrained(model, revision=revision)
        except OSError:  # not every model has the file; the tokenizer's stop token is known anyway
            generation = None
    else:
        config, generation = model.config, getattr(model, "generation_config", None)
    stop = getattr(generation, "eos_token_id", None)
    stops = () if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
    return ModelFacts(getattr(config.get_text_config(), "max_position_embeddings", None), stops)


def encoder_for(processing_class: Any, args: Any, facts: ModelFacts, *, assistant_only: bool) -> ConversationEncoder:
    """Return the encoder that a trainer's settings ask for.

    Args:
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): Of the trainer.
        args (`TrainingArguments`): A `DeepFabricSFTConfig`, or a plain `SFTConfig`, with which TRL's choices hold.
        facts (`ModelFacts`): Of the model.
        assistant_only (`bool`): Whether a plain config asks for `assistant_only_loss`.
    """
    if isinstance(args, DeepFabricSFTConfig):
        return ConversationEncoder(
            processing_class,
            train_on=args.train_on,
            tool_strategy=args.tool_strategy,
            reasoning=args.reasoning,
            max_length=args.max_length or facts.context_length,
            truncation=args.truncation,
            max_tool_result_length=args.max_tool_result_length,
            min_tools=args.min_tools,
            num_distractors=args.num_distractors,
            tool_seed=args.seed,
            stop_token_ids=facts.stop_token_ids,
        )
    # Whole, since TRL cuts examples, and not conversations.
    return ConversationEncoder(
        processing_class,
        train_on="assistant" if assistant_only else "all",
        stop_token_ids=facts.stop_token_ids,
    )
