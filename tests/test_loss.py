import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig
from transformers import DataCollatorForSeq2Seq, HfArgumentParser
from trl import SFTConfig, TrlParser

from deepfabric_trainer import ConversationEncoder, DeepFabricSFTConfig, DeepFabricTrainer, Region, prepare_dataset
from deepfabric_trainer.collators import SharedPrefixCollator, ToolCallCollator
from deepfabric_trainer.errors import ConfigError
from deepfabric_trainer.loss import weigh
from deepfabric_trainer.rows import to_dataset
from tests.fixtures.processes import run_processes
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

Run = Callable[..., Any]
Gradients = dict[str, torch.Tensor]

WEIGHTS = {"tool_name": 5.0, "tool_arguments": 2.5, "content": 0.25, "format": 0.1}
NAMES = ["reasoning", "content", "tool_name", "tool_arguments", "format", "stop"]
OWN_WEIGHTS = (0.5, 3.0, 2.0)
"""Of the three assistant turns of `tool_rows()[6]`."""


@pytest.fixture
def make_trainer(tmp_path: Path) -> Run:
    """Makes trainers whose one optimizer step subtracts the gradient of all rows: `make_trainer(loss_weights=...)`."""

    def make(rows: Any = None, config_class: Any = DeepFabricSFTConfig, options: Any = None, **args: Any) -> Any:
        tokenizer = tiny_tokenizer()
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "max_steps": 1,
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "max_grad_norm": 0.0,
            **QUIET,
        }
        rows = tool_rows() if rows is None else rows
        return DeepFabricTrainer(
            model=tiny_model(tokenizer),
            args=config_class(**(defaults | args)),
            processing_class=tokenizer,
            train_dataset=to_dataset(rows) if isinstance(rows, list) else rows,
            **(options or {}),
        )

    return make


def step(trainer: Any) -> tuple[float, Gradients]:
    """Return the loss that one step logs, and the gradients that it subtracts."""
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return loss, {name: before[name] - parameter.detach() for name, parameter in trainer.model.named_parameters()}


def weights_of(example: Mapping[str, Any], by_region: Mapping[str, float]) -> torch.Tensor:
    """Return what the tokens weigh; each assistant turn that the row weighs ends with its stop token."""
    turns = iter(example.get("own", ()))
    own, weights = next(turns, 1.0), []
    for label, region in zip(example["labels"], example["regions"], strict=True):
        weights.append(0.0 if label == -100 else own * by_region.get(Region(region).name.lower(), 1.0))
        own = next(turns, 1.0) if region == Region.STOP else own
    return torch.tensor(weights)


def reference(
    examples: Sequence[Mapping[str, Any]], by_region: Mapping[str, float], model: Any = None
) -> tuple[float, Gradients]:
    """Return the weighted loss and its gradients, from the logits of each example alone."""
    model = tiny_model(tiny_tokenizer()) if model is None else model
    total, weight = torch.tensor(0.0), 0.0
    for example in examples:
        ids, labels = torch.tensor(example["input_ids"]), torch.tensor(example["labels"])
        log_probs = model(input_ids=ids[None]).logits[0, -len(ids) : -1].log_softmax(-1)
        weights = weights_of(example, by_region)[1:]
        total = total - (weights * log_probs.gather(1, labels[1:, None].clamp(min=0))[:, 0]).sum()
        weight += float(weights.sum())
    loss = total / weight
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.item(), gradients


def assert_same(found: Gradients, expected: Gradients, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=tolerance * largest, msg=name)


def encoded(rows: Any = None, **options: Any) -> list[dict[str, Any]]:
    encoder = ConversationEncoder(tiny_tokenizer(), **options)
    return list(prepare_dataset(to_dataset(tool_rows() if rows is None else rows), encoder))


def rows_with_weights() -> list[dict[str, Any]]:
    rows = tool_rows()
    turns = [message for message in rows[6]["messages"] if message["role"] == "assistant"]
    for message, weight in zip(turns, OWN_WEIGHTS, strict=True):
        message["weight"] = weight
    return rows


def encoded_with_weights() -> list[dict[str, Any]]:
    examples = [{**example} for example in encoded()]
    examples[6]["own"] = OWN_WEIGHTS
    return examples


