"""Two processes that share the weights train and generate as one does."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.fixtures.fsdp_run import NAME, generated, make_callbacks
from tests.fixtures.parity_run import make_trainer, outcome, rows_of, sums_of
from tests.fixtures.processes import run_processes


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of both runs."""
    folder = tmp_path_factory.mktemp("fsdp")
    run_processes("tests.fixtures.fsdp_run", str(folder))
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds."""
    callbacks = make_callbacks()
    trainer = make_trainer(NAME, tmp_path_factory.mktemp("alone"), rows_of(NAME), 1, callbacks)
    return {**outcome(trainer), "generated": generated(callbacks)}


@pytest.mark.slow
@pytest.mark.parametrize(("version", "kind"), [("1", "FullyShardedDataParallel"), ("2", "FSDPLlamaForCausalLM")])
def test_spread_weights_learn_and_generate_as_whole_ones(
    version: str, kind: str, folder_of_two: Path, alone: dict[str, Any]
) -> None:
    first, second = (json.loads((folder_of_two / f"{version}.{process}.json").read_text()) for process in (0, 1))
    assert first["kind"] == second["kind"] == kind
    assert first["steps"] == [pytest.approx(step, rel=1e-4) for step in alone["steps"]]
    assert first["generated"] == second["generated"]
    for of_two, of_one in zip(first["generated"], alone["generated"], strict=True):
        assert [result["step"] for result in of_two] == [result["step"] for result in of_one]
        assert [result["samples"] for result in of_two] == [result["samples"] for result in of_one]
        assert [result["replays"] for result in of_two] == [result["replays"] for result in of_one]
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-5)


@pytest.mark.slow
def test_spread_weights_are_saved_whole(folder_of_two: Path, alone: dict[str, Any]) -> None:
    saved = AutoModelForCausalLM.from_pretrained(folder_of_two / "model")
    assert sums_of(saved) == pytest.approx(alone["weights"], rel=1e-5)
