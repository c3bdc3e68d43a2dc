"""Tiny models of many families, and the loss and gradients that they give for a batch."""

from contextlib import nullcontext
from typing import Any

import torch
import transformers

from deepfabric_trainer.collators.masks import MaskForm
from deepfabric_trainer.collators.tree_attention import tree_attention

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 9}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2, window": ("Qwen2", {**_BOTH, "use_sliding_window": True}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, window": ("Mistral", {"sliding_window": 9}),
    "gemma2": ("Gemma2", {**_BOTH, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3Text", {**_BOTH, "query_pre_attn_scalar": 8}),
    "gpt-oss": ("GptOss", {**_BOTH, **_EXPERTS}),
    "mixtral": ("Mixtral", {**_EXPERTS, "sliding_window": None}),
    "qwen3-moe": ("Qwen3Moe", _EXPERTS),
}
WITHOUT_SDPA = ("gemma2", "gpt-oss")
"""Families with soft-capped scores or attention sinks, which transformers runs with eager attention only."""


def make_model(family: str, attention: str = "sdpa", **options: Any) -> Any:
    """Return a random model in float32, in evaluation mode."""
    name, own = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **own, **options})
    model_class = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
    torch.manual_seed(0)
    model = model_class._from_config(config, attn_implementation=attention).eval()
    for parameter in model.parameters():  # attention sinks are left empty by some versions
        torch.nn.init.normal_(parameter, std=0.2) if not parameter.isfinite().all() else None
    return model


def settings(form: MaskForm) -> dict[str, Any]:
    """Return the options of a collator that make masks of this form."""
    return {
        "attn_implementation": form.attn_implementation,
        "mask_dtype": form.dtype,
        "sliding_window": form.sliding_window,
        "by_layer_type": form.by_layer_type,
    }


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the summed loss of a batch, and the gradient of each parameter that has one."""
    model.zero_grad()
    batch = dict(batch)
    labels, tree = batch.pop("labels"), batch.get("prefix_tree")
    if tree is not None and batch["attention_mask"].shape[-2] > 1:
        batch.pop("prefix_tree")  # there is a mask, and the tree is for whoever splits the batch
    with tree_attention(model) if "prefix_tree" in batch else nullcontext():
        logits = model(**batch, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


def assert_same_step(model: Any, batch: dict[str, Any], expected_batch: dict[str, Any]) -> None:
    """Require the same loss and the same gradients, to 1e-5 of the largest."""
    loss, gradients = loss_and_gradients(model, batch)
    expected, expected_gradients = loss_and_gradients(model, expected_batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-5 * largest, msg=name)
