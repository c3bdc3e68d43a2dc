import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import pytest
import torch

from tests.fixtures import tiny

# The models of the tests are so small that threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that `datasets` caches in, here and in processes that tests start: gone when the tests are over."""
    folder = tmp_path_factory.mktemp("datasets_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> Iterator[None]:
    """SIGINT raises `KeyboardInterrupt`, also where a shell has started the tests in the background and ignores it."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def tiny_tokenizer() -> Any:
    """A fresh byte-level tokenizer with a ChatML template that renders tools in Qwen's style."""
    return tiny.tiny_tokenizer()


@pytest.fixture
def tiny_model(tiny_tokenizer: Any) -> Any:
    """A fresh random Llama of two layers for `tiny_tokenizer`."""
    return tiny.tiny_model(tiny_tokenizer)


@pytest.fixture
def make_tiny_model(tiny_tokenizer: Any) -> Callable[..., Any]:
    """Makes random models for `tiny_tokenizer`: `make_tiny_model(family="qwen2", seed=1)`."""
    return lambda **options: tiny.tiny_model(tiny_tokenizer, **options)


@pytest.fixture
def tool_rows() -> list[dict[str, Any]]:
    """Rows of `messages` and `tools`, fresh copies."""
    return tiny.tool_rows()


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real tokenizers, one subfolder each."""
    folder = os.environ.get("DEEPFABRIC_TEST_ASSETS")
    if not folder:
        pytest.skip("DEEPFABRIC_TEST_ASSETS does not point at a folder of real tokenizers")
    return Path(folder)


@pytest.fixture
def make_sft_trainer(tiny_tokenizer: Any, tiny_model: Any, tmp_path: Path) -> Callable[..., Any]:
    """Makes plain `trl.SFTTrainer`s on the tiny model: `make_sft_trainer(rows, callbacks=[...], max_steps=2)`."""

    def make(
        rows: list[dict[str, Any]], *, callbacks: Any = (), model: Any = None, eval_dataset: Any = None, **args: Any
    ) -> Any:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        options: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "learning_rate": 1e-3,
            **tiny.QUIET,
        }
        return SFTTrainer(
            model=tiny_model if model is None else model,
            args=SFTConfig(**(options | args)),
            processing_class=tiny_tokenizer,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=eval_dataset,
            callbacks=list(callbacks),
        )

    return make
