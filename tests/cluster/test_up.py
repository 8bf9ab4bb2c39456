"""`passel up`, `status`, `get`, `down` as a user runs them; afterwards nothing of it is left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Origin
from ray_lab import eventually

from passel.cli import processes

pytestmark = pytest.mark.cluster

PASSEL = str(Path(sys.executable).with_name("passel"))


def passel(*words: str, timeout_s: float = 150) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PASSEL, *words], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def status(state: Path) -> dict[str, Any]:
    done = passel("status", "--json", "--state", str(state))
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.fixture
def state() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pup")) / "state"
    yield path
    passel("down", "--state", str(path))
    shutil.rmtree(path.parent, ignore_errors=True)


@pytest.fixture
def config(state: Path, origin: Origin) -> Path:
    path = state.parent / "config.yaml"
    fields = {
        "upstreams": {"lab": {"api": origin.url, "networks": ["127.0.0.0/8"]}},
        "default_upstream": "lab",
        "gateway": {"listen": ["127.0.0.1:0"], "health": ["127.0.0.1:0"]},
        "store": {"capacity": "1 GiB", "reserve": "0 B"},
    }
    path.write_text(yaml.safe_dump(fields))
    return path


def listening() -> set[str]:
    """Local addresses of listening TCP sockets, from /proc/net/tcp."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {line.split()[1] for line in lines if line.split()[3] == "0A"}


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def nothing_is_left(state: Path, before: set[str]) -> None:
    assert processes.find(state) == []
    assert not (listening() - before), "a port is still open"
    assert str(state) not in mounts()
    assert not list(state.rglob("*.sock")), "a socket is still there"
    assert not processes.socket_folder(state).exists()


def test_up_status_get_down_leave_nothing(state: Path, config: Path, origin: Origin) -> None:
    before = listening()
    done = passel(
        "up", "--config", str(config), "--nodes", "4", "--zones", "2", "--state", str(state)
    )
    assert done.returncode == 0, done.stderr
    facts = status(state)
    assert [node["node"] for node in facts["nodes"]] == ["n1", "n2", "n3", "n4"]
    assert [node["zone"] for node in facts["nodes"]] == ["a", "a", "b", "b"]
    for node in facts["nodes"]:
        assert node["alive"] is True
        assert set(node["pids"]) == {"gateway", "peer", "raylet"}
        assert all(os.path.exists(f"/proc/{pid}") for pid in node["pids"].values()), node
        assert set(node["bytes"]) == {"local", "peer", "seed", "origin"}
        assert node["store"].startswith(str(state))
    assert facts["shards"][0]["pid"]
    assert facts["controller"]["pid"]
    data = os.urandom(7_000_000)
    digest = origin.put(data)
    target = state.parent / "got"
    got = passel("get", f"lab/org/app@{digest}", "-o", str(target), "--state", str(state))
    assert got.returncode == 0, got.stderr
    assert target.read_bytes() == data
    url = f"{facts['nodes'][3]['gateway']}/v2/org/app/blobs/{digest}"
    piped = subprocess.run(
        [PASSEL, "get", url, "-o", "-"], capture_output=True, timeout=60, check=True
    )
    assert hashlib.sha256(piped.stdout).hexdigest() == digest.removeprefix("sha256:")
    assert origin.sent(digest) == len(data)
    assert passel("down", "--state", str(state)).returncode == 0
    nothing_is_left(state, before)
    assert passel("down", "--state", str(state)).returncode == 0, "down is idempotent"


def test_what_up_started_is_kept_alive_and_down_works_after_a_crash(
    state: Path, config: Path
) -> None:
    before = listening()
    done = passel(
        "up", "--config", str(config), "--nodes", "2", "--zones", "2", "--state", str(state)
    )
    assert done.returncode == 0, done.stderr
    old = status(state)["nodes"]
    for kind, index in (("gateway", 1), ("peer", 1), ("raylet", 1), ("raylet", 0)):
        pid = status(state)["nodes"][index]["pids"][kind]
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()

        def is_back(kind: str = kind, index: int = index, pid: int = pid) -> bool:
            node = status(state)["nodes"][index]
            return bool(node["alive"] and node["pids"][kind] not in (None, pid))

        eventually(is_back, 15)
        print(f"{kind} of n{index + 1} answers again after {time.monotonic() - began:.1f} s")
    assert status(state)["nodes"][1]["gateway"] == old[1]["gateway"], "clients know that address"
    second = passel("up", "--nodes", "1", "--state", str(state))
    assert second.returncode == 1
    assert "runs in" in second.stderr
    os.kill(json.loads((state / "supervisor.json").read_text())["pid"], signal.SIGKILL)
    assert passel("down", "--state", str(state)).returncode == 0
    nothing_is_left(state, before)


def test_a_start_that_fails_says_why_and_leaves_nothing(state: Path, config: Path) -> None:
    before = listening()
    fields = yaml.safe_load(config.read_text())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        fields["gateway"]["listen"] = [address]
        config.write_text(yaml.safe_dump(fields))
        done = passel("up", "--config", str(config), "--nodes", "2", "--state", str(state))
        assert done.returncode == 1
        assert address in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    nothing_is_left(state, before)
    config.write_text("upstreamz: {}\n")
    done = passel("up", "--config", str(config), "--state", str(state))
    assert done.returncode == 2
    assert "upstreams" in done.stderr
    assert passel("up", "--nodes", "0", "--state", str(state)).returncode == 2
    nothing_is_left(state, before)
