"""A Ray cluster on this machine for tests: nodes with labels, folders and configurations."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.cluster_utils import Cluster

from passel.actors import launch
from passel.actors.handles import end_actor
from passel.actors.words import NAMESPACE, controller_name, peer_name, shard_name
from passel.config.load import load

READY_S = 60.0


def eventually(what: Callable[[], Any], timeout_s: float = 20.0, every_s: float = 0.1) -> Any:
    """Wait until `what` gives something true; AssertionError with its last answer otherwise."""
    deadline = time.monotonic() + timeout_s
    answer: Any = None
    while time.monotonic() < deadline:
        try:
            answer = what()
        except (OSError, http.client.HTTPException, KeyError, IndexError) as error:
            answer = None
            last: object = error
        else:
            last = answer
        if answer:
            return answer
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s} s; last: {last!r}")


class DoorClient(http.client.HTTPConnection):
    """HTTP over a node's peer.sock."""

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        super().__init__("peer", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class LabNode:
    """One Ray node of the lab and its folder."""

    def __init__(self, name: str, folder: Path, ray_node: Any) -> None:
        self.name = name
        self.folder = folder
        self.ray_node = ray_node

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 30.0) -> Any:
        client = DoorClient(self.store / "peer.sock", timeout_s)
        try:
            data = json.dumps(body) if body is not None else None
            client.request(method, path, data, {"Content-Type": "application/json"})
            answer = client.getresponse()
            text = answer.read()
            if answer.getheader("Content-Type", "").startswith("application/x-ndjson"):
                return [json.loads(line) for line in text.splitlines()]
            return json.loads(text)
        finally:
            client.close()

    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = self.ask("GET", "/v1/health", timeout_s=2)
        return health

    def ensure(
        self, repository: str, digest: str, start: int = 0, stop: int | None = None, **more: Any
    ) -> list[dict[str, Any]]:
        body = {
            "upstream": "lab",
            "repository": repository,
            "digest": digest,
            "start": start,
            "stop": stop,
            **more,
        }
        lines: list[dict[str, Any]] = self.ask("POST", "/v1/ensure", body)
        return lines

    def kill_peer(self) -> int:
        pid: int = self.health()["pid"]
        os.kill(pid, signal.SIGKILL)
        return pid


class Lab:
    """Several Ray nodes, a controller, peers and one shard; no gateways.

    `origin` is the upstream "lab" of all nodes; with "" they have what `extra` says.
    """

    def __init__(self, folder: Path, origin: str) -> None:
        self.folder = folder
        self.origin = origin
        self.nodes: dict[str, LabNode] = {}
        self.cluster: Cluster | None = None

    def start(self, zones: list[str], extra: dict[str, Any] | None = None) -> None:
        for i, zone in enumerate(zones):
            self.add(f"n{i + 1}", zone, extra)
        assert self.cluster is not None
        ray.init(address=self.cluster.address, namespace=NAMESPACE, log_to_driver=False)
        launch.start(load(self.nodes["n1"].folder / "passel.yaml"))
        for node in self.nodes.values():
            eventually(node.health, READY_S)

    def add(self, name: str, zone: str, extra: dict[str, Any] | None = None) -> LabNode:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)  # a node that comes back has its disk
        config: dict[str, Any] = {
            "upstreams": {},
            "store": {"path": str(folder / "store"), "capacity": "1 GiB", "reserve": "0 B"},
            "peer": {"listen": "127.0.0.1:0"},
            "gateway": {"listen": ["127.0.0.1:0"], "health": ["127.0.0.1:0"]},
        }
        if self.origin:
            config["upstreams"] = {"lab": {"api": self.origin, "networks": ["127.0.0.0/8"]}}
            config["default_upstream"] = "lab"
        for section, value in (extra or {}).items():
            known = config.get(section)
            config[section] = {**known, **value} if isinstance(known, dict) else value
        (folder / "passel.yaml").write_text(yaml.safe_dump(config))
        options: dict[str, Any] = {
            "num_cpus": 1,
            "object_store_memory": 80 * 1024 * 1024,
            "labels": {"passel/node": name, "ray.io/availability-zone": zone},
            "env_vars": {"PASSEL_CONFIG": str(folder / "passel.yaml"), "PASSEL_NODE": name},
        }
        if self.cluster is None:
            self.cluster = Cluster(
                initialize_head=True, head_node_args={**options, "include_dashboard": False}
            )
            ray_node = self.cluster.head_node
        else:
            ray_node = self.cluster.add_node(wait=True, **options)
        node = self.nodes[name] = LabNode(name, folder, ray_node)
        return node

    def remove(self, name: str, *, is_graceful: bool = False) -> None:
        assert self.cluster is not None
        self.cluster.remove_node(self.nodes.pop(name).ray_node, allow_graceful=is_graceful)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = next(iter(self.nodes.values())).ask("GET", "/v1/status")
        return status

    def passel(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command line on the first node."""
        program = Path(sys.executable).with_name("passel")
        config = self.nodes["n1"].folder / "passel.yaml"
        return subprocess.run(
            [program, *words, "--config", config],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def stop(self) -> None:
        if ray.is_initialized():
            for node in ray.nodes():
                end_actor(peer_name(node["NodeID"]))
            end_actor(controller_name())
            end_actor(shard_name(0))
            ray.shutdown()
        if self.cluster is not None:
            self.cluster.shutdown()
        for node in self.nodes.values():
            announced = node.folder / "gateway.json"
            if announced.exists():
                try:
                    os.kill(json.loads(announced.read_text())["pid"], signal.SIGTERM)
                except (ProcessLookupError, ValueError, KeyError):
                    continue


@contextmanager
def lab_with_gateways(
    origin: str, zones: list[str], extra: dict[str, Any] | None = None
) -> Iterator[Lab]:
    """A lab of its own, whose nodes' gateways all answer; nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="plab", ignore_cleanup_errors=True) as folder:
        lab = Lab(Path(folder), origin)
        try:
            lab.start(zones, extra)
            for node in lab.nodes.values():
                eventually(lambda n=node: (n.folder / "gateway.json").exists(), 30)
            yield lab
        finally:
            lab.stop()
