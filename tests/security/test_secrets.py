"""Keys that a run is given, in whatever place, are in nothing that it writes or says."""

import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from deepfabric_trainer import DeepFabricSFTConfig, DeepFabricTrainer
from deepfabric_trainer.callbacks import MetricsLoggerCallback, SampleGenerationCallback
from tests.fixtures.failing_server import failing_server, status
from tests.fixtures.tiny import QUIET, tiny_model, tiny_tokenizer, tool_rows

KEYS = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "DEEPFABRIC_API_KEY", "AWS_SECRET_ACCESS_KEY")
TRANSFORMERS_OWN = {"training_args.bin"}
"""The pickled settings of a checkpoint, which transformers reads again."""


def canary(number: int) -> str:
    return f"canary-{number:02}-4f1d9c"


@pytest.mark.slow
def test_a_run_that_fails_keeps_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, caplog: Any
) -> None:
    for number, name in enumerate(KEYS):
        monkeypatch.setenv(name, canary(number))
    monkeypatch.setattr("sys.argv", ["train.py", "--hub_token", canary(20), f"--wandb_key={canary(21)}"])
    with failing_server(status(500)) as server, caplog.at_level(logging.DEBUG):
        monkeypatch.setenv("DEEPFABRIC_API_URL", server.url.replace("://", f"://ann:{canary(22)}@"))
        train_until_it_fails(tmp_path / "run")
    written = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path.name for path in written} >= {"report.html", "report.md", "metrics.json", "metrics.jsonl"}
    leaks = [
        (path.name, content[content.index(b"canary-") - 60 :][:90])
        for path, content in written.items()
        if b"canary-" in content
    ]
    assert [leak for leak in leaks if leak[0] not in TRANSFORMERS_OWN] == []
    said = capfd.readouterr()
    assert "canary-" not in said.out + said.err + caplog.text


def train_until_it_fails(folder: Path) -> None:
    rows = Dataset.from_list(tool_rows())
    tokenizer = tiny_tokenizer()
    options = {**QUIET, "save_strategy": "steps", "save_steps": 1, "report_to": ["tensorboard"], "max_steps": 3}
    trainer = DeepFabricTrainer(
        model=tiny_model(tokenizer),
        processing_class=tokenizer,
        args=DeepFabricSFTConfig(
            output_dir=str(folder),
            hub_token=canary(30),
            model_init_kwargs={"token": canary(31), "proxies": {"https": f"https://ann:{canary(32)}@proxy"}},
            **options,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[
            MetricsLoggerCallback(),
            SampleGenerationCallback(num_samples=2, max_new_tokens=2, every_n_steps=1),
        ],
    )

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"no answer from https://ann:{canary(40)}@host/?api_key={canary(41)} token={canary(42)}")

    steps = trainer.training_step
    trainer.training_step = lambda *args, **kwargs: fail() if trainer.state.global_step else steps(*args, **kwargs)
    with pytest.raises(RuntimeError, match="no answer"):
        trainer.train()
