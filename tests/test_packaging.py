import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import deepfabric_trainer

ROOT = Path(__file__).parent.parent


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    """A nested package that is missing from the list is dropped from the wheel without a word."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [
        path.parent.relative_to(ROOT)
        for top in ("deepfabric_trainer", "callbacks", "collators")
        for path in (ROOT / top).rglob("__init__.py")
    ]
    names = {
        ".".join(folder.parts if folder.parts[0] == "deepfabric_trainer" else ("deepfabric_trainer", *folder.parts))
        for folder in folders
    }
    assert set(listed) == names
    assert len(listed) == len(set(listed))


def test_every_file_that_is_no_module_is_in_the_wheel() -> None:
    """A page's template that is missing from the list is missed only where the wheel is installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = {(package, name) for package, names in settings["package-data"].items() for name in names}
    there = {
        (package, path.name)
        for package in settings["packages"]
        for path in ROOT.joinpath(*package.split(".")).iterdir()
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert there == listed


@pytest.mark.parametrize("name", ["callbacks", "collators"])
def test_the_links_are_relative_and_the_top_level_names_are_refused(name: str) -> None:
    assert (ROOT / "deepfabric_trainer" / name).readlink() == Path("..") / name
    run = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert f"ImportError: import `deepfabric_trainer.{name}`" in run.stderr


def test_every_public_name_can_be_imported() -> None:
    for name in deepfabric_trainer.__all__:
        assert getattr(deepfabric_trainer, name).__name__ == name
    assert sorted(deepfabric_trainer.__all__) == deepfabric_trainer.__all__
    assert set(deepfabric_trainer.__all__) <= set(dir(deepfabric_trainer))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = deepfabric_trainer.nothing


def test_importing_the_package_imports_nothing_heavy() -> None:
    """The budget is 0.2 s beyond `import trl`; what costs more is torch, transformers, datasets, and so on."""
    heavy = ["torch", "transformers", "trl", "datasets", "rich", "jsonschema"]
    code = f"import sys, deepfabric_trainer; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_wheel_imports_outside_the_checkout(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "deepfabric_trainer",
        f"deepfabric_trainer-{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}.dist-info",
    }
    assert "deepfabric_trainer/py.typed" in names
    venv.create(tmp_path / "venv", system_site_packages=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text(
        str(next(Path(path) for path in sys.path if path.endswith("site-packages")))
    )
    code = (
        "import deepfabric_trainer as d, deepfabric_trainer.callbacks, deepfabric_trainer.collators, sys; "
        "d.DeepFabricTrainer; print(d.__file__)"
    )
    python = tmp_path / "venv" / "bin" / "python"
    run = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(site / "deepfabric_trainer" / "__init__.py")
