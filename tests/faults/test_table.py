"""The table of faults and the tests that inject them name each other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.fixtures.processes import ROOT

PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
LINES = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| fault |")]


def functions(folder: Path) -> Iterator[str]:
    """Give the names of the tests below a folder."""
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        yield from (node.name for node in found if node.name.startswith("test_"))


def test_each_line_of_the_table_names_tests_that_there_are() -> None:
    known = set(functions(ROOT / "tests"))
    assert len(LINES) > 30
    for line in LINES:
        named = re.findall(r"`(test_\w+)`", line.rpartition(" | ")[2])
        assert named, line
        assert set(named) <= known, line


def test_each_test_of_a_fault_is_in_the_table() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    own = set(functions(Path(__file__).parent)) - set(functions_of_this_file())
    assert own - named == set()


def functions_of_this_file() -> Iterator[str]:
    return (name for name in globals() if name.startswith("test_"))
