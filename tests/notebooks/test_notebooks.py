"""Every notebook is executed and rendered; a line says how long it took and what it drew."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RENDERED = ROOT / "build" / "notebooks"
CELL_TIMEOUT_S = 240
#: So many pictures each has at least: a notebook that draws nothing is not executed well.
PLOTS_MIN = 1
#: The sixth has a third one where it could measure.
PLOTS_MEASURED = 3


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_all_notebooks_are_here() -> None:
    names = [path.stem.partition("_")[0] for path in NOTEBOOKS]
    assert names == [f"{number:02}" for number in range(1, len(names) + 1)]
    assert len(names) >= 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_but_text_is_kept(path: Path) -> None:
    for cell in content(path)["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "clear the outputs before a commit"
            assert cell["execution_count"] is None
            assert cell["metadata"] == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_only_call(path: Path) -> None:
    words = ("def ", "class ", "while ", "import numpy", "import matplotlib", "lambda ")
    for cell in content(path)["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            assert not [word for word in words if word in source], "logic belongs to the package"
            assert source.count("\n") < 16


def test_what_ships_with_them_is_small() -> None:
    assert {path.name for path in (FOLDER / "data").iterdir()} == {"live.parquet", "scale.jsonl"}
    assert sum(path.stat().st_size for path in (FOLDER / "data").iterdir()) < 300_000


@pytest.mark.notebooks
@pytest.mark.timeout(CELL_TIMEOUT_S * 2)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    nbclient = _tool("nbclient")
    nbformat = _tool("nbformat")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(path, as_version=4)
    began = time.monotonic()
    nbclient.NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    seconds = time.monotonic() - began
    n_plots = len(pictures(notebook))
    _render(path, notebook)
    with capfd.disabled():
        print(f"\n{path.stem}: executed in {seconds:.1f} s, {n_plots} plots")
    is_measured = path.stem.startswith("06") and is_required("nydusd")
    assert n_plots >= (PLOTS_MEASURED if is_measured else PLOTS_MIN)


def is_required(name: str) -> bool:
    return name in os.environ.get("PASSEL_REQUIRE", "").split(",")


def _tool(name: str) -> Any:
    if is_required("notebooks"):
        __import__(name)
    return pytest.importorskip(name, reason="pip install 'passel[notebooks]'")


def pictures(notebook: Any) -> list[str]:
    """The PNGs in the outputs, base64."""
    return [
        output["data"]["image/png"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def _render(path: Path, notebook: Any) -> None:
    from nbconvert import HTMLExporter

    RENDERED.mkdir(parents=True, exist_ok=True)
    body, _ = HTMLExporter().from_notebook_node(notebook)
    (RENDERED / f"{path.stem}.html").write_text(body, encoding="utf-8")
