from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from trl import SFTTrainer

from deepfabric_trainer import DeepFabricTrainer
from deepfabric_trainer.label_scores import FUSED_HEAD
from tests.parity.features import (
    Feature,
    adapted_llama,
    as_it_is,
    collate_numbers,
    lora,
    mean_of_squares,
    rows,
    stream,
)
from tests.parity.runs import make_trainer
from tests.parity.samples import CHATS, QUESTIONS, TEXTS

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL warns of many of its own features, in both runs

REFUSED = [
    Feature("no dataset", lambda: None),
    Feature("a list of rows", lambda: CHATS),
    Feature("a DatasetDict to train on", lambda: DatasetDict(train=Dataset.from_list(CHATS))),
    Feature("a stream without max_steps", partial(stream, CHATS), {"max_steps": -1}),
    Feature("padding_free that is not cut", rows(CHATS), {"padding_free": True}),
    Feature("packing without max_length", rows(CHATS), {"packing": True, "max_length": None}),
    Feature("packing with a collator", rows(CHATS), {"packing": True}, lambda: {"data_collator": collate_numbers}),
    Feature("an unknown loss", rows(CHATS), {"loss_type": "other"}),
    Feature(
        "dft with compute_loss_func", rows(CHATS), {"loss_type": "dft"}, lambda: {"compute_loss_func": mean_of_squares}
    ),
    Feature("an unknown way to cut", rows(TEXTS), {"truncation_mode": "middle"}),
    Feature("an unknown eos_token", rows(CHATS), {"eos_token": "<nowhere>"}),
    Feature("an unknown pad_token", rows(CHATS), {"pad_token": "<nowhere>"}),
    Feature("assistant_only_loss on texts", rows(TEXTS), {"assistant_only_loss": True}),
    Feature("adapters on adapters", rows(CHATS), {}, lora(), adapted_llama),
    Feature("peft_config of another type", rows(CHATS), {}, lambda: {"peft_config": {"r": 2}}),
    Feature(
        "formatting_func with completion_only_loss",
        rows(QUESTIONS),
        {"completion_only_loss": True},
        lambda: {"formatting_func": lambda row: row["prompt"]},
    ),
    Feature("texts behind a transform", lambda: Dataset.from_list(TEXTS).with_transform(as_it_is)),
    Feature("messages behind a transform", lambda: Dataset.from_list(CHATS).with_transform(as_it_is)),
    Feature("images", rows([{**row, "image": "a file"} for row in CHATS])),
]
if FUSED_HEAD:  # before 1.15 TRL refuses an adapter of the head for its chunked loss, and takes the coefficient
    REFUSED += [
        Feature("adapters of the head", rows(CHATS), {}, lora(target_modules=["q_proj", "lm_head"])),
        Feature("an auxiliary loss without a router", rows(CHATS), {"router_aux_loss_coef": 0.1}),
    ]


@pytest.mark.parametrize("feature", REFUSED, ids=lambda feature: feature.name)
def test_what_sft_trainer_refuses_is_refused_in_its_words(feature: Feature, tmp_path: Path) -> None:
    errors: list[Any] = []
    for trainer_class in (SFTTrainer, DeepFabricTrainer):
        with pytest.raises((ValueError, TypeError)) as error:
            make_trainer(trainer_class, feature, tmp_path / trainer_class.__name__)
        errors.append((error.type, str(error.value)))
    assert errors[1] == errors[0]
