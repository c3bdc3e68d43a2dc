"""A real trainer over rows that are encoded on demand, beside one over rows that were encoded before."""

from pathlib import Path
from typing import Any

import pytest
from trl import SFTConfig, SFTTrainer

from deepfabric_trainer.collators import ToolCallCollator
from deepfabric_trainer.encode import ConversationEncoder
from deepfabric_trainer.grouping import PrefixGroupSampler, row_codes
from deepfabric_trainer.prepare import prepare_dataset
from deepfabric_trainer.prepare.lazy import EncodedOnDemand
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.tiny import CHECKPOINTING, tiny_model, tiny_tokenizer, tool_rows

pytestmark = pytest.mark.slow


class _Trainer(SFTTrainer):
    """Gets its rows from ours, in groups."""

    make = staticmethod(prepare_dataset)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, *_: Any) -> Any:
        self.codes = row_codes(dataset, tools_first=False)
        return self.make(dataset, ConversationEncoder(processing_class))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return PrefixGroupSampler(self.codes, self.args.train_batch_size, self.args.seed)


class _Lazy(_Trainer):
    make = staticmethod(EncodedOnDemand)


def losses(kind: type[_Trainer], folder: Path, **options: Any) -> list[float]:
    tokenizer = tiny_tokenizer()
    trainer = kind(
        model=tiny_model(tokenizer),
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=3,
            num_train_epochs=2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            max_length=None,
            **{CHECKPOINTING: False},
            **options,
        ),
        data_collator=ToolCallCollator(pad_token_id=0),
        train_dataset=to_dataset(tool_rows()),
        processing_class=tokenizer,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_losses_are_those_of_the_eager_way(tmp_path: Path, workers: int) -> None:
    lazy = losses(_Lazy, tmp_path, dataloader_num_workers=workers)
    assert len(lazy) == 6
    assert lazy == losses(_Trainer, tmp_path)
