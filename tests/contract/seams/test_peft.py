"""What we rely on in peft."""

from typing import Any

import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from tests.contract.seams.seam import Seam

USERS = (
    *("deepfabric_trainer/head.py", "deepfabric_trainer/laid_out.py", "deepfabric_trainer/generate/plain.py"),
    "collators/support.py",
)


@Seam("peft", "PeftModel.peft_config, get_base_model() and is_prompt_learning", *USERS)
def test_adapters(tiny_model: Any) -> None:
    adapted = get_peft_model(tiny_model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert adapted.get_base_model() is tiny_model
    assert [adapter.is_prompt_learning for adapter in adapted.peft_config.values()] == [False]
    assert getattr(adapted.peft_config["default"], "alora_invocation_tokens", None) is None


@Seam(
    "peft",
    "the virtual tokens of prompt tuning, before each row of the logits",
    "deepfabric_trainer/loss.py",
    "deepfabric_trainer/region_metrics.py",
    "deepfabric_trainer/label_scores.py",
)
def test_virtual_tokens(tiny_model: Any) -> None:
    prompted = get_peft_model(tiny_model, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    assert [adapter.is_prompt_learning for adapter in prompted.peft_config.values()] == [True]
    ids = torch.tensor([[4, 5, 6]])
    assert prompted(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).logits.shape[1] == 5
