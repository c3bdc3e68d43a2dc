"""What we rely on in trl: each failure says what moved, and which of our files depends on it."""

import inspect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, data_utils, get_peft_config
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from deepfabric_trainer import DeepFabricTrainer
from deepfabric_trainer.label_scores import FUSED_HEAD
from tests.contract.seams.seam import Seam
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer

TRAINER, STEPS, SCORES = (f"deepfabric_trainer/{name}.py" for name in ("trainer", "steps", "label_scores"))
EXAMPLES = [{"input_ids": list(range(40, 40 + size)), "labels": [-100, *range(41, 40 + size)]} for size in (4, 6)]
BATCH = {"input_ids": torch.tensor([[4, 5, 6, 7]]), "labels": torch.tensor([[-100, -100, 6, 7]])}

Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(rows: Any = EXAMPLES, trainer_class: Any = SFTTrainer, eval_dataset: Any = None, **options: Any) -> Any:
        tokenizer = tiny_tokenizer()
        settings = {"output_dir": str(tmp_path), "max_steps": 1, "per_device_train_batch_size": 2, **QUIET, **options}
        return trainer_class(
            model=tiny_model(tokenizer),
            args=SFTConfig(**settings),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=eval_dataset,
        )

    return make


def batch() -> dict[str, torch.Tensor]:
    return {**BATCH, "attention_mask": torch.ones_like(BATCH["input_ids"])}


@Seam("trl", "the arguments of SFTTrainer", TRAINER)
def test_the_constructor() -> None:
    theirs, ours = (inspect.signature(kind.__init__).parameters for kind in (SFTTrainer, DeepFabricTrainer))
    assert list(theirs) == list(ours)


