"""Fine-tune a model to call tools, on one process or many.

    accelerate launch examples/train_tool_calling.py \
        --dataset_name_or_path rows.jsonl --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --output_dir runs/mine

    accelerate launch --num_processes 2 --cpu examples/train_tool_calling.py \
        --config examples/train_tool_calling.yaml --dataset_name_or_path rows.jsonl --model_name_or_path path/to/model

With `--resume` the same command goes on where a run was killed or interrupted.

Every option of `DeepFabricSFTConfig` and of trl's `ModelConfig` (LoRA, dtype) can be given, on the command line or in
the YAML file. With evaluation rows, tool-call accuracy is measured by generation during the training.
"""

from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser, get_peft_config

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.callbacks import MetricEarlyStoppingCallback, SampleGenerationCallback
from deepfabric_trainer.checkpoints import last_checkpoint
from deepfabric_trainer.launch import start_cpu_processes
from deepfabric_trainer.rows import load_rows


@dataclass
class ScriptArguments:
    """What to train and evaluate on."""

    dataset_name_or_path: str = field(metadata={"help": "Training rows: .jsonl, .json, .parquet, or a Hub dataset."})
    eval_dataset_name_or_path: str | None = field(default=None, metadata={"help": "Evaluation rows, likewise."})
    eval_generations: int = field(default=16, metadata={"help": "Turns to generate and score at each evaluation."})
    max_new_tokens: int = field(default=128, metadata={"help": "Longest generated turn in tokens."})
    patience: int = field(default=3, metadata={"help": "Evaluations without a better exact match before stopping."})
    resume: bool = field(default=False, metadata={"help": "Go on from the newest whole checkpoint, if there is any."})


def main() -> None:
    start_cpu_processes()
    parser = TrlParser((ScriptArguments, DeepFabricSFTConfig, ModelConfig))
    script, args, model = parser.parse_args_and_config()
    args.model_init_kwargs = {"dtype": model.dtype or "float32", "attn_implementation": model.attn_implementation}

    eval_dataset, callbacks = None, []
    if script.eval_dataset_name_or_path:
        eval_dataset = load_rows(script.eval_dataset_name_or_path, split="test")
        callbacks = [
            SampleGenerationCallback(num_samples=script.eval_generations, max_new_tokens=script.max_new_tokens),
            MetricEarlyStoppingCallback("eval_tool_call_exact_match", patience=script.patience),
        ]

    trainer = DeepFabricTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=load_rows(script.dataset_name_or_path),
        eval_dataset=eval_dataset,
        callbacks=callbacks,
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir) if script.resume else None)
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
