from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig
from trl import SFTTrainer

from deepfabric_trainer import DeepFabricTrainer
from tests.collators.models import make_model
from tests.parity.features import EVALUATES, Feature, lora, rows
from tests.parity.runs import assert_same_history, assert_same_weights, make_trainer, train
from tests.parity.samples import CHATS

pytest.importorskip("bitsandbytes")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # bitsandbytes, on a machine without an accelerator
]


@pytest.mark.parametrize(
    "options",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_8bit": True},
    ],
    ids=["nf4", "nf4, twice", "int8"],
)
def test_adapters_on_a_quantized_model(options: dict[str, Any], tmp_path: Path) -> None:
    feature = Feature(
        "quantized",
        rows(CHATS),
        EVALUATES,
        lambda: {
            **lora()(),
            "quantization_config": BitsAndBytesConfig(**options),
            "eval_dataset": rows(CHATS)(),
        },
        saved_llama_of_whole_blocks,
    )
    expected, found = (
        train(make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__))
        for trainer_class in (SFTTrainer, DeepFabricTrainer)
    )
    base = found.trainer.model.get_base_model()
    assert base.is_loaded_in_4bit if "load_in_4bit" in options else base.is_loaded_in_8bit
    assert_same_history(found.history, expected.history)
    assert_same_weights(adapters(found.weights), adapters(expected.weights))


def saved_llama_of_whole_blocks(tokenizer: Any, folder: Path) -> str:
    """Return the folder of a tiny Llama whose rows are blocks of 64 numbers, which share a scale."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    model = make_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes)
    model.save_pretrained(folder / "model")
    return str(folder / "model")


def adapters(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if "lora_" in name}
