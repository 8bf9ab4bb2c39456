"""nydusd mounts for tests, and what a mounted image must look like."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from conftest import gateway_of
from ray_lab import LabNode
from tools import DockerRegistry

from passel.cli.demo.nydus import Nydusd, NydusImage


class Mounts:
    """Starts nydusds whose mirror is a node's gateway; `stop` ends them all."""

    def __init__(
        self, folder: Path, image: NydusImage, registry: DockerRegistry, timeout_s: int = 5
    ) -> None:
        self.folder = folder
        self.image = image
        self.registry = registry
        self.timeout_s = timeout_s
        self.running: list[Nydusd] = []

    def on(self, node: LabNode) -> Nydusd:
        announced = gateway_of(node.folder)
        folder = self.folder / f"nydusd-{node.name}-{len(self.running)}"
        daemon = Nydusd(
            folder,
            self.image,
            self.registry.url,
            "test/nydus",
            announced["gateway"],
            announced["health"],
            timeout_s=self.timeout_s,
        )
        self.running.append(daemon)
        return daemon

    def stop(self) -> None:
        for daemon in self.running:
            daemon.stop()


def assert_identical(source: Path, daemon: Nydusd) -> None:
    diff = subprocess.run(
        ["diff", "-r", "--no-dereference", str(source), str(daemon.mount)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert diff.returncode == 0, diff.stdout[:2000] + diff.stderr[:2000]
    mounted = daemon.mount / "etc" / "os-release"
    assert os.getxattr(mounted, "user.colour") == b"green"
    assert os.readlink(daemon.mount / "etc" / "link") == "os-release"
    assert daemon.backend_metrics()["read_errors"] == 0
    assert daemon.backend_metrics()["read_count"] > 0
