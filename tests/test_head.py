from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from trl.trainer import utils as trl_utils

from deepfabric_trainer.head import trained_positions_only
from deepfabric_trainer.label_scores import FUSED_HEAD
from tests.fixtures.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(not FUSED_HEAD, reason="TRL has no fused head before 1.15; see test_label_scores")

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
LABELS = torch.tensor([[-100, -100, 7, -100, -100, 10], [-100, -100, -100, 14, -100, -100]])


def batch(labels: torch.Tensor = LABELS) -> dict[str, Any]:
    return {"input_ids": IDS, "attention_mask": MASK, "labels": labels}


@pytest.fixture
def model() -> Any:
    model = tiny_model(tiny_tokenizer()).train()
    trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return model


def loss_and_gradients(model: Any, inputs: dict[str, Any]) -> tuple[Any, list[torch.Tensor]]:
    model.zero_grad()
    outputs = model(**inputs, fused_lm_head=True)
    outputs.loss.backward()
    return outputs, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_loss_metrics_and_gradients_are_those_of_all_positions(model: Any) -> None:
    expected, expected_gradients = loss_and_gradients(model, batch())
    with trained_positions_only(model, batch()) as inputs:
        assert inputs["labels"].shape == (1, 4)
        found, gradients = loss_and_gradients(model, inputs)
    assert found.log_probs.shape == (1, 3)
    torch.testing.assert_close(found.loss, expected.loss)
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        assert getattr(found, name).sum().item() == pytest.approx(getattr(expected, name).sum().item(), rel=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


def test_the_model_is_as_before_also_after_an_error(model: Any) -> None:
    before = model(input_ids=IDS).logits
    with pytest.raises(RuntimeError, match="on purpose"), trained_positions_only(model, batch()):
        raise RuntimeError("on purpose")
    torch.testing.assert_close(model(input_ids=IDS).logits, before)


def test_adapters_are_trained_alike(model: Any) -> None:
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    _, expected = loss_and_gradients(peft, batch())
    with trained_positions_only(peft, batch()) as inputs:
        assert inputs["labels"].shape == (1, 4)
        _, found = loss_and_gradients(peft, inputs)
    for gradient, expected_gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


def test_nothing_is_taken_out_where_nothing_is_gained(model: Any) -> None:
    nothing, everything = torch.full_like(LABELS, -100), IDS
    for labels in (nothing, everything):
        inputs = batch(labels)
        with trained_positions_only(model, inputs) as found:
            assert found is inputs
    prompted = get_peft_model(model, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    inputs = batch()
    with trained_positions_only(prompted, inputs) as found:
        assert found is inputs
