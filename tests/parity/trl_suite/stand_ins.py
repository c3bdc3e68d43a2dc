"""Models and rows under the names that TRL's tests ask the hub for, and a plugin of pytest that gives them out.

The models are random and tiny, each with the template that trl ships for it; the rows have the columns of the hub's.
What a test checks of exact numbers on the hub's own weights it cannot check on these, with either trainer.
"""

import contextlib
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = "TRL_STAND_INS"
"""The variable of the environment that names the folder of the rows."""

_ORGANISATION = "trl-internal-testing"
_REVISION = "0" * 40
_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
_CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_GROUPED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}


@dataclass(frozen=True)
class StandIn:
    """A model of the hub.

    Args:
        family (`str`): Its classes begin with it.
        template (`str`, *optional*): The template that trl ships for it.
        sizes (`dict[str, Any]`): Of its configuration, beside those that all share.
        revision (`str`, *optional*): An older one, whose template is longer.
        pads (`bool`, *optional*, defaults to `True`): Whether its tokenizer has a token to pad with.
    """

    family: str
    template: str | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    pads: bool = True


MODELS = {
    "tiny-Qwen2ForCausalLM-2.5": StandIn("Qwen2", "qwen2_5", revision="8913f5819566"),
    "tiny-Qwen2ForCausalLM-R1-Distill": StandIn("Qwen2", "deepseek_r1_distill"),
    "tiny-Qwen3ForCausalLM": StandIn("Qwen3", "qwen3"),
    "tiny-Qwen3MoeForCausalLM": StandIn("Qwen3Moe", "qwen3", _EXPERTS),
    "tiny-Cohere2ForCausalLM": StandIn("Cohere2", "cohere2"),
    "tiny-FalconMambaForCausalLM": StandIn("FalconMamba", None, {"state_size": 4}),
    "tiny-Glm4MoeForCausalLM": StandIn("Glm4Moe", "glm4moe", {**_EXPERTS, **_GROUPED}),
    "tiny-GptOssForCausalLM": StandIn("GptOss", "gptoss", _EXPERTS),
    "tiny-DeepseekV3ForCausalLM": StandIn("DeepseekV3", "deepseekv3", {**_EXPERTS, **_GROUPED, **_LATENT}),
    "tiny-NemotronHForCausalLM-nano": StandIn(
        "NemotronH",
        "nemotron_3_nano",
        {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2, "n_routed_experts": 4}
        | {"moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16, "num_experts_per_tok": 2}
        | {"layers_block_type": ["mamba", "attention", "moe"]},
    ),
    "tiny-Olmo3ForCausalLM": StandIn("Olmo3"),
    "tiny-Lfm2ForCausalLM": StandIn("Lfm2", "lfm2", {"layer_types": ["conv", "full_attention"]}),
    "tiny-Lfm2ForCausalLM-2.5": StandIn("Lfm2", "lfm2_2_5", {"layer_types": ["conv", "full_attention"]}),
    "tiny-GPTNeoXForCausalLM": StandIn("GPTNeoX"),
    "tiny-MistralForCausalLM-0.2": StandIn("Mistral", pads=False),
    "tiny-LlamaForCausalLM-3.2": StandIn("Llama", "llama3_2"),
}


def make_stand_ins(folder: Path) -> None:
    """Write the models into `folder/hub`, laid out as the hub's cache, and the rows into `folder/rows`."""
    lines = zen()
    tokenizer = _train_tokenizer(lines)
    for name, stand_in in MODELS.items():
        repository = f"{_ORGANISATION}/{name}"
        source = None if stand_in.template is None else _template(stand_in.template)
        _write_model(_snapshot(folder, repository), stand_in, _tokenizer(tokenizer, source, pads=stand_in.pads))
        if stand_in.revision and source is not None:
            longer = source + "{#" + "-" * 47 + "#}"  # 2558 characters of Qwen2.5's
            old = _snapshot(folder, repository, stand_in.revision)
            _write_model(old, stand_in, _tokenizer(tokenizer, longer, pads=stand_in.pads))
    _write_remote_model(_snapshot(folder, f"{_ORGANISATION}/tiny-RemoteForCausalLM"), tokenizer)
    _write_model(_snapshot(folder, "Qwen/Qwen3-4B"), StandIn("Qwen3"), _tokenizer(tokenizer, _template("qwen3")))
    for (dataset, config, split), rows in rows_of_tests(lines).items():
        path = folder / "rows" / dataset / config / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def zen() -> list[str]:
    """Return the lines that the hub's dataset is made of."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        import this  # noqa: F401
    return [line for line in printed.getvalue().splitlines()[2:] if line]


def rows_of_tests(lines: list[str]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return rows by dataset, configuration and split."""
    halves = [(" ".join(line.split()[:2]), " " + " ".join(line.split()[2:])) for line in lines]
    forms: dict[str, list[dict[str, Any]]] = {
        "standard_language_modeling": [{"text": line} for line in lines],
        "standard_prompt_completion": [{"prompt": begin, "completion": end} for begin, end in halves],
        "standard_implicit_prompt_preference": [
            {"chosen": line, "rejected": begin + " nothing."} for line, (begin, _) in zip(lines, halves, strict=True)
        ],
        "conversational_language_modeling": [{"messages": [_asked(line), _said(line)]} for line in lines],
        "conversational_prompt_completion": [
            {"prompt": [_asked(line)], "completion": [_said(line)]} for line in lines
        ],
    }
    thoughtful = [{"role": "assistant", "content": line, "thinking": "It is a rule."} for line in lines]
    harmony = {
        "language_modeling": [{"messages": [_asked(row["content"]), row]} for row in thoughtful],
        "prompt_completion": [{"prompt": [_asked(row["content"])], "completion": [row]} for row in thoughtful],
    }
    rows = {("zen", config, split): part for config, all_rows in forms.items() for split, part in _split(all_rows)}
    rows |= {("harmony", config, "train"): all_rows[:17] for config, all_rows in harmony.items()}
    rows["toolcall", "language_modeling", "train"] = [_call(line) for line in lines[:17]]
    rows["zen-image", "conversational_language_modeling", "train"] = [
        {"messages": [_asked(line), _said(line)], "image": "a picture"} for line in lines[:17]
    ]
    return rows


def pytest_configure() -> None:
    """Give out the rows, and let the CPU do what TRL's tests ask of an accelerator: bfloat16."""
    read = datasets.load_dataset
    folder = Path(os.environ[FOLDER])

    def load_dataset(name: str, config: str | None = None, **options: Any) -> Any:
        files = sorted((folder / "rows" / name.removeprefix(f"{_ORGANISATION}/") / str(config)).glob("*.jsonl"))
        return read("json", data_files={path.stem: str(path) for path in files}, **options)

    datasets.load_dataset = load_dataset
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True


def _split(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [("train", rows[:17]), ("test", rows[17:])]


def _asked(line: str) -> dict[str, Any]:
    return {"role": "user", "content": f"What is {line.split()[0]}?"}


def _said(line: str) -> dict[str, Any]:
    return {"role": "assistant", "content": line}


def _call(line: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    tool = {"type": "function", "function": {"name": "look_up", "description": "A line.", "parameters": parameters}}
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"word": line.split()[0]}}}
    messages = [
        _asked(line),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "look_up", "content": line},
        _said(line),
    ]
    return {"messages": messages, "tools": json.dumps([tool])}


