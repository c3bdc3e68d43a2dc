"""Do the tests of seams see what they must: every private name that we use, and a seam that moves?"""

import ast
import importlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers.utils import chat_template_utils
from trl import SFTTrainer

from deepfabric_trainer import DeepFabricTrainer
from tests.contract.seams import test_accelerate, test_datasets, test_transformers_models, test_trl
from tests.contract.seams.seam import PRIVATE, ROOT, Seam, SeamMovedError

SOURCES = [
    path for folder in ("callbacks", "collators", "deepfabric_trainer") for path in (ROOT / folder).rglob("*.py")
]
PYTHONS = {"_exit", "_replace", "_value_", "_fields", "_asdict"}
"""Of `os`, named tuples and enums, which are public in all but the underscore."""
READERS = ("getattr", "hasattr", "setattr")


def private_names(tree: ast.AST) -> Iterator[str]:
    """Go over the names with an underscore that a module takes from somewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in READERS:
            yield from (argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant))
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("deepfabric_trainer"):
            yield from (alias.name for alias in node.names)


def own_names(tree: ast.AST) -> Iterator[str]:
    """Go over the names that a module defines or gives to its own objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node.value):
            yield node.attr


def of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


def test_every_private_name_of_others_has_a_test() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"tests.contract.seams.{path.stem}")
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    own = {name for tree in trees.values() for name in own_names(tree)}
    inherited = {name for kind in SFTTrainer.__mro__ for name in vars(kind)}
    used = {
        path: {name for name in private_names(tree) if is_private(name) and name not in PYTHONS}
        for path, tree in trees.items()
    }
    of_trainer = {kind.__module__.replace(".", "/") + ".py" for kind in DeepFabricTrainer.__mro__}
    of_others = {
        name
        for path, names in used.items()
        for name in names
        if name not in own or (path in of_trainer and name in inherited)
    }
    covered = set().union(*PRIVATE.values())
    assert of_others - covered == set()
    assert covered - set().union(*used.values()) == set(), "a test for a name that nobody uses any more"


def test_the_message_names_library_version_seam_and_file() -> None:
    @Seam("trl", "a thing", "deepfabric_trainer/trainer.py")
    def moved() -> None:
        raise AttributeError("no such thing")

    expected = rf"trl {version('trl')}: a thing has moved; deepfabric_trainer/trainer.py depends on it .*no such thing"
    with pytest.raises(SeamMovedError, match=expected):
        moved()


def test_a_skipped_test_stays_skipped() -> None:
    with pytest.raises(pytest.skip.Exception), Seam("trl", "a thing"):
        pytest.skip("not here")


def test_a_seam_without_its_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no such file: gone\.py"):
        Seam("trl", "a thing", "gone.py")


def test_private_functions_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(chat_template_utils, "_cached_compile_jinja_template")
    with pytest.raises(SeamMovedError, match=r"_cached_compile_jinja_template.*has moved; .*template/bounded.py"):
        test_transformers_models.test_compiled_templates()


def test_an_attribute_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    init = Dataset.__init__

    def without(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        del self._indices

    monkeypatch.setattr(Dataset, "__init__", without)
    with pytest.raises(SeamMovedError, match=r"_indices.*has moved; .*grouping/keys.py"):
        test_datasets.test_indices()


def test_a_preparation_that_comes_too_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Any) -> None:
    monkeypatch.setattr(SFTTrainer, "evaluate", lambda self, *args, **kwargs: {})
    with pytest.raises(SeamMovedError, match=r"_prepare_dataset, .*has moved; deepfabric_trainer/trainer.py"):
        test_trl.test_preparation(make)


def test_a_constructor_with_another_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SFTTrainer, "__init__", lambda self, model, args, tokenizer: None)
    with pytest.raises(SeamMovedError, match="the arguments of SFTTrainer has moved"):
        test_trl.test_the_constructor()


def test_a_memory_error_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_accelerate, "should_reduce_batch_size", lambda error: False)
    with pytest.raises(SeamMovedError, match=r"accelerate .*should_reduce_batch_size.*steps.py"):
        test_accelerate.test_memory()


make = test_trl.make
