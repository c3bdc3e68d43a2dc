"""Where prepared rows are kept, and under which name: the name holds everything that their tokens depend on."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.fingerprint import Hasher, generate_random_fingerprint, get_temporary_cache_files_directory

import deepfabric_trainer
from deepfabric_trainer.encode import ConversationEncoder

_LIBRARIES = ("transformers", "tokenizers", "jinja2", "jsonschema")
"""Of which another version may render, tokenize or judge otherwise."""
_TOKENIZER_SETTINGS = ("split_special_tokens", "special_tokens_map", "chat_template")


def fingerprint_of(dataset: Dataset, encoder: ConversationEncoder, *, check: bool) -> str:
    """Return a name for what preparation makes of a dataset, the same in every process that asks for the same.

    It changes with the rows, the encoder's settings, the tokenizer, the chat template, and the code that prepares.
    What the encoder has learned so far does not count. Where nothing is cached it is a random name.
    """
    if not datasets.is_caching_enabled():
        return str(generate_random_fingerprint())
    parts = (
        dataset._fingerprint,
        dataset.format["type"],
        check,
        _settings(encoder),
        _tokenizer_state(encoder.tokenizer),
        [type(encoder.processing_class).__qualname__, getattr(encoder.processing_class, "chat_template", None)],
        _code(),
    )
    return str(Hasher.hash(repr(parts)))


def cache_file_for(dataset: Dataset, fingerprint: str) -> str | None:
    """Return the file for the prepared rows of a dataset that is in memory; `datasets` has one for all others.

    Without a file they would be held in memory, and each process of a run would prepare them anew.
    """
    if dataset.cache_files:
        return None
    if not datasets.is_caching_enabled():
        return str(Path(get_temporary_cache_files_directory()) / f"cache-{fingerprint}.arrow")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "deepfabric_trainer"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(folder / f"cache-{fingerprint}.arrow")


def _settings(encoder: ConversationEncoder) -> dict[str, Any]:
    state = encoder.__getstate__()
    return {name: value for name, value in sorted(state.items()) if name not in ("processing_class", "tokenizer")}


def _tokenizer_state(tokenizer: Any) -> list[Any]:
    # Padding and truncation stand at the beginning; they change with each call and mean nothing here.
    text = tokenizer.backend_tokenizer.to_str()
    _, _, content = text.partition('"added_tokens"')
    digest = hashlib.sha256((content or text).encode()).hexdigest()
    settings = [(name, getattr(tokenizer, name, None)) for name in _TOKENIZER_SETTINGS]
    return [type(tokenizer).__qualname__, digest, settings]


@cache
def _code() -> list[str]:
    """Return what tells this code from other versions of it, whatever they call themselves."""
    folder = Path(deepfabric_trainer.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return [digest.hexdigest(), *(f"{name} {version(name)}" for name in _LIBRARIES)]
