"""Loss and token accuracy by region, against a plain forward of each example alone."""

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig
from transformers import DataCollatorForSeq2Seq
from trl import SFTConfig

from deepfabric_trainer import ConversationEncoder, DeepFabricSFTConfig, DeepFabricTrainer, Region
from deepfabric_trainer.collators import PackingCollator, SharedPrefixCollator, ToolCallCollator
from deepfabric_trainer.collators.layout import examples_of_tokens
from deepfabric_trainer.region_metrics import RegionMetrics, sums_by_region, without_repeats
from deepfabric_trainer.rows import to_dataset
from tests.collators.batches import make_examples
from tests.fixtures.processes import run_processes
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

BATCHINGS = ("padded", "packed", "shared_prefix")
Make = Callable[..., Any]


def reference(rows: list[dict[str, Any]], model: Any, prefix: str = "") -> dict[str, float]:
    """Return the metrics that a plain forward of each example, alone, gives."""
    encoder = ConversationEncoder(tiny_tokenizer())
    sums = {region: [0, 0, 0.0] for region in Region if region is not Region.CONTEXT}
    for example in (example for row in rows for example in encoder.encode(row)):
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
        right = (logits.argmax(-1) == ids[0, 1:]).tolist()
        for position, (loss, is_right) in enumerate(zip(losses, right, strict=True), start=1):
            if example.labels[position] != -100:
                of_region = sums[Region(example.regions[position])]
                of_region[0] += 1
                of_region[1] += is_right
                of_region[2] += loss
    metrics = {}
    for region, (tokens, correct, total) in sums.items():
        if tokens:
            metrics[f"{prefix}loss_{region.name.lower()}"] = total / tokens
            metrics[f"{prefix}token_accuracy_{region.name.lower()}"] = correct / tokens
    return metrics


def region_metrics(values: dict[str, float], prefix: str = "") -> dict[str, float]:
    names = [f"{prefix}{what}_{region.name.lower()}" for region in Region for what in ("loss", "token_accuracy")]
    return {name: values[name] for name in names if name in values}


@pytest.fixture
def make_trainer(tmp_path: Path, learned: Any) -> Make:
    def make(*, config: Any = DeepFabricSFTConfig, args: dict[str, Any] | None = None, **options: Any) -> Any:
        settings = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, **QUIET, **(args or {})}
        dataset = to_dataset(tool_rows())
        given = {"model": copy.deepcopy(learned), "train_dataset": dataset, "eval_dataset": dataset, **options}
        return DeepFabricTrainer(
            args=config(str(tmp_path / "run"), **settings), processing_class=tiny_tokenizer(), **given
        )

    return make


