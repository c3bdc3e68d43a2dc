"""Fine-tune a model on conversations.

    accelerate launch examples/sft_with_trl.py --dataset_path rows.jsonl \
        --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --output_dir runs/mine

There are two files of this: `sft_with_trl.py` and `sft_with_deepfabric.py` differ in where the trainer comes from.
Every option of `SFTConfig` and of trl's `ModelConfig` (LoRA, dtype) can be given, on the command line or in a YAML
file.
"""

from dataclasses import dataclass, field

from datasets import Dataset
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config


@dataclass
class ScriptArguments:
    """What to train on."""

    dataset_path: str = field(metadata={"help": "Rows of `messages`, one JSON object a line."})


def main() -> None:
    script, args, model = TrlParser((ScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config()
    args.model_init_kwargs = {"dtype": model.dtype or "float32", "attn_implementation": model.attn_implementation}
    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=Dataset.from_json(script.dataset_path),
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
