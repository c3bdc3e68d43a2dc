"""Optimizer steps in several passes: by a budget of tokens, and when memory runs out."""

import json
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.collators import ToolCallCollator
from deepfabric_trainer.collators.layout import unroll
from deepfabric_trainer.collators.shared_prefix import SharedPrefixCollator
from deepfabric_trainer.passes import TokenBudget, fold, is_out_of_memory, lay_out_again
from deepfabric_trainer.rows import to_dataset
from tests.collators.batches import KINDS, make_examples
from tests.collators.models import loss_and_gradients, make_model
from tests.fixtures.processes import run_processes
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

Run = Callable[..., Any]
LOGGED = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm")


@pytest.fixture
def make_trainer(tmp_path: Path) -> Run:
    def make(
        rows: Any = None,
        *,
        model: Any = None,
        trainer_class: Any = DeepFabricTrainer,
        data_collator: Any = None,
        **args: Any,
    ) -> Any:
        tokenizer = tiny_tokenizer()
        options: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "learning_rate": 1e-3,
            **QUIET,
        }
        return trainer_class(
            model=tiny_model(tokenizer) if model is None else model,
            args=DeepFabricSFTConfig(**(options | args)),
            processing_class=tokenizer,
            train_dataset=to_dataset(tool_rows() if rows is None else rows),
            data_collator=data_collator,
        )

    return make


def logged(trainer: Any) -> list[dict[str, float]]:
    trainer.train()
    return [{name: entry[name] for name in LOGGED} for entry in trainer.state.log_history if "loss" in entry]


def assert_same_curve(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected) == 3
    for entry, wanted in zip(found, expected, strict=True):
        assert entry == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("batching", ["shared_prefix", "packed", "padded"])
def test_a_budget_changes_the_passes_and_nothing_else(make_trainer: Run, batching: str, accumulation: int) -> None:
    expected = logged(make_trainer(batching="padded", gradient_accumulation_steps=accumulation))
    assert expected[0]["loss"] != expected[1]["loss"]
    for budget in (500, 1200):
        trainer = make_trainer(
            batching=batching, max_tokens_per_batch=budget, gradient_accumulation_steps=accumulation
        )
        shapes = record_shapes(trainer)
        assert_same_curve(logged(trainer), expected)
        assert len(shapes) > 3 * accumulation
        longest = max(len(ids) for ids in trainer.train_dataset["input_ids"])
        assert all(rows * length <= max(budget, longest) for rows, length in shapes)


