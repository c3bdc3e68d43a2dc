"""A tokenizer for the benchmarks that needs no download: built as Qwen's is, trained on such rows' text."""

import json
from functools import lru_cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import trl
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.catalogue import make_rows, make_tools

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Tokens that Qwen's template writes and that its tokenizer does not call special."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def load_tokenizer(path: str | Path | None = None, template: str = "qwen3") -> Any:
    """Return the tokenizer of a folder, which brings its own chat template, or else the small one."""
    return small_tokenizer(template=template) if path is None else AutoTokenizer.from_pretrained(path)


def small_tokenizer(vocab_size: int = 4096, template: str = "qwen3") -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with Qwen's pieces and control tokens, the same each time; takes a second.

    Args:
        vocab_size (`int`, *optional*, defaults to 4096): Tokens, control tokens among them.
        template (`str`, *optional*, defaults to `"qwen3"`): A chat template with tools of those that `trl` installs.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(vocab_size)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=131_072,
    )
    tokenizer.chat_template = template_of_trl(template)
    return tokenizer


def template_of_trl(name: str) -> str:
    """Return the source of a chat template that `trl` installs."""
    return (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def write_tokenizer(folder: str | Path, vocab_size: int = 4096, template: str = "qwen3") -> Path:
    """Write the small tokenizer to a folder, from where `AutoTokenizer` loads it, and return the folder."""
    small_tokenizer(vocab_size, template).save_pretrained(folder)
    return Path(folder)


@lru_cache(maxsize=4)
def _trained(vocab_size: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_ADDED),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tools = make_tools(200)
    rows = make_rows(2000, catalogue=tools, tools_per_row=1)
    texts = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    texts += [json.dumps(row["messages"], ensure_ascii=False) for row in rows]
    # The rows alone have some thousand different words; Python's own manual fills the vocabulary up.
    tokenizer.train_from_iterator([*texts, *topics.values()], trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in _ADDED])
    return str(tokenizer.to_str())