@pytest.mark.parametrize(
    ("train_on", "batching", "accumulation"),
    [
        ("assistant", "padded", 4),
        ("assistant", "shared_prefix", 1),
        ("assistant", "shared_prefix", 4),
        ("all", "padded", 1),
    ],
)
def test_loss_and_gradients_are_those_of_the_formula(
    make_trainer: Run, train_on: str, batching: str, accumulation: int
) -> None:
    """With "assistant" the head sees the trained positions only, with "all" it sees every position."""
    options = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = make_trainer(loss_weights=WEIGHTS, train_on=train_on, batching=batching, **options)
    loss, gradients = step(trainer)
    expected_loss, expected = reference(encoded(train_on=train_on), WEIGHTS)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_same(gradients, expected)
    unweighted_loss, unweighted = reference(encoded(train_on=train_on), {})
    assert abs(unweighted_loss - expected_loss) > 0.01, "the weights matter"
    with pytest.raises(AssertionError):
        assert_same(gradients, unweighted, tolerance=0.01)


def test_micro_batches_of_unequal_weight_give_the_step_of_one_batch(make_trainer: Run) -> None:
    order = {"train_sampling_strategy": "sequential", "loss_weights": WEIGHTS}
    small = make_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=4, **order)
    sums = {
        round(float(batch["loss_weights"][..., 1:].sum()) / float((batch["labels"][..., 1:] != -100).sum()), 3)
        for batch in small.get_train_dataloader()
    }
    assert len(sums) > 2
    whole = make_trainer(**order)
    step(small)
    step(whole)
    for found, expected in zip(small.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_weights_of_one_change_nothing_to_the_last_bit(make_trainer: Run) -> None:
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "learning_rate": 0.1,
    }
    plain = make_trainer(**options)
    ones = make_trainer(loss_weights=dict.fromkeys(NAMES, 1.0), **options)
    plain.train()
    ones.train()
    assert "loss_weights" in next(iter(ones.get_train_dataloader()))
    for found, expected in zip(ones.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(found, expected)
    metrics = [[entry.get("loss") for entry in trainer.state.log_history] for trainer in (ones, plain)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("scale", [1000.0, 1e-6])
def test_only_the_proportions_of_the_weights_matter(make_trainer: Run, scale: float) -> None:
    weights = dict.fromkeys(NAMES, 1.0) | WEIGHTS
    loss, gradients = step(make_trainer(loss_weights={name: scale * weight for name, weight in weights.items()}))
    expected_loss, expected = step(make_trainer(loss_weights=weights))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_same(gradients, expected, tolerance=1e-6)


def test_entropy_and_token_accuracy_stay_unweighted(make_trainer: Run) -> None:
    found = []
    for weights in (None, WEIGHTS):
        trainer = make_trainer(loss_weights=weights)
        step(trainer)
        logs = trainer.state.log_history[0]
        found.append([logs["entropy"], logs["mean_token_accuracy"], logs["num_tokens"]])
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
def test_the_evaluation_loss_is_the_weighted_mean(make_trainer: Run) -> None:
    trainer = make_trainer(loss_weights=WEIGHTS, options={"eval_dataset": to_dataset(tool_rows())})
    expected, _ = reference(encoded(), WEIGHTS)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    stream = to_dataset(tool_rows()).to_iterable_dataset()
    assert trainer.evaluate(stream)["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == pytest.approx(expected, rel=1e-6)


def test_tokens_without_weight_are_as_if_they_were_not_trained(make_trainer: Run) -> None:
    _, gradients = step(make_trainer(loss_weights={"content": 0.0, "stop": 0}))
    masked = encoded()
    for example in masked:
        untrained = (Region.CONTENT, Region.STOP)
        labels = zip(example["labels"], example["regions"], strict=True)
        example["labels"] = [-100 if region in untrained else label for label, region in labels]
    trainer = make_trainer(Dataset.from_list(masked), options={"data_collator": ToolCallCollator(0)})
    _, expected = step(trainer)
    assert_same(gradients, expected)


def test_a_batch_without_any_weight_has_no_loss(make_trainer: Run) -> None:
    weights = {"content": 0, "format": 0, "stop": 0}
    loss, gradients = step(make_trainer(tool_rows()[4:6], loss_weights=weights))
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients.values())
    trainer = make_trainer(loss_weights=weights)
    assert trainer.evaluate(to_dataset(tool_rows()[4:6]))["eval_loss"] == 0


@pytest.mark.parametrize("by_region", [None, WEIGHTS])
@pytest.mark.parametrize("batching", ["padded", "shared_prefix"])
def test_messages_weigh_what_they_say(make_trainer: Run, batching: str, by_region: Any) -> None:
    """In micro-batches of two, so that without weights of regions only one of four has weights."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = make_trainer(rows_with_weights(), batching=batching, loss_weights=by_region, **options)
    loss, gradients = step(trainer)
    expected_loss, expected = reference(encoded_with_weights(), by_region or {})
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert_same(gradients, expected)
    evaluated = trainer.evaluate(to_dataset(rows_with_weights()[6:7]))["eval_loss"]
    assert evaluated == pytest.approx(
        reference(encoded_with_weights()[6:7], by_region or {}, trainer.model)[0], rel=1e-6
    )


@pytest.mark.parametrize("collator", [ToolCallCollator, SharedPrefixCollator])
@pytest.mark.parametrize("config", [SFTConfig, DeepFabricSFTConfig])
def test_collators_of_the_users_can_weigh_with_any_config(make_trainer: Run, config: Any, collator: Any) -> None:
    rows = prepare_dataset(to_dataset(rows_with_weights()), ConversationEncoder(tiny_tokenizer()))
    options = {"data_collator": collator(0, loss_weights={Region[name.upper()]: WEIGHTS[name] for name in WEIGHTS})}
    _, gradients = step(make_trainer(rows, config, options))
    assert_same(gradients, reference(encoded_with_weights(), WEIGHTS)[1])


@pytest.mark.parametrize("by_region", [None, WEIGHTS])
def test_streams_are_weighted_and_all_their_batches_hold_the_same_tensors(make_trainer: Run, by_region: Any) -> None:
    stream = to_dataset(rows_with_weights()).to_iterable_dataset()
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = make_trainer(stream, loss_weights=by_region, batching="padded", **options)
    assert len({tuple(batch) for batch in trainer.get_train_dataloader()}) == 1
    _, gradients = step(trainer)
    assert_same(gradients, reference(encoded_with_weights(), by_region or {})[1])


def test_tokens_that_an_adapter_puts_before_a_row_weigh_nothing(make_trainer: Run) -> None:
    adapter = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    trainer = make_trainer(loss_weights=WEIGHTS, options={"peft_config": adapter})
    found = trainer.evaluate(to_dataset(tool_rows()))["eval_loss"]
    assert found == pytest.approx(reference(encoded(), WEIGHTS, trainer.model)[0], rel=1e-6)


def test_rows_that_are_split_over_processes_are_refused() -> None:
    split = {"labels": torch.ones(2, 3), "shift_labels": torch.ones(2, 3)}
    model = object()
    assert weigh(model, dict(split), None) is model
    with pytest.raises(ConfigError, match="context or sequence parallelism"):
        weigh(model, {**split, "loss_weights": torch.ones(2, 6)}, None)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"tool": 2}, "names 'tool'. Expected one of reasoning, content, tool_name, tool_arguments, format, stop"),
        ({"context": 2}, "names 'context'"),
        ({"TOOL_NAME": 2}, "names 'TOOL_NAME'"),
        ({"stop": -1}, r"loss_weights\['stop'\] is -1. Expected a finite number"),
        ({"stop": float("nan")}, "is nan"),
        ({"stop": float("inf")}, "is inf"),
        ({"stop": "2"}, "is '2'"),
        ({"stop": True}, "is True"),
        ({"stop": None}, "is None"),
        (dict.fromkeys(NAMES, 0), "0 for every region"),
        ("tool_name=2", "loss_weights is 'tool_name=2'. Expected a weight for each region"),
        ('{"tool_name": 2', "loss_weights is"),
        ("[1, 2]", "loss_weights is"),
        ([("stop", 1)], "loss_weights is"),
    ],
)
def test_weights_that_are_none_are_config_errors(tmp_path: Path, weights: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DeepFabricSFTConfig(str(tmp_path), use_cpu=True, loss_weights=weights)


def test_weights_come_from_the_command_line_and_from_yaml(tmp_path: Path) -> None:
    arguments = ["--output_dir", str(tmp_path), "--use_cpu"]
    text = ["--loss_weights", json.dumps({"tool_name": 2, "content": 0.5})]
    weights = {"tool_name": 2.0, "content": 0.5}
    assert (
        HfArgumentParser(DeepFabricSFTConfig).parse_args_into_dataclasses([*arguments, *text])[0].loss_weights
        == weights
    )
    (tmp_path / "config.yaml").write_text("loss_weights:\n  tool_name: 2\n  content: 0.5\n")
    parser = TrlParser(DeepFabricSFTConfig)
    yaml = ["--config", str(tmp_path / "config.yaml")]
    assert parser.parse_args_and_config([*arguments, *yaml])[0].loss_weights == weights
    (stop,) = parser.parse_args_and_config([*arguments, *yaml, "--loss_weights", '{"stop": 0}'])
    assert stop.loss_weights == {"stop": 0.0}
    assert TrlParser(DeepFabricSFTConfig).parse_args_and_config(arguments)[0].loss_weights is None
    assert copy.deepcopy(stop).to_dict()["loss_weights"] == {"stop": 0.0}
    assert "loss_weights" in parser.format_help()


def squared(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return outputs.logits.square().mean()


OBSTACLES = [
    ({"loss_type": "dft"}, {}, "loss_type='dft'"),
    ({"label_smoothing_factor": 0.1}, {}, "`label_smoothing_factor`"),
    ({}, {"compute_loss_func": squared}, "`compute_loss_func`"),
    ({"packing": True}, {}, "`packing`"),
    ({"eval_packing": True}, {}, "`eval_packing`"),
    ({"padding_free": True}, {}, "`padding_free`"),
    ({}, {"data_collator": DataCollatorForSeq2Seq(None)}, "a `data_collator`"),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("args", "options", "words"), OBSTACLES)
def test_what_goes_round_the_weights_is_refused(make_trainer: Run, args: Any, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"loss_weights together with {words}"):
        make_trainer(loss_weights=WEIGHTS, options=options, **args)
    with pytest.raises(ConfigError, match=f"messages have a `weight`, .* together with {words}"):
        make_trainer(rows_with_weights(), options=options, **args)
    stream = to_dataset(rows_with_weights()).to_iterable_dataset()
    with pytest.raises(ConfigError, match=f"messages have a `weight`, .* together with {words}"):
        list(make_trainer(stream, options=options, **args).train_dataset)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("args", "options", "words"), OBSTACLES[:6])
def test_rows_without_weights_go_as_they_did(make_trainer: Run, args: Any, options: Any, words: str) -> None:
    assert make_trainer(options=options, **args).train_dataset is not None


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([{"text": "some words"}] * 2, {}, "rows that are no conversations"),
        (None, {"formatting_func": lambda row: row["messages"][0]["content"]}, "`formatting_func`"),
        (None, {"data_collator": ToolCallCollator(0)}, "a `data_collator`.*ToolCallCollator"),
    ],
)
def test_weights_without_regions_are_refused(make_trainer: Run, rows: Any, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"loss_weights together with {words}"):
        make_trainer(rows, loss_weights=WEIGHTS, options=options)


def test_weights_of_messages_are_not_lost_on_trls_way(make_trainer: Run) -> None:
    with pytest.raises(ConfigError, match=r"a plain `SFTConfig`\. .* use `DeepFabricSFTConfig`"):
        make_trainer(rows_with_weights(), SFTConfig, max_length=None)
    trainer = make_trainer(tool_rows(), SFTConfig, max_length=None)
    with pytest.raises(ConfigError, match="eval dataset: messages have a `weight`"):
        trainer.evaluate(to_dataset(rows_with_weights()))
    prepared = prepare_dataset(to_dataset(rows_with_weights()), ConversationEncoder(tiny_tokenizer()))
    with pytest.raises(ConfigError, match="a plain `SFTConfig`"):
        make_trainer(prepared, SFTConfig, max_length=None)
    batch = next(iter(make_trainer(prepared).get_train_dataloader()))
    assert len(batch["loss_weights"][batch["loss_weights"] > 0].unique()) > 1, "encoded rows are weighed as they say"


def test_messages_of_weight_0_and_1_go_anywhere(make_trainer: Run) -> None:
    rows = tool_rows()
    for message, weight in zip(rows[6]["messages"][2::2], (0, 1, 1), strict=False):
        message["weight"] = weight
    trainer = make_trainer(rows, SFTConfig, max_length=None, assistant_only_loss=True)
    trained = trainer.processing_class.decode([label for label in trainer.train_dataset[6]["labels"] if label != -100])
    assert "I look." not in trained
    assert "Done." in trained
    step(trainer)


@pytest.mark.slow
def test_two_processes_give_the_step_of_one(tmp_path: Path) -> None:
    """Only the second process has weights; on average each goes by the weights of both, otherwise by its own."""
    (tmp_path / "rows.json").write_text(json.dumps(rows_with_weights()))
    settings = [json.dumps({"average_tokens_across_devices": average}) for average in (True, False)]
    run_processes("tests.fixtures.weighted_run", str(tmp_path), *settings)
    examples = encoded_with_weights()
    halves = [reference(half, {})[1] for half in (examples[:4], examples[4:])]
    of_halves = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    for number, expected in enumerate((reference(examples, {})[1], of_halves)):
        after = torch.load(tmp_path / f"parameters_{number}.pt")
        before = tiny_model(tiny_tokenizer())
        assert_same({name: value.detach() - after[name] for name, value in before.named_parameters()}, expected)
