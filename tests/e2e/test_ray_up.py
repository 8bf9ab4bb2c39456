"""The real `ray up` brings passel up on several hosts, and keeps it up; `ray down` ends it.

The cluster file is the one that users start from, with this lab's addresses in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import Host, Network, run, shell_quoted
from ray_lab import eventually
from tools import DockerRegistry, need, need_ray_default

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = "http://127.0.0.1:65001"
OURS = ("passel.gateway", "ray::Peer", "ray::SeedPeer", "ray::Shard", "ray::Controller")
NODE = "passel node {} --config ~/passel/passel.yaml"


class RayHosts:
    """The hosts, the registry outside of them, and the cluster file that the operator edits."""

    def __init__(self, folder: Path, network: Network, registry: DockerRegistry) -> None:
        self.folder = folder
        self.network = network
        self.registry = registry
        self._build_wheel()
        (folder / "passel.yaml").write_text(yaml.safe_dump(self._configuration()))
        self.file = folder / "cluster.yaml"
        #: The operator's laptop: it has Ray's launcher and nothing of the cluster.
        self.laptop = self.network.host("laptop", 9)
        self.head = self.network.host("head-a0", 10)
        self.workers: dict[str, Host] = {}

    def _build_wheel(self) -> None:
        run(
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--outdir",
            str(self.folder / "dist"),
            str(ROOT),
        )

    def _configuration(self) -> dict[str, Any]:
        settings: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "fleet.yaml").read_text())
        settings["upstreams"] = {
            "lab": {"api": self.registry.url, "networks": [f"{self.network.address}/32"]}
        }
        settings["default_upstream"] = "lab"
        settings["store"] |= {"capacity": "1 GiB", "reserve": "0 B"}
        return settings

    def add_worker(self, name: str, number: int) -> Host:
        self.workers[name] = self.network.host(name, number)
        return self.workers[name]

    def write_cluster_file(self, min_workers: int) -> None:
        cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        cluster["provider"]["head_ip"] = self.head.address
        cluster["provider"]["worker_ips"] = [host.address for host in self.workers.values()]
        cluster["min_workers"] = min_workers
        cluster["auth"]["ssh_private_key"] = str(self.network.key)
        cluster["file_mounts"]["~/passel/wheel"] = str(self.folder / "dist")
        cluster["file_mounts"]["~/passel/passel.yaml"] = str(self.folder / "passel.yaml")
        self.file.write_text(yaml.safe_dump(cluster, sort_keys=False, width=1000))

    def ray(self, *words: str, timeout_s: float = 120) -> str:
        """What the operator types: `ray up`, `ray down`."""
        command = " ".join(["ray", words[0], "-y", *words[1:], str(self.file)])
        done = self.laptop.run(command, timeout_s=timeout_s)
        return done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        done = self.head.run(f"{NODE.format('status')} --json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {"nodes": []}

    def alive(self) -> set[str]:
        return {node["node"] for node in self.status()["nodes"] if node["alive"]}

    def push(self, n_bytes: int) -> str:
        """The digest of a new blob in the registry."""
        data = os.urandom(n_bytes)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        path = self.folder / "blob"
        path.write_bytes(data)
        self.registry.push_blob("org/app", path, digest)
        return digest


def pull(host: Host, digest: str) -> bool:
    """A client on the host reads a blob through the host's gateway, whole and right."""
    url = f"{GATEWAY}/v2/org/app/blobs/{digest}"
    done = host.run(f"set -o pipefail; curl -sSf {url} | sha256sum")
    return done.stdout.split(" ")[0] == digest.removeprefix("sha256:")


@pytest.fixture
def cluster() -> Iterator[RayHosts]:
    need("docker-registry")
    need_ray_default()
    # Not under /tmp: every host has its own.
    folder = Path(tempfile.mkdtemp(prefix="pray", dir="/var/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network = Network(folder)
        stack.callback(network.remove)
        registry = DockerRegistry(folder, host=network.address)
        stack.callback(registry.stop)
        yield RayHosts(folder, network, registry)


def test_a_cluster_from_its_file_to_its_end(cluster: RayHosts) -> None:
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}")

    def until_alive(*names: str, timeout_s: float) -> None:
        eventually(lambda: cluster.alive() == set(names), timeout_s, 0.5)

    for name, number in (("host-a1", 11), ("host-b1", 12), ("host-b2", 13)):
        cluster.add_worker(name, number)
    a1, b1, b2 = cluster.workers.values()

    cluster.write_cluster_file(min_workers=2)
    cluster.ray("up")
    say("ray up has returned")
    until_alive("head-a0", "host-a1", "host-b1", timeout_s=120)
    say("head and two workers have their peers")
    zones = {node["node"]: node["zone"] for node in cluster.status()["nodes"]}
    assert zones == {"head-a0": "a", "host-a1": "a", "host-b1": "b"}

    size = 48 << 20
    old = cluster.push(size)
    for host in (a1, b1, cluster.head):
        assert pull(host, old), host.name
    assert cluster.registry.blob_bytes(old) == size
    say("three hosts have a blob, the registry has sent it once")

    # What the autoscaler adds gets its gateway and its peer by itself.
    cluster.write_cluster_file(min_workers=3)
    cluster.ray("up", "--no-restart")
    until_alive("head-a0", "host-a1", "host-b1", "host-b2", timeout_s=120)
    assert pull(b2, old)
    assert cluster.registry.blob_bytes(old) == size
    say("a node was added, and has the blob from the others")

    a1.power_off()
    assert pull(b1, cluster.push(size // 4))
    until_alive("head-a0", "host-b1", "host-b2", timeout_s=120)
    say("a node was killed, and is forgotten")

    gateways = {host.name: gateway_pid(host) for host in (b1, b2)}
    cluster.head.power_off()
    assert pull(b1, old), "from the store"
    assert pull(b2, cluster.push(size // 4)), "from the peer, or past it from the registry"
    cluster.head.boot()
    cluster.ray("up")
    returned = time.monotonic()
    until_alive("head-a0", "host-b1", "host-b2", timeout_s=120)
    say(f"the head is new; all was back {time.monotonic() - returned:.1f} s after ray up")
    assert {host.name: gateway_pid(host) for host in (b1, b2)} == gateways
    new = cluster.push(size)
    for host in (b1, b2, cluster.head):
        assert pull(host, new), host.name
    assert cluster.registry.blob_bytes(new) == size
    before = cluster.registry.blob_bytes(old)
    assert pull(cluster.head, old), "its disk has survived"
    assert cluster.registry.blob_bytes(old) == before

    hosts = (cluster.head, b1, b2)
    command = shell_quoted(f"{NODE.format('stop')} --all")
    cluster.laptop.run(f"ray exec {cluster.file} {command}", timeout_s=120)
    assert not [line for host in hosts for line in host.processes(*OURS)]
    say("passel has ended on all nodes")
    cluster.ray("down")
    # `ray down` ends the head of hosts that Ray did not create; workers notice that it is gone.
    eventually(
        lambda: not any(host.processes("raylet/raylet", "gcs_server/") for host in hosts), 90, 2
    )
    say("after ray down nothing of it runs")


def gateway_pid(host: Host) -> int:
    note = json.loads((host.folder / "var" / "lib" / "passel" / "gateway.json").read_text())
    pid: int = note["pid"]
    return pid
