"""A lab of Ray nodes with gateways in front of a real docker-registry."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cluster"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from ray_lab import Lab, eventually
from tools import DockerRegistry


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Unix sockets have short names: not under pytest's own deep folders.
    path = Path(tempfile.mkdtemp(prefix="pe2e"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def registry(folder: Path) -> Iterator[DockerRegistry]:
    registry = DockerRegistry(folder)
    yield registry
    registry.stop()


@pytest.fixture
def gateway_limits() -> dict[str, str]:
    """`gateway.limits` of the lab; a module may have its own."""
    return {}


@pytest.fixture
def scheduler() -> dict[str, str]:
    """`scheduler` of the lab; a module may have its own."""
    return {}


@pytest.fixture
def lab(
    registry: DockerRegistry, gateway_limits: dict[str, str], scheduler: dict[str, str]
) -> Iterator[Lab]:
    """Three nodes in two zones, n1 is the seed; the gateways are started by the peers."""
    path = Path(tempfile.mkdtemp(prefix="pe2l"))
    lab = Lab(path, registry.url)
    try:
        listeners = {"listen": ["127.0.0.1:0"], "health": ["127.0.0.1:0"]}
        gateway = {**listeners, "limits": gateway_limits}
        lab.start(["a", "a", "b"], {"gateway": gateway, "scheduler": scheduler})
        for node in lab.nodes.values():
            eventually(lambda n=node: gateway_of(n.folder), 30)
        yield lab
    finally:
        lab.stop()
        shutil.rmtree(path, ignore_errors=True)


def gateway_of(folder: Path) -> dict[str, Any]:
    announced: dict[str, Any] = json.loads((folder / "gateway.json").read_text())
    return announced