@pytest.fixture(scope="module")
def learned() -> Any:
    """Return a model that is right now and then: one whose accuracy is 0 shows nothing."""
    model, tokenizer = tiny_model(tiny_tokenizer()).train(), tiny_tokenizer()
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    encoded = [example for row in tool_rows() for example in ConversationEncoder(tokenizer).encode(row)]
    for example in encoded * 2:
        loss = model(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


class TestEvaluation:
    @pytest.mark.parametrize(
        "args",
        [*({"batching": batching} for batching in BATCHINGS), {"preparation": "lazy"}, {"padding_free": True}],
        ids=str,
    )
    def test_is_that_of_a_plain_forward(self, make_trainer: Make, learned: Any, args: dict[str, Any]) -> None:
        metrics = make_trainer(args=args).evaluate()
        expected = reference(tool_rows(), learned, "eval_")
        assert len(expected) == 10
        assert 0.1 < expected["eval_token_accuracy_tool_name"] < 0.9
        assert region_metrics(metrics, "eval_") == pytest.approx(expected, rel=1e-5)

    def test_with_a_plain_config(self, make_trainer: Make, learned: Any) -> None:
        trainer = make_trainer(config=SFTConfig, args={"assistant_only_loss": True})
        collator = trainer.data_collator
        found = region_metrics(trainer.evaluate(), "eval_")
        assert found == pytest.approx(reference(tool_rows(), learned, "eval_"), rel=1e-5)
        assert trainer.data_collator is collator

    @pytest.mark.parametrize(
        "collator",
        [ToolCallCollator(0), SharedPrefixCollator(0), PackingCollator(0)],
        ids=lambda it: type(it).__name__,
    )
    def test_with_a_collator_of_ours(self, make_trainer: Make, learned: Any, collator: Any) -> None:
        found = region_metrics(make_trainer(data_collator=collator).evaluate(), "eval_")
        assert found == pytest.approx(reference(tool_rows(), learned, "eval_"), rel=1e-5)
        assert not collator.return_regions

    def test_needs_no_second_forward(self, make_trainer: Make) -> None:
        trainer = make_trainer(args={"batching": "padded"})
        calls: list[int] = []
        trainer.model.model.register_forward_hook(lambda *unused: calls.append(1))
        trainer.evaluate()
        assert len(calls) == 3

    def test_of_several_sets_each_has_its_prefix(self, make_trainer: Make, learned: Any) -> None:
        rows = tool_rows()
        sets = {"calls": to_dataset(rows[:4]), "words": to_dataset(rows[4:6])}
        metrics = make_trainer(eval_dataset=sets).evaluate()
        for name, part in (("calls", rows[:4]), ("words", rows[4:6])):
            expected = reference(part, learned, f"eval_{name}_")
            assert region_metrics(metrics, f"eval_{name}_") == pytest.approx(expected, rel=1e-5)
        assert "eval_words_loss_tool_name" not in metrics, "a region without tokens has no metric"

    def test_of_rows_given_to_evaluate(self, make_trainer: Make, learned: Any) -> None:
        rows = tool_rows()[2:7]
        metrics = make_trainer().evaluate(Dataset.from_list(rows), metric_key_prefix="test")
        assert region_metrics(metrics, "test_") == pytest.approx(reference(rows, learned, "test_"), rel=1e-5)

    def test_of_a_stream(self, make_trainer: Make, learned: Any) -> None:
        stream = IterableDataset.from_generator(lambda: iter(tool_rows()))
        found = region_metrics(make_trainer(eval_dataset=stream).evaluate(), "eval_")
        assert found == pytest.approx(reference(tool_rows(), learned, "eval_"), rel=1e-5)

    @pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
    def test_with_logits_and_in_predict(self, make_trainer: Make, learned: Any) -> None:
        trainer = make_trainer(compute_metrics=lambda prediction: {"rows": len(prediction.predictions)})
        expected = reference(tool_rows(), learned, "eval_")
        metrics = trainer.evaluate()
        assert metrics["eval_rows"] == 8
        assert region_metrics(metrics, "eval_") == pytest.approx(expected, rel=1e-5)
        found = region_metrics(trainer.predict(trainer.eval_dataset).metrics, "test_")
        assert found == pytest.approx(
            {name.replace("eval_", "test_"): value for name, value in expected.items()}, rel=1e-5
        )

    def test_weights_of_the_loss_are_not_in_it(self, make_trainer: Make, learned: Any) -> None:
        trainer = make_trainer(args={"loss_weights": {"tool_name": 5.0, "stop": 0.0}})
        found = region_metrics(trainer.evaluate(), "eval_")
        assert found == pytest.approx(reference(tool_rows(), learned, "eval_"), rel=1e-5)

    @pytest.mark.parametrize(
        "peft_config",
        [LoraConfig(target_modules=["q_proj"]), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")],
        ids=lambda it: type(it).__name__,
    )
    def test_with_adapters(self, make_trainer: Make, peft_config: Any) -> None:
        """An adapter of virtual tokens shifts the positions, and its own loss is the mean over all regions."""
        trainer = make_trainer(peft_config=peft_config, args={"batching": "padded"})
        found = region_metrics(trainer.evaluate(), "eval_")
        total, tokens = 0.0, Counter[str]()
        for example in (
            example for row in tool_rows() for example in ConversationEncoder(tiny_tokenizer()).encode(row)
        ):
            batch = {"input_ids": torch.tensor([example.input_ids]), "labels": torch.tensor([example.labels])}
            with torch.no_grad():
                total += float(trainer.model(**batch).loss) * sum(label != -100 for label in example.labels)
            tokens.update(Region(region).name.lower() for region in example.regions if region)
        mean = sum(found[f"eval_loss_{region}"] * count for region, count in tokens.items()) / tokens.total()
        assert mean == pytest.approx(total / tokens.total(), rel=1e-4)


class TestTraining:
    @pytest.mark.slow
    @pytest.mark.parametrize("batching", BATCHINGS)
    @pytest.mark.parametrize("max_tokens", [None, 700])
    def test_of_the_window_between_two_logs(
        self, make_trainer: Make, learned: Any, batching: str, max_tokens: int | None
    ) -> None:
        """At a rate of 0 each window of two steps of two batches of two is the whole epoch."""
        args = {
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 2,
            "learning_rate": 0.0,
            "logging_steps": 2,
            "batching": batching,
            "max_tokens_per_batch": max_tokens,
            "eval_strategy": "steps",
            "eval_steps": 1,
        }
        trainer = make_trainer(args=args)
        trainer.train()
        windows = [region_metrics(entry) for entry in trainer.state.log_history if "loss" in entry]
        assert windows == [pytest.approx(reference(tool_rows(), learned), rel=1e-4)] * 2

    @pytest.mark.slow
    def test_of_a_step_that_is_done_anew_counts_once(self, make_trainer: Make, learned: Any) -> None:
        args = {"gradient_accumulation_steps": 4, "max_steps": 1, "learning_rate": 0.0, "batching": "padded"}
        trainer = make_trainer(args=args)
        calls: list[int] = []

        def fail_in_the_third_pass(module: Any, inputs: Any, output: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise MemoryError

        trainer.model.model.register_forward_hook(fail_in_the_third_pass)
        trainer.train()
        (found,) = [region_metrics(entry) for entry in trainer.state.log_history if "loss" in entry]
        assert len(calls) > 4
        assert found == pytest.approx(reference(tool_rows(), learned), rel=1e-4)

    @pytest.mark.slow
    def test_what_a_run_left_is_no_part_of_the_next(self, make_trainer: Make, learned: Any) -> None:
        args = {"max_steps": 4, "learning_rate": 0.0, "logging_steps": 3}
        trainer = make_trainer(args=args)
        trainer.train()
        first = [region_metrics(entry) for entry in trainer.state.log_history if "loss" in entry]
        trainer.train()
        assert [region_metrics(entry) for entry in trainer.state.log_history if "loss" in entry] == first
        assert not region_metrics(trainer.state.log_history[-1])

    @pytest.mark.slow
    def test_a_model_that_learns_gets_names_right(self, make_trainer: Make) -> None:
        tokenizer = tiny_tokenizer()
        args = {"max_steps": 60, "learning_rate": 1e-2, "eval_strategy": "steps", "eval_steps": 15}
        trainer = make_trainer(model=tiny_model(tokenizer), args=args)
        trainer.train()
        names = [entry["eval_token_accuracy_tool_name"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert names[0] < 0.5
        assert names[-1] > names[0] + 0.3

    @pytest.mark.slow
    def test_two_processes_give_the_metrics_of_one(self, tmp_path: Path) -> None:
        """Of 5 rows in batches of 2 the second process evaluates one anew; of 1 row, one and nothing of its own."""
        run_processes("tests.fixtures.region_run", str(tmp_path), "padded", "shared_prefix")
        model = tiny_model(tiny_tokenizer())
        for batching in ("padded", "shared_prefix"):
            history = json.loads((tmp_path / f"{batching}.json").read_text())
            (trained,) = [entry for entry in history if "loss" in entry]
            assert region_metrics(trained) == pytest.approx(reference(tool_rows(), model), rel=1e-4)
            for rows in (1, 5):
                (evaluated,) = [entry for entry in history if f"eval_{rows}_loss" in entry]
                expected = reference(tool_rows()[-rows:], model, f"eval_{rows}_")
                assert region_metrics(evaluated, f"eval_{rows}_") == pytest.approx(expected, rel=1e-4)


class TestWhereThereAreNone:
    def test_collators_of_others_are_not_asked(self, make_trainer: Make) -> None:
        seen: list[set[str]] = []
        pad = DataCollatorForSeq2Seq(tiny_tokenizer())

        def collate(examples: list[dict[str, Any]]) -> Any:
            seen.extend(set(example) for example in examples)
            return pad(examples)

        metrics = make_trainer(data_collator=collate).evaluate()
        assert seen == [{"input_ids", "labels"}] * 8
        assert not region_metrics(metrics, "eval_")

    def test_packing_by_trl(self, make_trainer: Make) -> None:
        args = {"packing": True, "max_length": 2048, "packing_strategy": "wrapped", "max_steps": 1}
        trainer = make_trainer(config=SFTConfig, args=args)
        trainer.train()
        assert not any(region_metrics(entry) for entry in trainer.state.log_history)

    def test_rows_that_others_tokenized(self, make_trainer: Make) -> None:
        plain = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}])
        metrics = make_trainer(eval_dataset={"ours": to_dataset(tool_rows()), "plain": plain}).evaluate()
        assert region_metrics(metrics, "eval_ours_")
        assert not region_metrics(metrics, "eval_plain_")
        assert "eval_plain_loss" in metrics

    @pytest.mark.filterwarnings("ignore:`(label_smoothing_factor|compute_loss_func)` is deprecated:FutureWarning")
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_losses_of_other_kinds_leave_them_as_they_are(
        self, make_trainer: Make, learned: Any, smoothing: float
    ) -> None:
        def mean_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
            return outputs.logits.mean()

        options = {} if smoothing else {"compute_loss_func": mean_loss}
        trainer = make_trainer(args={"label_smoothing_factor": smoothing}, **options)
        found = region_metrics(trainer.evaluate(), "eval_")
        assert found == pytest.approx(reference(tool_rows(), learned, "eval_"), rel=1e-5)


class TestSums:
    REGIONS = torch.tensor([[0, 3, 3, 6], [0, 2, 0, 0]])
    LOG_PROBS = torch.tensor([[-1.0, -2.0, -0.5], [-4.0, 0.0, 0.0]])
    RIGHT = torch.tensor([[True, False, True], [False, False, False]])
    TRAINED = torch.tensor([[True, True, True], [True, False, False]])

    def test_tokens_right_ones_and_loss(self) -> None:
        sums = sums_by_region(self.REGIONS, self.LOG_PROBS, self.RIGHT, self.TRAINED)
        expected = [[0, 0, 0], [1, 0, 4], [2, 1, 3], [0, 0, 0], [0, 0, 0], [1, 1, 0.5]]
        assert sums.tolist() == expected

    def test_what_is_not_trained_does_not_count(self) -> None:
        none = torch.zeros_like(self.TRAINED)
        assert sums_by_region(self.REGIONS, self.LOG_PROBS, self.RIGHT, none).abs().sum() == 0

    def test_virtual_tokens_shift_the_regions(self) -> None:
        def behind(values: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(values, (2, 0))

        plain = sums_by_region(self.REGIONS, self.LOG_PROBS, self.RIGHT, self.TRAINED)
        shifted = sums_by_region(self.REGIONS, behind(self.LOG_PROBS), behind(self.RIGHT), behind(self.TRAINED))
        assert torch.equal(plain, shifted)

    def test_they_add_up_until_they_are_taken(self) -> None:
        metrics = RegionMetrics()
        outputs = SimpleNamespace(log_probs=self.LOG_PROBS, is_top1=self.RIGHT, label_mask=self.TRAINED)
        for _ in range(2):
            batch = {"regions": self.REGIONS}
            assert metrics.measured(lambda: outputs, batch, "train")() is outputs
            assert not batch
        taken = metrics.take("train", lambda sums: sums * 3, "eval")
        assert taken["eval_loss_tool_name"] == 1.5
        assert taken["eval_token_accuracy_stop"] == 1.0
        assert "eval_loss_format" not in taken
        assert metrics.take("train", lambda sums: sums) == {}

    def test_rows_that_are_split_without_their_regions_are_left_alone(self) -> None:
        batch = {"regions": self.REGIONS, "shift_labels": self.REGIONS}
        assert RegionMetrics().measured(len, batch, "train") is len
        assert "regions" not in batch


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("layout", ["padded", "packed", "shared", "flat"])
def test_examples_that_fill_up_the_last_batch_belong_to_no_region(process: int, layout: str) -> None:
    examples = make_examples("two catalogues")[:2]
    for number, example in enumerate(examples):
        example["regions"] = [number + 2 if label != -100 else 0 for label in example["labels"]]
    collators = {
        "padded": ToolCallCollator(0, return_regions=True),
        "packed": PackingCollator(0, return_tree=True, return_regions=True, max_length=1000),
        "shared": SharedPrefixCollator(0, return_tree=True, return_regions=True),
    }
    batch = collators["padded" if layout == "flat" else layout](examples)
    if layout == "flat":
        flat = [example["regions"] for example in examples]
        batch = {
            "regions": torch.tensor([flat[0] + flat[1]]),
            "seq_idx": torch.tensor([[0] * len(flat[0]) + [1] * len(flat[1])]),
        }
    state = SimpleNamespace(end_of_dataloader=True, remainder=3)
    accelerator = SimpleNamespace(num_processes=2, process_index=process, gradient_state=state)
    found = without_repeats(batch, accelerator)["regions"]
    assert set(found.unique().tolist()) == ({0, 2, 3} if process == 0 else {0, 2})
    state.end_of_dataloader = False
    assert without_repeats(batch, accelerator) is batch


def test_tokens_know_their_example() -> None:
    examples = make_examples("two catalogues")
    batch = SharedPrefixCollator(0, return_tree=True)(examples)
    owners = examples_of_tokens(batch["prefix_tree"], batch["labels"].shape[1])
    for number, example in enumerate(examples):
        trained = [label for label in example["labels"][1:] if label != -100]
        assert batch["labels"][(owners == number) & (batch["labels"] != -100)].tolist() == trained