@Seam(
    "trl",
    "SFTTrainer._prepare_dataset, called before Trainer.__init__ and again by evaluate()",
    TRAINER,
    private=("_prepare_dataset",),
)
def test_preparation(make: Make) -> None:
    seen = []

    class Recording(SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(
            self, dataset: Any, processing_class: Any, args: Any, packing: Any, formatting_func: Any, dataset_name: str
        ) -> Any:
            seen.append((dataset_name, hasattr(self, "accelerator"), packing, formatting_func))
            return Dataset.from_list(EXAMPLES)

    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
    trainer = make(rows, Recording, eval_dataset={"own": Dataset.from_list(rows)})
    assert seen == [("train", False, False, None), ("own", False, False, None)]
    assert trainer.train_dataset["input_ids"][:] == [example["input_ids"] for example in EXAMPLES]
    trainer.evaluate(Dataset.from_list(rows))
    assert seen[2:] == [("eval", True, False, None)]
    trainer.evaluate("own")
    assert len(seen) == 3


@Seam("trl", "SFTTrainer._prepare_dataset, which packs tokens and labels", TRAINER)
def test_packing(make: Make) -> None:
    trainer = make(packing=True, max_length=16)
    assert {"input_ids", "labels", "seq_lengths"} <= set(trainer.train_dataset.column_names)
    assert len(trainer.train_dataset) == 1


@Seam(
    "trl",
    "SFTTrainer._set_signature_columns_if_needed",
    TRAINER,
    private=("_set_signature_columns_if_needed", "_signature_columns"),
)
def test_columns_that_are_kept(make: Make) -> None:
    trainer = make()
    trainer._set_signature_columns_if_needed()
    assert {"input_ids", "labels"} <= set(trainer._signature_columns)
    trainer._signature_columns = ["input_ids", "labels", "regions"]
    kept = trainer._remove_unused_columns(Dataset.from_list([{"input_ids": [1], "regions": [0], "other": 1}]))
    assert kept.column_names == ["input_ids", "regions"]


@Seam("trl", "SFTTrainer._tokenizer", TRAINER, private=("_tokenizer",))
def test_the_tokenizer(make: Make) -> None:
    trainer = make()
    assert trainer._tokenizer.pad_token_id == trainer.processing_class.pad_token_id


@Seam(
    "trl",
    "SFTTrainer._metrics and _total_train_tokens, filled by compute_loss, with the sum of attention_mask for tokens",
    TRAINER,
    STEPS,
    private=("_metrics", "_total_train_tokens"),
)
def test_what_a_step_counts(make: Make) -> None:
    trainer = make()
    assert isinstance(trainer._metrics["train"], defaultdict)
    trainer.model.train()
    trainer.compute_loss(trainer.model, {**batch(), "attention_mask": torch.tensor([[0, 1, 1, 1]])})
    assert trainer._total_train_tokens == 3
    metrics = trainer._metrics["train"]
    assert metrics["num_tokens"] == [3]
    assert [len(metrics[name]) for name in ("entropy", "mean_token_accuracy")] == [1, 1]
    metrics["entropy"][:] = [1.0, 3.0]
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["entropy"] == 2.0
    assert not metrics


@Seam("trl", "SFTTrainer.compute_loss, which calls what it is given for the model, by keywords", TRAINER, SCORES)
def test_the_model_is_whatever_is_called(make: Make) -> None:
    trainer = make(**({} if FUSED_HEAD else {"loss_type": "nll"}))
    given = []

    def called(**inputs: Any) -> Any:
        given.append(inputs)
        return trainer.model(**inputs)

    expected = trainer.compute_loss(trainer.model, batch())
    torch.testing.assert_close(trainer.compute_loss(called, batch()), expected)
    assert len(given) == 1
    assert {"input_ids", "attention_mask", "labels"} <= set(given[0])


@pytest.mark.skipif(not FUSED_HEAD, reason="TRL has a fused head since 1.15")
@Seam(
    "trl",
    "the fused head: log_probs, is_top1 and label_mask of each label, and the loss from log_probs over max(items, 1)",
    "deepfabric_trainer/region_metrics.py",
    "deepfabric_trainer/loss.py",
    "callbacks/_health/probe.py",
)
def test_the_fused_head(make: Make) -> None:
    trainer = make()
    outputs = trainer.model(**batch(), fused_lm_head=True)
    for name in ("log_probs", "is_top1", "label_mask"):
        assert getattr(outputs, name).shape == (1, 3), name
    assert outputs.label_mask.tolist() == [[False, True, True]]
    assert outputs.log_probs[0, 0] == 0

    def called(**inputs: Any) -> Any:
        found = trainer.model(**inputs)
        found.log_probs = found.log_probs * 3
        return found

    for items, divisor in ((None, 2), (torch.tensor(4), 4), (torch.tensor(0.5), 1)):
        loss = trainer.compute_loss(called, batch(), num_items_in_batch=items)
        torch.testing.assert_close(loss, -3 * outputs.log_probs.sum() / divisor)


@pytest.mark.skipif(FUSED_HEAD, reason="TRL makes no logits since 1.15")
@Seam("trl", "compute_loss before the fused head: outputs['loss'], and metrics from logits and labels", SCORES)
def test_the_loss_of_logits(make: Make) -> None:
    assert make().args.loss_type == "chunked_nll"
    trainer = make(loss_type="nll")

    def called(**inputs: Any) -> Any:
        outputs = trainer.model(**inputs)
        assert outputs.logits.shape[:2] == (1, 4)
        outputs["loss"] = outputs.loss * 3
        return outputs

    expected = trainer.compute_loss(trainer.model, batch())
    torch.testing.assert_close(trainer.compute_loss(called, batch()), expected * 3)


@pytest.mark.skipif(FUSED_HEAD, reason="TRL asks for no outputs in an evaluation since 1.15")
@Seam("trl", "`_prediction_loss_only` among the inputs", SCORES)
def test_what_an_evaluation_wants(make: Make) -> None:
    seen = []

    class Recording(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(inputs.get("_prediction_loss_only"))
            return super().compute_loss(model, inputs, *args, **kwargs)

    make(trainer_class=Recording).evaluate(Dataset.from_list(EXAMPLES))
    assert seen == [True]


@Seam("trl", "SFTTrainer.aux_loss_enabled", STEPS)
def test_a_router_has_a_flag(make: Make) -> None:
    assert make().aux_loss_enabled is False


@Seam(
    "trl",
    "DataCollatorForLanguageModeling(pad_token_id, padding_free, pad_to_multiple_of)",
    "deepfabric_trainer/batches.py",
    "deepfabric_trainer/region_metrics.py",
)
def test_the_collator() -> None:
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=False, pad_to_multiple_of=8)
    assert (collator.padding_free, collator.pad_to_multiple_of) == (False, 8)
    assert collator(EXAMPLES)["labels"].shape == (2, 8)
    flat = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(EXAMPLES)
    assert flat["input_ids"].shape == flat["labels"].shape == (1, 10)
    if "seq_idx" in flat:
        assert flat["seq_idx"].tolist() == [[0] * 4 + [1] * 6]


@Seam("trl", "padding_free without packing refuses a max_length, and a collator of the user's", TRAINER)
def test_padding_free_refuses(make: Make) -> None:
    with pytest.raises(ValueError, match="max_length"):
        make(padding_free=True, max_length=16)
    assert list(inspect.signature(SFTTrainer.evaluate).parameters)[1:] == [
        "eval_dataset",
        "ignore_keys",
        "metric_key_prefix",
    ]


@Seam(
    "trl",
    "assistant_only_loss, refused on templates without `generation`",
    "deepfabric_trainer/training_rows/examples.py",
)
@pytest.mark.filterwarnings("ignore")
def test_assistant_only_loss_wants_templates_of_its_own(make: Make) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
    with pytest.raises((ValueError, RuntimeError)):
        make(rows, assistant_only_loss=True)


@Seam(
    "trl",
    "data_utils: get_dataset_column_names, is_conversational, is_conversational_from_value",
    "deepfabric_trainer/training_rows/kinds.py",
    "deepfabric_trainer/loss_settings.py",
)
def test_kinds_of_rows() -> None:
    said = [{"role": "user", "content": "Hi"}]
    dataset = Dataset.from_list([{"messages": said}])
    assert data_utils.get_dataset_column_names(dataset) == ["messages"]
    assert data_utils.get_dataset_column_names(dataset.to_iterable_dataset()) == ["messages"]
    assert data_utils.is_conversational({"messages": said})
    assert not data_utils.is_conversational({"text": "Hi"})
    assert data_utils.is_conversational_from_value({"conversations": [{"from": "human", "value": "Hi"}]})


@Seam(
    "trl",
    "the fields of SFTConfig that we read",
    "deepfabric_trainer/config.py",
    "deepfabric_trainer/loss_settings.py",
    "deepfabric_trainer/training_rows/encoder.py",
)
def test_settings() -> None:
    defaults = {field.name: field.default for field in fields(SFTConfig)}
    expected = {
        "max_length": 1024,
        "packing": False,
        "packing_strategy": "bfd",
        "padding_free": False,
        "eval_packing": None,
        "completion_only_loss": None,
        "assistant_only_loss": False,
        "dataset_text_field": "text",
        "dataset_num_proc": None,
        "shuffle_dataset": False,
        "trust_remote_code": False,
        "bf16": None,
        "loss_type": "nll" if FUSED_HEAD else None,
    }
    assert {name: defaults[name] for name in expected} == expected
    assert {"model_init_kwargs", "pad_to_multiple_of", "activation_offloading"} <= set(defaults)


@Seam("trl", "TrlParser, ModelConfig and get_peft_config", "deepfabric_trainer/cli/train.py")
def test_parsing() -> None:
    parser = TrlParser((SFTConfig, ModelConfig))
    settings = ["--output_dir", "x", "--bf16", "False", "--model_name_or_path", "name", "--max_length", "7"]
    _, model = parser.parse_args_and_config(settings)
    assert model.model_name_or_path == "name"
    assert get_peft_config(model) is None


@Seam("trl", "the folder of chat templates", "docs/make_template_table.py", "tests/fixtures/templates.py")
def test_templates() -> None:
    assert (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").is_file()
