"""`deepfabric-trainer train`: a training run from options or a YAML file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from transformers import AutoConfig
from trl import ModelConfig, TrlParser, get_peft_config

from deepfabric_trainer.callbacks._journal import RunEvent, journal_of
from deepfabric_trainer.callbacks.sample_generation import SampleGenerationCallback
from deepfabric_trainer.checkpoints import last_checkpoint
from deepfabric_trainer.config import DeepFabricSFTConfig
from deepfabric_trainer.errors import ConfigError, HubError
from deepfabric_trainer.hub import wanted
from deepfabric_trainer.rows import load_rows
from deepfabric_trainer.trainer import DeepFabricTrainer


@dataclass
class DataArguments:
    """What to train and evaluate on.

    Args:
        dataset_name_or_path (`str`): Training rows: a .jsonl, .json or .parquet file, or a dataset on the Hub.
        eval_dataset_name_or_path (`str`, *optional*): Evaluation rows, likewise.
        eval_generations (`int`, *optional*, defaults to 32): Turns to generate and score at each evaluation.
        max_new_tokens (`int`, *optional*, defaults to 256): Longest generated turn (tokens).
        resume (`bool`, *optional*, defaults to `False`): Go on from the newest whole checkpoint in the output folder;
            begin where there is none yet. `resume_from_checkpoint` names one.
    """

    dataset_name_or_path: str = field(
        metadata={"help": "Training rows: a .jsonl, .json or .parquet file, or a dataset on the Hub."}
    )
    eval_dataset_name_or_path: str | None = field(
        default=None, metadata={"help": "Evaluation rows: a .jsonl, .json or .parquet file, or a dataset on the Hub."}
    )
    eval_generations: int = field(
        default=32, metadata={"help": "Turns to generate and score at each evaluation; 0 for none."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Longest generated turn in tokens."})
    resume: bool = field(
        default=False,
        metadata={"help": "Go on from the newest whole checkpoint in the output folder; begin where there is none."},
    )


def train(argv: Sequence[str]) -> int:
    """Train a model; save it and the metrics of every step in the output folder.

    Returns:
        `int`: 0 when the run came to its end, 1 when it was stopped because something was badly wrong.

    Raises:
        ConfigError: If settings, model, data or checkpoint are not what they should be.
        KeyboardInterrupt: After SIGINT.
        TrainingTerminated: After SIGTERM; Python exits with 143.
    """
    parser = TrlParser(
        (DataArguments, DeepFabricSFTConfig, ModelConfig),
        prog="deepfabric-trainer train",
        description="Train a model to call tools. Options may stand in a YAML file, given with --config.",
    )
    try:
        data, args, model = parser.parse_args_and_config(list(argv))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the settings: {error}") from error
    if model.model_name_or_path is None:
        raise ConfigError("no model is given", fix="add --model_name_or_path, a folder or a name on the Hub")
    trainer = build_trainer(data, args, model)
    newest = last_checkpoint(args.output_dir) if data.resume else None
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or newest)
    trainer.save_model()
    trainer.save_state()
    return int(_was_stopped(trainer))


def _was_stopped(trainer: DeepFabricTrainer) -> bool:
    """Tell whether the watch over the run's health has ended it; the log says why."""
    events = [entry for entry in journal_of(trainer.control).since(0) if isinstance(entry, RunEvent)]
    return any(event.action == "stop" and event.severity == "critical" for event in events)


def build_trainer(data: DataArguments, args: DeepFabricSFTConfig, model: ModelConfig) -> DeepFabricTrainer:
    """Load data and model, and put the trainer together.

    Raises:
        ConfigError: If something cannot be loaded.
        DataFormatError: If rows cannot be trained on.
    """
    try:
        with wanted("the model", model.model_name_or_path):
            AutoConfig.from_pretrained(
                model.model_name_or_path, revision=model.model_revision, trust_remote_code=args.trust_remote_code
            )
    except HubError:
        raise
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"cannot load the model {model.model_name_or_path!r}: {reason}") from error
    args.model_init_kwargs = {**_model_init_kwargs(model), **(args.model_init_kwargs or {})}
    evaluation = load_rows(data.eval_dataset_name_or_path, split="test") if data.eval_dataset_name_or_path else None
    callbacks = []
    if evaluation is not None and data.eval_generations:
        callbacks.append(
            SampleGenerationCallback(num_samples=data.eval_generations, max_new_tokens=data.max_new_tokens)
        )
    return DeepFabricTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=load_rows(data.dataset_name_or_path),
        eval_dataset=evaluation,
        callbacks=callbacks,
        peft_config=get_peft_config(model),
    )


def _model_init_kwargs(model: ModelConfig) -> dict[str, Any]:
    settings = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    return {name: value for name, value in settings.items() if value is not None}
