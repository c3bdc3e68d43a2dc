"""Make a small, randomly initialised model for a real tokenizer: to try a script, a template or a machine.

python examples/make_tiny_model.py --tokenizer path/or/name --output runs/tiny [--chat_template file.jinja]
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM


def make_tiny_model(tokenizer: str, output: str, chat_template: str | None = None, seed: int = 0) -> None:
    """Save a Qwen2 of two layers and its tokenizer, so that both load by the folder's name."""
    torch.manual_seed(seed)
    tok = AutoTokenizer.from_pretrained(tokenizer)
    if chat_template is not None:
        tok.chat_template = Path(chat_template).read_text(encoding="utf-8")
    config = Qwen2Config(
        vocab_size=len(tok),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    model.save_pretrained(output)
    tok.save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--chat_template")
    arguments = parser.parse_args()
    make_tiny_model(arguments.tokenizer, arguments.output, arguments.chat_template)