@pytest.mark.slow
def test_weighted_losses_and_models_without_counts_are_split_alike(make_trainer: Run) -> None:
    rows = tool_rows()
    rows[0]["messages"][1]["weight"] = 3.0
    weights = {"tool_name": 4.0, "stop": 0.5}
    for takes_counts in (True, False):
        curves = []
        for options in ({"batching": "padded"}, {"max_tokens_per_batch": 1000}):
            trainer = make_trainer(rows, loss_weights=weights, gradient_accumulation_steps=2, **options)
            trainer.model_accepts_loss_kwargs = takes_counts
            curves.append(logged(trainer))
        assert_same_curve(curves[1], curves[0])


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["shared_prefix", "packed", "padded"])
def test_when_memory_runs_out_the_budget_is_halved_and_the_step_is_done_anew(
    make_trainer: Run, batching: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = logged(make_trainer(batching="padded", gradient_accumulation_steps=2))
    trainer = make_trainer(batching=batching, gradient_accumulation_steps=2)
    failures = fail_beyond(trainer, 1000)
    with caplog.at_level(logging.WARNING, "deepfabric_trainer"):
        assert_same_curve(logged(trainer), expected)
    said = [message for message in caplog.messages if "out of memory" in message]
    assert len(said) == len(set(said)) == len(failures), "once a size, and never again after the budget has settled"
    assert 1 <= len(said) <= 4


@pytest.mark.slow
def test_an_example_that_does_not_fit_alone_is_an_error_that_says_so(make_trainer: Run) -> None:
    trainer = make_trainer()
    fail_beyond(trainer, 100)
    with pytest.raises(RuntimeError, match="can't allocate memory") as raised:
        trainer.train()
    assert "lower `max_length`" in raised.value.__notes__[0]


def test_over_several_processes_a_step_is_not_done_anew(make_trainer: Run) -> None:
    trainer = make_trainer()
    fail_beyond(trainer, 1000)
    with (
        mock.patch("deepfabric_trainer.steps.DistributedType", mock.Mock(NO="one process")),
        pytest.raises(RuntimeError, match="can't allocate memory") as raised,
    ):
        trainer.train()
    assert raised.value.__notes__ == ["set `max_tokens_per_batch`: over several processes a step cannot be done anew"]


class _Remembered(torch.autograd.Function):
    """Passes a tensor on; lives as long as the graph of its pass."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, mark: Any) -> torch.Tensor:
        ctx.mark = mark
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_the_failed_pass_computed_is_gone_when_the_step_is_done_anew(make_trainer: Run, where: str) -> None:
    trainer = make_trainer(max_steps=1)
    marks: list[Any] = []
    alive: list[bool] = []

    def fail(*unused: Any) -> None:
        raise RuntimeError("CUDA out of memory.")

    def check(module: Any, args: Any, output: Any) -> Any:
        alive.extend(mark() is not None for mark in marks)
        if marks:
            return None
        mark = set[int]()
        marks.append(weakref.ref(mark))
        hidden = _Remembered.apply(output.last_hidden_state, mark)
        fail() if where == "forward" else hidden.register_hook(fail)
        output.last_hidden_state = hidden
        return output

    trainer.model.model.register_forward_hook(check)
    trainer.train()
    assert alive
    assert not any(alive), "the smaller passes need the room"


@pytest.mark.slow
def test_a_step_that_failed_is_no_part_of_the_next(make_trainer: Run) -> None:
    trainer = make_trainer(gradient_accumulation_steps=2, batching="padded")
    calls: list[int] = []

    def fail_once(module: Any, args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    trainer.model.model.register_forward_pre_hook(fail_once)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not trainer._step._done


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [None, 700])
def test_laid_out_batches_of_a_users_collator_are_counted_and_split_too(
    make_trainer: Run, max_tokens: int | None
) -> None:
    expected = logged(make_trainer(batching="padded"))
    trainer = make_trainer(data_collator=SharedPrefixCollator(0), max_tokens_per_batch=max_tokens)
    assert_same_curve(logged(trainer), expected)


@pytest.mark.parametrize("with_mask", [True, False])
def test_rows_that_are_padded_on_the_left_or_without_a_mask_keep_their_tokens(with_mask: bool) -> None:
    batch = {"input_ids": torch.tensor([[0, 0, 1, 2], [0, 0, 0, 3], [4, 5, 0, 0]])}
    if with_mask:
        batch["attention_mask"] = batch["input_ids"].ne(0).long()
    parts = [part["input_ids"].tolist() for part in TokenBudget(4).split(batch, None)]
    assert parts == [[[0, 0, 1, 2]], [[0, 0, 0, 3]], [[4, 5]] if with_mask else [[4, 5, 0, 0]]]


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_trainer: Run) -> None:
    trainer = make_trainer()

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        raise RuntimeError("a bug")

    trainer.model.model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="a bug"):
        trainer.train()
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("a bug"))


@pytest.mark.slow
def test_processes_with_different_numbers_of_passes_make_the_step_of_whole_batches(tmp_path: Path) -> None:
    rows = tool_rows()
    short, long = rows[4:6], [rows[6], rows[6]]
    (tmp_path / "rows.json").write_text(json.dumps(short + long))
    run_processes("tests.fixtures.weighted_run", str(tmp_path), "{}", '{"max_tokens_per_batch": 600}')
    whole, found = (torch.load(tmp_path / f"parameters_{number}.pt") for number in range(2))
    for name, expected in whole.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("attention", ["prefix_tree", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1, 70, 130])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(kind: str, attention: str, budget: int) -> None:
    model, examples = make_model("llama"), make_examples(kind)
    collator = SharedPrefixCollator(0, attention, return_tree=True)
    if kind == "nothing shared" and attention == "sdpa":
        collator = ToolCallCollator(0)
    whole = collator(examples)
    parts = TokenBudget(budget).split(whole, collator)
    assert len(parts) > (whole["input_ids"].numel() > budget)
    assert all(len(part["input_ids"]) == 1 or part["input_ids"].numel() <= budget for part in parts)
    expected, expected_gradients = loss_and_gradients(model, whole)
    losses, gradients = zip(*(loss_and_gradients(model, part) for part in parts), strict=True)
    torch.testing.assert_close(sum(losses), expected, rtol=1e-5, atol=0)
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        found = sum(of_part[name] for of_part in gradients)
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_rows_that_are_laid_out_again_hold_the_same_examples_and_weights() -> None:
    examples = make_examples("two catalogues")
    for number, example in enumerate(examples):
        example["weights"] = [float(number + 1)] * len(example["input_ids"])
        example["regions"] = [1] * len(example["input_ids"])
    collator = SharedPrefixCollator(0, return_tree=True, loss_weights={1: 0.5})
    batches = [collator(examples)]
    batches.append(lay_out_again(batches[0], collator, 60))
    assert batches[1]["input_ids"].shape[1] < batches[0]["input_ids"].shape[1]
    found = []
    for batch in batches:
        rows = [
            list(zip(*(unroll(batch["prefix_tree"], row, batch[name][row].tolist()) for name in names), strict=True))
            for row in range(len(batch["prefix_tree"].rows))
            for names in [("input_ids", "labels", "loss_weights")]
        ]
        found.append(sorted(example for row in rows for example in row))
    assert found[0] == found[1]


def test_what_passes_log_is_the_mean_over_their_labels() -> None:
    values = [9.0, 1.0, 2.0, 5.0]
    fold(values, 3, [1, 3, 0])
    assert values == [9.0, 1.75]


def record_shapes(trainer: Any) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []

    def record(module: Any, args: Any, kwargs: Any) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    trainer.model.model.register_forward_pre_hook(record, with_kwargs=True)
    return shapes


def fail_beyond(trainer: Any, tokens: int) -> list[int]:
    """Let memory run out in passes of more tokens; half of the failures come in the backward pass."""
    failures: list[int] = []

    def fail(*unused: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    def check(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        size = kwargs["input_ids"].numel()
        if size > tokens:
            failures.append(size)
            if len(failures) % 2 and output.last_hidden_state.requires_grad:
                output.last_hidden_state.register_hook(fail)
            else:
                fail()

    trainer.model.model.register_forward_hook(check, with_kwargs=True)
    return failures
