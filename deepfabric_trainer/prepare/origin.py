"""What examples were encoded with: a mark in the description of their dataset, and how others compare with it.

A dataset's description goes along with `select`, `shuffle`, `filter`, `map`, `concatenate_datasets`, `save_to_disk`
and `load_from_disk`. It is lost on the way through files of another kind, such as Parquet, and in streams: nothing is
compared then.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

_MARK = re.compile(r"encoded by deepfabric-trainer: template ([0-9a-f]{16}), (first (\d+) tokens [0-9a-f]{16})")
_SAMPLED = 512
"""Tokens of a vocabulary that are compared, at equal distances: two vocabularies hardly agree on them by chance."""
_NAMED_BY_TEMPLATES = ("bos_token", "eos_token", "unk_token")


def with_mark(dataset: Dataset, processing_class: Any, chat_template: Any = None) -> Dataset:
    """Return a dataset with a mark of what its examples were encoded with.

    Args:
        dataset (`Dataset`): The examples.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): What tokenized them.
        chat_template (`str`, *optional*): What rendered them, if it is not the processing class's own.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    template = _template_digest(processing_class, chat_template)
    mark = f"encoded by deepfabric-trainer: template {template}, {_vocabulary(tokenizer, len(tokenizer))}"
    marked = copy.copy(dataset)
    marked._info = dataset.info.copy()
    marked._info.description = "\n\n".join(filter(None, (_MARK.sub("", dataset.info.description).strip(), mark)))
    return marked


def differences(dataset: Dataset, processing_class: Any) -> list[str]:
    """Return in what a processing class differs from that which encoded a dataset: `"chat template"`, `"vocabulary"`.

    Tokens that were added since do not count. Nothing differs from what has no mark.

    Args:
        dataset (`Dataset`): Examples.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): What a trainer has, and saves with the model.
    """
    return list(dict.fromkeys(_differences(dataset.info.description or "", processing_class)))


def _differences(description: str, processing_class: Any) -> Iterator[str]:
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    for template, vocabulary, count in _MARK.findall(description):
        if template != _template_digest(processing_class, None):
            yield "chat template"
        if vocabulary != _vocabulary(tokenizer, int(count)):
            yield "vocabulary"


def _vocabulary(tokenizer: Any, count: int) -> str:
    """Return what tells a vocabulary from others by its first `count` tokens."""
    sampled = range(0, count, max(count // _SAMPLED, 1))
    known = [number for number in sampled if number < len(tokenizer)]
    return f"first {count} tokens {_digest([*zip(known, tokenizer.convert_ids_to_tokens(known), strict=True)])}"


def _template_digest(processing_class: Any, chat_template: Any) -> str:
    template = chat_template or getattr(processing_class, "chat_template", None)
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return _digest([text, *(getattr(tokenizer, name, None) for name in _NAMED_BY_TEMPLATES if name in text)])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
