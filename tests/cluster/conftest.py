"""A lab of Ray nodes before the demo registry."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ray_lab import Lab


class Origin:
    """The demo registry as a process of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.root = folder / "origin"
        self.log = folder / "origin.jsonl"
        command = [sys.executable, "-m", "passel.cli.demo.registry", "--root", str(self.root)]
        self.process = subprocess.Popen(
            [*command, "--log", str(self.log), *words], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def put(self, data: bytes) -> str:
        """A blob of these bytes is in the registry; its digest."""
        name = hashlib.sha256(data).hexdigest()
        folder = self.root / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return f"sha256:{name}"

    def sent(self, digest: str) -> int:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        entries = [json.loads(line) for line in lines]
        return sum(each["bytes"] for each in entries if each["path"].endswith(digest))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Unix sockets have short names: not under pytest's own deep folders.
    path = Path(tempfile.mkdtemp(prefix="pclu"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def origin(folder: Path) -> Iterator[Origin]:
    origin = Origin(folder)
    yield origin
    origin.stop()


@pytest.fixture(scope="module")
def lab(folder: Path, origin: Origin) -> Iterator[Lab]:
    lab = Lab(folder / "lab", origin.url)
    try:
        lab.start(["a", "b", "a"])
        yield lab
    finally:
        lab.stop()


@pytest.fixture
def blob(origin: Origin) -> tuple[bytes, str]:
    data = os.urandom(20 * 1024 * 1024 + 4321)
    return data, origin.put(data)
