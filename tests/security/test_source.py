"""What the library's own code never does, read from its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for name in ("deepfabric_trainer", "callbacks", "collators") for path in (_ROOT / name).rglob("*.py")
)
_LOADERS = ("from_pretrained", "from_config", "load_dataset", "get_class_from_dynamic_module")
_FORBIDDEN = ("eval", "exec", "compile", "__import__")
_FORBIDDEN_MODULES = ("pickle", "dill", "cloudpickle", "shelve", "joblib")
_FORBIDDEN_CALLS = ("os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load")


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def option(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(one.value) for one in call.keywords if one.arg == name), None)


def faults(tree: ast.AST) -> Iterator[str]:
    """Go over what must not be in a module."""
    for name, call in calls(tree):
        last = name.rpartition(".")[2]
        trust = option(call, "trust_remote_code")
        if last in _LOADERS and trust is not None and trust not in ("False", "trust", "args.trust_remote_code"):
            yield f"{name}(trust_remote_code={trust})"
        if name in _FORBIDDEN or name in _FORBIDDEN_CALLS:
            yield f"{name}()"
        if option(call, "shell") not in (None, "False"):
            yield f"{name}(shell=...)"
        if name == "torch.load" and option(call, "weights_only") != "True":
            yield "torch.load() of more than weights"
        if last == "Environment" and option(call, "autoescape") != "True":
            yield f"{name}() without autoescape"
    for node in ast.walk(tree):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.partition(".")[0] in _FORBIDDEN_MODULES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(_ROOT)))
def test_a_module_runs_no_code_of_others(path: Path) -> None:
    assert not list(faults(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
        "yaml.load(text)",
        "subprocess.run(command, shell=True)",
        "torch.load(path)",
        "import pickle",
        "from dill import loads",
        "jinja2.Environment()",
    ],
)
def test_what_is_looked_for_is_found(source: str) -> None:
    assert list(faults(ast.parse(source)))


def test_every_loader_was_seen() -> None:
    loaders = {name for path in FILES for name, _ in calls(ast.parse(path.read_text(encoding="utf-8")))}
    assert {"AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained", "load_dataset"} <= loaders
