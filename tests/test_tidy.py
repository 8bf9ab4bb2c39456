"""Checks on the repository itself: packages, links, lengths, layers of the tree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = {
    "passel": ROOT / "src" / "passel",
    "passel.actors": ROOT / "actors",
    "passel.gateway": ROOT / "gateway",
}
LINES_MAX = 800
FUNCTION_LINES_MAX = 70


def packages_on_disk() -> set[str]:
    found: set[str] = set()
    for name, folder in HOME.items():
        for init in folder.rglob("__init__.py"):
            parts = init.parent.relative_to(folder).parts
            if name == "passel" and parts[:1] in {("actors",), ("gateway",)}:
                continue  # seen through the link
            found.add(".".join((name, *parts)))
    return found


def test_every_package_is_shipped() -> None:
    # Python 3.10 has no tomllib: the list is plain enough to be read by hand.
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^packages = \[(.*?)\]", text, re.M | re.S)
    assert listed is not None
    assert set(re.findall(r'"(passel[\w.]*)"', listed[1])) == packages_on_disk()


def test_links_point_at_the_folders() -> None:
    for name in ("actors", "gateway"):
        link = ROOT / "src" / "passel" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


def python_files() -> list[Path]:
    folders = [*HOME.values(), ROOT / "tests", ROOT / "bench"]
    return sorted({path.resolve() for folder in folders for path in folder.rglob("*.py")})


def test_functions_and_modules_stay_small() -> None:
    too_long: list[str] = []
    for path in python_files():
        source = path.read_text()
        if source.count("\n") > LINES_MAX:
            too_long.append(f"{path}: more than {LINES_MAX} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    too_long.append(f"{path}:{node.lineno}: {node.name} has {length} lines")
    assert not too_long, "\n".join(too_long)


def test_no_module_without_a_subject() -> None:
    names = {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert not [path for path in python_files() if path.name in names]


def test_ray_is_called_in_few_modules_only() -> None:
    allowed = {"handles.py", "launch.py", "metrics.py"}
    for path in (ROOT / "actors").glob("*.py"):
        source = path.read_text()
        if path.name not in allowed:
            assert not re.search(r"^\s*(import|from) ray\b|\.remote\(", source, re.M), path


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 150
