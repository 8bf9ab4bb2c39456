"""passel on the hosts of a `NetLab`: the real gateways, Ray nodes and actors, and a real registry.

Everything lies in one state folder and names it, as with ``passel up``; so the same code finds and
ends it, whatever has died.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from netlab import NETWORK, Host, LabError, NetLab

from passel.cli import processes
from passel.client.exchange import fetch_json, to_socket
from passel.client.state import NodeFolder, StateFolder, read_json
from passel.client.status import peer_status
from passel.errors import PasselError
from passel.ids import BlobId, BlobKey, Digest
from passel.store.layout import MAP, Layout

PIECE_PORT = 7100
ORIGIN_PORT = 5000
GATEWAY_PORT = 65001
HEALTH_PORT = 40901
REPOSITORY = "bench/crowd"
UPSTREAM = "lab"
START_TIMEOUT_S = 90.0
_FETCHED = re.compile(
    r"^(?P<end>\S+) debug \S+ piece_fetched blob=(?P<blob>\S+) piece=(?P<piece>\d+)"
    r" parent=(?P<parent>\S+) took_s=(?P<took>[0-9.]+)$",
    re.MULTILINE,
)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the cluster."""

    name: str
    zone: str
    host: Host
    folder: NodeFolder


class NetCluster:
    """One cluster. `start`, use, `stop`; `stop` also ends what an earlier one left.

    `ray_options` are more words for ``passel.cli.raynode``, on every node, and `ray_environment` is
    all that its environment says to Ray.
    """

    def __init__(
        self,
        lab: NetLab,
        folder: Path,
        settings: dict[str, Any] | None = None,
        ray_options: Sequence[str] = (),
        ray_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.lab = lab
        self.state = StateFolder(folder)
        self.nodes: list[Node] = []
        self._settings = settings or {}
        self._ray_options = ray_options
        self._ray_environment = ray_environment or {}
        self.gcs = ""
        self._sockets = Path()
        self._origin: Host | None = None
        self._lock = None

    # --- start ----------------------------------------------------------------------------------

    def start(
        self, zones: Sequence[str], mbit: float, origin_mbit: float, trunk_mbit: float | None
    ) -> None:
        """A node per entry of `zones` (its zone); all of them answer, or LabError."""
        self._claim()
        lab = self.lab
        lab.create()
        for zone in dict.fromkeys(zones):
            lab.add_zone(zone, trunk_mbit)
        self._origin = lab.add_host("origin", "10.201.0.2", None, origin_mbit)
        for i, zone in enumerate(zones):
            name = f"n{i + 1}"
            host = lab.add_host(name, f"10.201.1.{i + 1}", zone, mbit)
            self.nodes.append(Node(name, zone, host, self.state.node(i + 1)))
        self._start_origin()
        for node in self.nodes:
            self._write_config(node)
        self._sockets = processes.make_socket_folder(self.state.path)
        self._start_node(self.nodes[0])
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(self._start_node, self.nodes[1:]))
        words = ["passel.cli.launcher", "--gcs", self.gcs]
        words += ["--config", str(self.nodes[0].folder.config)]
        self._run(self.nodes[0], words)
        deadline = time.monotonic() + START_TIMEOUT_S
        for node in self.nodes:
            self._wait_for(node, deadline)

    def _claim(self) -> None:
        """The folder is empty, and nobody else's as long as this process lives."""
        folder = self.state.path
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = self.state.lock.open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LabError(
                f"another bench runs with {folder}: wait for it, or choose another --prefix"
            ) from error
        self._end()
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def _start_origin(self) -> None:
        assert self._origin is not None
        words = [sys.executable, "-m", "passel.cli.demo.registry", "--state", str(self.state.path)]
        words += ["--host", self._origin.address, "--port", str(ORIGIN_PORT)]
        words += ["--root", str(self._registry), "--log", str(self.state.path / "origin.jsonl")]
        self._spawn(self._origin, words, self.state.path / "origin.log", dict(os.environ))
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError):
                self.lab.connect(
                    self._origin, (self._origin.address, ORIGIN_PORT), timeout_s=1.0
                ).close()
                return
            if time.monotonic() > deadline:
                raise LabError(f"the origin does not start, see {self.state.path}/origin.log")
            time.sleep(0.05)

    @property
    def fetches_whole_blobs(self) -> bool:
        """Whether what is read in part is complete on its node some time later."""
        return bool(self._settings.get("peer", {}).get("whole_blobs", True))

    @property
    def origin(self) -> tuple[str, int]:
        assert self._origin is not None
        return self._origin.address, ORIGIN_PORT

    @property
    def _registry(self) -> Path:
        return self.state.path / "registry"

    def _write_config(self, node: Node) -> None:
        address, port = self.origin
        config: dict[str, Any] = {
            "cluster": "bench",
            "upstreams": {UPSTREAM: {"api": f"http://{address}:{port}", "networks": [NETWORK]}},
            "default_upstream": UPSTREAM,
            "gateway": {
                "listen": [f"127.0.0.1:{GATEWAY_PORT}"],
                "health": [f"127.0.0.1:{HEALTH_PORT}"],
            },
        }
        config |= {key: value for key, value in self._settings.items() if key not in config}
        config["store"] = {**config.get("store", {}), "path": str(node.folder.store)}
        listen = f"{node.host.address}:{PIECE_PORT}"
        config["peer"] = {**config.get("peer", {}), "listen": listen}
        node.folder.path.mkdir(parents=True, mode=0o700)
        node.folder.config.write_text(yaml.safe_dump(config), encoding="utf-8")
        facts = {"node": node.name, "zone": node.zone}
        node.folder.facts.write_text(json.dumps(facts), encoding="utf-8")

    def _start_node(self, node: Node) -> None:
        words = [sys.executable, "-m", "passel.gateway", "--config", str(node.folder.config)]
        words += ["--state", str(self.state.path), "--node", node.name]
        self._spawn(node.host, words, node.folder.gateway_log, self._environment(node))
        labels = {"passel/node": node.name, "ray.io/availability-zone": node.zone}
        words = ["passel.cli.raynode", "--state", str(self.state.path), "--node", node.name]
        words += ["--labels", json.dumps(labels), "--sockets", str(self._sockets)]
        words += ["--incarnation", "1", "--address", node.host.address, *self._ray_options]
        if self.gcs:
            words += ["--gcs", self.gcs]
        said = self._run(node, words)
        if not self.gcs:
            self.gcs = json.loads(said.strip().splitlines()[-1])["gcs"]

    def _environment(self, node: Node) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return environment | {
            **self._ray_environment,
            "PASSEL_CONFIG": str(node.folder.config),
            "PASSEL_STATE": str(self.state.path),
            "PASSEL_NODE": node.name,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def _spawn(self, host: Host, words: list[str], log: Path, environment: dict[str, str]) -> None:
        with log.open("ab") as output:
            subprocess.Popen(
                self.lab.command(host, words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment,
            )

    def _run(self, node: Node, words: list[str]) -> str:
        log = node.folder.path / "start.log"
        with log.open("ab") as errors:
            done = subprocess.run(
                self.lab.command(node.host, [sys.executable, "-m", *words]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment(node),
                text=True,
                timeout=START_TIMEOUT_S,
                check=False,
            )
        if done.returncode != 0:
            raise LabError(f"{words[0]} fails on {node.name}, see {log}")
        return done.stdout

    def _wait_for(self, node: Node, deadline: float) -> None:
        """The node's gateway listens and its peer answers."""
        while True:
            if read_json(node.folder.gateway_note).get("pid"):
                with contextlib.suppress(PasselError):
                    if fetch_json(to_socket(node.folder.door, 2.0), "/v1/health"):
                        return
            if time.monotonic() > deadline:
                raise LabError(
                    f"{node.name} does not answer, see {node.folder.gateway_log} and the files"
                    f" worker-*.err in {self.state.ray}/session_latest/logs"
                )
            time.sleep(0.1)

    # --- blobs ----------------------------------------------------------------------------------

    def make_blob(self, size: int) -> str:
        """A new blob of random bytes at the origin; its digest."""
        folder = self._registry / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        hasher, fresh = hashlib.sha256(), folder / "new"
        with fresh.open("wb") as file:
            left = size
            while left:
                data = os.urandom(min(left, 1 << 22))
                hasher.update(data)
                file.write(data)
                left -= len(data)
        fresh.rename(folder / hasher.hexdigest())
        return f"sha256:{hasher.hexdigest()}"

    def blob_path(self, digest: str) -> Path:
        """The blob at the origin."""
        return self._registry / "blobs" / "sha256" / digest.partition(":")[2]

    def copy_path(self, node: Node, digest: str) -> Path:
        """The complete blob in a node's store."""
        return Layout(node.folder.store).blob(Digest.parse(digest))

    def map_path(self, node: Node, digest: str) -> Path:
        """The piece map of the blob while it is being fetched."""
        return Layout(node.folder.store).partial_folder(_blob_id(digest)) / MAP

    def wait_complete(self, nodes: Sequence[Node], digest: str, timeout_s: float) -> None:
        """The nodes have the whole blob, and it is the right one."""
        deadline = time.monotonic() + timeout_s
        for node in nodes:
            path = self.copy_path(node, digest)
            while not path.exists():
                if time.monotonic() > deadline:
                    raise LabError(f"{node.name} does not get to have the whole blob {digest}")
                time.sleep(0.02)
        for node in nodes:
            hasher = hashlib.sha256()
            with self.copy_path(node, digest).open("rb") as file:
                while data := file.read(1 << 22):
                    hasher.update(data)
            if f"sha256:{hasher.hexdigest()}" != digest:
                raise LabError(f"{node.name} has wrong bytes in {digest}")

    def drop_blob(self, digest: str) -> None:
        """The origin's file is gone (the nodes keep theirs until they need the room)."""
        self.blob_path(digest).unlink(missing_ok=True)

    # --- counters -------------------------------------------------------------------------------

    def origin_stats(self) -> dict[str, Any]:
        """What the origin itself counted."""
        assert self._origin is not None
        with self.lab.connect(self._origin, self.origin, timeout_s=5.0) as sock:
            request = "GET /_demo/stats HTTP/1.1\r\nHost: origin\r\nConnection: close\r\n\r\n"
            sock.sendall(request.encode())
            answer = b""
            while data := sock.recv(65536):
                answer += data
        stats: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return stats

    def status(self) -> dict[str, Any]:
        """The controller's view. Raises PeerUnavailable."""
        return peer_status(self.nodes[0].folder.store)

    def fetches(self, digest: str) -> list[dict[str, Any]]:
        """Every piece that a node got from another, from the peers' logs (level debug).

        ``at`` is the wall clock's time of the beginning.
        """
        names: dict[str, str] = {}
        pids: dict[int, str] = {}
        for node in self.nodes:
            health = fetch_json(to_socket(node.folder.door, 5.0), "/v1/health")
            names[health["peer"]], pids[health["pid"]] = node.name, node.name
        blob, found = _blob_id(digest), []
        for path in (self.state.ray / "session_latest" / "logs").glob("worker-*.err"):
            name = pids.get(int(path.stem.rpartition("-")[2]))
            for match in _FETCHED.finditer(path.read_text(encoding="utf-8")) if name else ():
                if match["blob"] == blob:
                    took_s = float(match["took"])
                    end = datetime.strptime(match["end"], "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
                    found.append(
                        {
                            "at": end - took_s,
                            "node": name,
                            "parent": names.get(match["parent"], match["parent"]),
                            "piece": int(match["piece"]),
                            "took_s": took_s,
                        }
                    )
        return found

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far, by kind of process; what has ended is not in it."""
        spent: dict[str, float] = {}
        for process in processes.find(self.state.path):
            kind = _kind(process.pid)
            seconds = _process_cpu_s(process.pid)
            spent[kind] = spent.get(kind, 0.0) + seconds
        spent["bench"] = _process_cpu_s(os.getpid())
        return spent

    # --- end ------------------------------------------------------------------------------------

    def stop(self, *, keep_logs: bool = False) -> None:
        """Nothing runs any more, and but for logs nothing is left. Idempotent."""
        if self._lock is None or self._lock.closed:
            return
        self._end()
        self.nodes.clear()
        if not keep_logs:
            shutil.rmtree(self.state.path, ignore_errors=True)
        self._lock.close()

    def _end(self) -> None:
        left = processes.end(self.state.path, grace_s=0.0)
        self.lab.destroy()
        if left:
            raise LabError(f"these processes do not end: {[process.pid for process in left]}")
        shutil.rmtree(processes.socket_folder(self.state.path), ignore_errors=True)


def _blob_id(digest: str) -> BlobId:
    return BlobKey(UPSTREAM, Digest.parse(digest)).id


def _kind(pid: int) -> str:
    argv = processes.argv_of(pid)
    first = argv[0] if argv else ""
    for mark, kind in (
        ("ray::SeedPeer", "seed"),
        ("ray::Peer", "peers"),
        ("ray::Shard", "shard"),
        ("ray::Controller", "controller"),
    ):
        if first.startswith(mark):
            return kind
    if "passel.gateway" in argv:
        return "gateways"
    if "passel.cli.demo.registry" in argv:
        return "origin"
    return "ray"


def _process_cpu_s(pid: int) -> float:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