def _template(name: str) -> str:
    return (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def _snapshot(folder: Path, repository: str, revision: str = "main") -> Path:
    """Return the folder in which the hub's cache keeps a revision."""
    commit = _REVISION if revision == "main" else revision.ljust(40, "0")
    kept = folder / "hub" / ("models--" + repository.replace("/", "--"))
    (kept / "refs").mkdir(parents=True, exist_ok=True)
    (kept / "refs" / revision).write_text(commit)
    return kept / "snapshots" / commit


def _train_tokenizer(lines: list[str]) -> Tokenizer:
    """Return a byte-level tokenizer that has the words of the rows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(_CONTROL_TOKENS)
    return tokenizer


def _tokenizer(tokenizer: Tokenizer, template: str | None, *, pads: bool = True) -> PreTrainedTokenizerFast:
    named = {"eos_token": "<|im_end|>"} | ({"pad_token": "<|endoftext|>"} if pads else {})
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4096, **named)
    fast.chat_template = template
    return fast


def _config(stand_in: StandIn, tokenizer: Any) -> Any:
    config_class = getattr(transformers, f"{stand_in.family}Config")
    return config_class(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **{**_SIZES, **stand_in.sizes},
    )


def _write_model(folder: Path, stand_in: StandIn, tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, f"{stand_in.family}ForCausalLM")(_config(stand_in, tokenizer))
    for parameter in model.parameters():  # some families leave a few of them empty
        if not parameter.isfinite().all():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_remote_model(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a model whose code comes with it."""
    fast = _tokenizer(tokenizer, None)
    _write_model(folder, StandIn("Llama"), fast)
    (folder / "modeling_remote.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        'class RemoteConfig(LlamaConfig):\n    model_type = "remote"\n\n\n'
        "class RemoteForCausalLM(LlamaForCausalLM):\n    config_class = RemoteConfig\n"
    )
    settings = json.loads((folder / "config.json").read_text())
    settings |= {
        "model_type": "remote",
        "architectures": ["RemoteForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_remote.RemoteConfig",
            "AutoModelForCausalLM": "modeling_remote.RemoteForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(settings))
