"""A crowd on a real cluster to which one thing happens: what its readers got, when, and from where.

Every node's reader pulls a blob through its gateway from a registry that is slow enough for things
to happen meanwhile, compares each byte, and goes on where a read failed, as containerd does. What
left the registry is counted by the registry. The same seed has the same victims at the same bytes,
not the same race.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import bad_peers
from bad_peers import peers_may_turn_bad, set_misdeed
from faulty import Fault, FaultyOrigin
from ray_lab import Lab, eventually

MIB = 1 << 20
ORIGIN_BYTES_PER_S = 8.0 * MIB
REPOSITORY = "fault/blob"
#: Of all nodes: one seed has the lease, and there is another one.
N_SHARDS = 1
EXTRA = {"seeds": {"count": 2}, "scheduler": {"shards": N_SHARDS}}
#: For so long the registry is ill.
ILL_S = 3.0
#: So long after it is well, a refusal may still be from before.
GRACE_S = 5.0
#: After so long somebody starts a node's Ray again.
RAYLET_AWAY_S = 2.0
#: Everybody is done then, whatever happened.
DEADLINE_S = 60.0
BACK_WITHIN_S = 60.0
#: What a reader's connection waits for.
SILENCE_S = 40.0
CHUNK = 64 * 1024
Undo = Callable[[], None]


@dataclass
class Reader:
    """The client on one node."""

    node: str
    gateway: str
    path: str
    data: bytes = field(repr=False)
    at: int = 0
    n_wrong: int = 0
    #: (seconds since the crowd began, why) of every read that did not bring what it asked for.
    failures: list[tuple[float, str]] = field(default_factory=list)
    #: The longest time without a byte; the first one counts from the question.
    held_up_s: float = 0.0
    finish_s: float = float("inf")

    def run(self, began: float) -> None:
        """Read it all, in as many requests as it takes."""
        self._moved_at = began
        while self.at < len(self.data) and time.monotonic() < began + DEADLINE_S:
            try:
                self._read()
            except (OSError, http.client.HTTPException) as error:
                text = f"{type(error).__name__} behind {self.at} bytes: {error}"
                self.failures.append((time.monotonic() - began, text))
                time.sleep(0.1)
        if self.at == len(self.data):
            self.finish_s = time.monotonic() - began
        else:
            self.held_up_s = max(self.held_up_s, time.monotonic() - self._moved_at)

    def _read(self) -> None:
        host = self.gateway.partition("://")[2]
        connection = http.client.HTTPConnection(host, timeout=SILENCE_S)
        try:
            headers = {"Range": f"bytes={self.at}-"} if self.at else {}
            connection.request("GET", self.path, headers=headers)
            answer = connection.getresponse()
            if answer.status != (206 if self.at else 200):
                raise http.client.HTTPException(f"{answer.status} {answer.read(200)!r}")
            while self.at < len(self.data):
                chunk = answer.read1(CHUNK)
                if not chunk:
                    raise http.client.HTTPException("cut")
                now = time.monotonic()
                self.held_up_s = max(self.held_up_s, now - self._moved_at)
                self._moved_at = now
                right = self.data[self.at : self.at + len(chunk)]
                if chunk != right:
                    self.n_wrong += sum(a != b for a, b in zip(chunk, right, strict=True))
                self.at += len(chunk)
        finally:
            connection.close()


@dataclass(frozen=True)
class LiveFault:
    """Something that happens to a crowd.

    Attributes
    ----------
    begin : str
        The method of `FaultLab` that lets it happen; empty if only the registry falls ill.
    spare : float
        How many times the blob may leave the registry beyond once, for the reason in `why`.
    is_first : bool
        It happens before the crowd begins.
    """

    begin: str = ""
    spare: float = 0.0
    why: str = ""
    is_first: bool = False
    origin: Fault | None = None
    n_blobs: int = 1


_FLYING = "what was under way, and in the buffers on the way"
_ALONE = "one gateway, whose peer is away, reads on at the registry by itself"
_AGAIN = "what only it had is fetched again"
_LIAR = "and itself it gets nothing of what it says it has: its gateway goes to the registry"
_EACH = "no peer may go to the registry for a while, and gateways go by themselves"
FAULTS: dict[str, LiveFault] = {
    "nothing": LiveFault(),
    "two crowds": LiveFault(n_blobs=2),
    "a peer dies": LiveFault("kill_peer", 1.0, _ALONE),
    "a seed dies": LiveFault("kill_seed", 1.0, _ALONE),
    "the lease-holder dies": LiveFault("kill_lease_holder", 1.0, _ALONE),
    "a shard dies": LiveFault("kill_shard", 0.1, _FLYING),
    "the controller dies": LiveFault("kill_controller"),
    "a raylet dies": LiveFault("kill_raylet", 1.0, _ALONE),
    "a peer stops": LiveFault("stop_peer", 1.0, _ALONE),
    "a peer is slow": LiveFault("slow_peer", 0.5, _AGAIN, is_first=True),
    "a peer lies": LiveFault("lying_peer", 1.5, f"{_AGAIN}, {_LIAR}", is_first=True),
    "a peer serves wrong bytes": LiveFault("wrong_peer", 0.5, _AGAIN, is_first=True),
    "a peer serves nothing": LiveFault("failing_peer", 0.5, _AGAIN, is_first=True),
    "the origin says 429": LiveFault(spare=0.1, why=_FLYING, origin=Fault.LIMITED),
    "the origin says 503": LiveFault(spare=0.1, why=_FLYING, origin=Fault.UNAVAILABLE),
    "the origin cuts answers in half": LiveFault(spare=0.1, why=_FLYING, origin=Fault.HALVED),
    "the origin truncates": LiveFault(spare=1.0, why=_EACH, origin=Fault.CUT),
    "the origin begins late": LiveFault(origin=Fault.HANGS, is_first=True),
    "the origin hangs": LiveFault(spare=0.1, why=_FLYING, origin=Fault.HANGS),
    "the origin stops in bodies": LiveFault(spare=0.1, why=_FLYING, origin=Fault.STALLS),
    "the origin changes size": LiveFault(spare=1.0, why=_EACH, origin=Fault.GROWN),
}


@dataclass
class Crowd:
    """What became of all readers of one run."""

    name: str
    fault: LiveFault
    size: int
    readers: list[Reader]
    #: Bytes that left the registry, for all blobs.
    origin_bytes: int
    #: When the fault began and ended, in seconds since the crowd began.
    fault_s: tuple[float, float]
    victim: str

    @property
    def last_finish_s(self) -> float:
        """Infinite if somebody was not done in time."""
        return max(reader.finish_s for reader in self.readers)

    @property
    def others_finish_s(self) -> float:
        """The same without the node that the fault was about."""
        return max(reader.finish_s for reader in self.readers if reader.node != self.victim)

    @property
    def held_up(self) -> tuple[float, str]:
        """(longest time that a reader was without a byte, its node)."""
        return max((reader.held_up_s, reader.node) for reader in self.readers)

    @property
    def origin_share(self) -> float:
        """Bytes from the registry by bytes of the blobs."""
        return self.origin_bytes / (self.size * self.fault.n_blobs)

    @property
    def n_wrong(self) -> int:
        return sum(reader.n_wrong for reader in self.readers)

    @property
    def failures(self) -> list[str]:
        return [
            f"{reader.node} at {at:.2f} s: {why}"
            for reader in self.readers
            for at, why in reader.failures
        ]

    def unexcused(self) -> list[str]:
        """The failed reads that the registry could have answered."""
        begin, end = self.fault_s
        return [
            f"{reader.node} at {at:.2f} s: {why}"
            for reader in self.readers
            for at, why in reader.failures
            if self.fault.origin is None or not begin <= at <= end + GRACE_S
        ]


def _sees_its_peer(node: dict[str, Any]) -> bool:
    with urllib.request.urlopen(f"{node['health']}/metrics", timeout=5) as answer:
        return "passel_gateway_peer_up 1" in answer.read().decode()


class FaultLab:
    """Nodes in two zones, two of them seeds, and the registry; `crowd` is one run."""

    def __init__(self, folder: Path, n_nodes: int, size: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.size = size
        self.origin = FaultyOrigin(Fault.HANGS, ORIGIN_BYTES_PER_S, forgets=True)
        self.origin.well.set()
        self.lab = Lab(folder, self.origin.url)
        self.zones = {f"n{i + 1}": "ab"[i % 2] for i in range(n_nodes)}
        self.victim = ""

    def start(self) -> None:
        with peers_may_turn_bad():
            self.lab.start(list(self.zones.values()), EXTRA)
        self._await_all()

    def stop(self) -> None:
        self.lab.stop()
        self.origin.stop()

    def _await_all(self) -> list[dict[str, Any]]:
        """Until all peers, gateways and shards answer; what the controller says of the nodes.

        A gateway whose peer was stopped looks once a second whether it is there again.
        """

        def nodes() -> list[dict[str, Any]] | None:
            status = self.lab.status()
            found: list[dict[str, Any]] = status["nodes"]
            names = {node["node"] for node in found if node["alive"] and node["gateway"]}
            if names != set(self.zones) or len(status["shards"]) != N_SHARDS:
                return None
            if not all(_sees_its_peer(node) for node in found):
                return None
            return found

        answer: list[dict[str, Any]] = eventually(nodes, BACK_WITHIN_S)
        return answer

    # --- a run ----------------------------------------------------------------------------------

    def crowd(self, name: str) -> Crowd:
        """All nodes read, something happens, all is well again."""
        fault = FAULTS[name]
        self.victim = ""
        nodes = self._await_all()
        self._origin_bytes_before = {n["node"]: n["bytes"]["origin"] for n in nodes}
        blobs = {}
        for _ in range(fault.n_blobs):
            data = self.rng.randbytes(self.size)
            blobs[self.origin.add_blob(REPOSITORY, data)] = data
        readers = [
            Reader(node["node"], node["gateway"], path, data)
            for path, data in blobs.items()
            for node in nodes
        ]
        undo = None
        if fault.is_first and fault.origin is not None:
            self.origin.fall_ill(fault.origin, 0)
        elif fault.is_first:
            undo = getattr(self, fault.begin)()
        began = time.monotonic()
        threads = [threading.Thread(target=r.run, args=(began,), daemon=True) for r in readers]
        for thread in threads:
            thread.start()
        begin_s = end_s = 0.0
        try:
            if not fault.is_first:
                self._await_share(next(iter(blobs)), self.rng.uniform(0.2, 0.4))
                begin_s = time.monotonic() - began
                if fault.origin is not None:
                    self.origin.fall_ill(fault.origin, sum(self.origin.sent[p] for p in blobs))
                elif fault.begin:
                    undo = getattr(self, fault.begin)()
            if fault.origin is not None:
                self._get_well()
            end_s = time.monotonic() - began
            for thread in threads:
                thread.join(DEADLINE_S)
        finally:
            if undo is not None:
                undo()
        origin_bytes = sum(self.origin.sent[path] for path in blobs)
        crowd = Crowd(name, fault, self.size, readers, origin_bytes, (begin_s, end_s), self.victim)
        self._await_all()
        crowd.readers[0].n_wrong += self._wrong_on_disks(blobs)
        for path in blobs:
            del self.origin.files[path]
        return crowd

    def _await_share(self, path: str, share: float) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while self.origin.sent[path] < share * self.size and time.monotonic() < deadline:
            time.sleep(0.01)

    def _get_well(self) -> None:
        self.victim = "origin"
        time.sleep(ILL_S)
        self.origin.well.set()

    def _wrong_on_disks(self, blobs: dict[str, bytes]) -> int:
        """Bytes of blobs that a node calls complete and that are others."""
        n_wrong = 0
        for node in self.lab.nodes.values():
            for path in blobs:
                name = path.rpartition("sha256:")[2]
                file = node.store / "blobs" / "sha256" / name[:2] / name
                if file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() != name:
                    n_wrong += file.stat().st_size
        return n_wrong

    # --- what happens ---------------------------------------------------------------------------

    def _choose(self, role: str, but: str = "") -> dict[str, Any]:
        """A node with this role, but not that node."""
        nodes = [n for n in self.lab.status()["nodes"] if n["role"] == role and n["node"] != but]
        chosen: dict[str, Any] = self.rng.choice(nodes)
        self.victim = chosen["node"]
        return chosen

    def _lease_holder(self) -> dict[str, Any]:
        """Who has fetched most from the registry since the crowd began."""
        before = self._origin_bytes_before
        nodes: list[dict[str, Any]] = self.lab.status()["nodes"]
        return max(nodes, key=lambda node: node["bytes"]["origin"] - before[node["node"]])

    def kill_peer(self) -> None:
        os.kill(self._choose("peer")["pids"]["peer"], signal.SIGKILL)

    def kill_seed(self) -> None:
        """One that has no lease."""
        holder = self._lease_holder()["node"]
        os.kill(self._choose("seed", but=holder)["pids"]["peer"], signal.SIGKILL)

    def kill_lease_holder(self) -> None:
        holder = self._lease_holder()
        self.victim = holder["node"]
        os.kill(holder["pids"]["peer"], signal.SIGKILL)

    def kill_shard(self) -> None:
        os.kill(self.lab.status()["shards"][0]["pid"], signal.SIGKILL)

    def kill_controller(self) -> None:
        os.kill(self.lab.status()["controller"]["pid"], signal.SIGKILL)

    def kill_raylet(self) -> None:
        """The first node's would take Ray's control store along."""
        name = self._choose("peer", but="n1")["node"]
        os.kill(
            self.lab.nodes[name].ray_node.all_processes["raylet"][0].process.pid, signal.SIGKILL
        )
        time.sleep(RAYLET_AWAY_S)
        self.lab.remove(name)
        self.lab.add(name, self.zones[name], EXTRA)

    def stop_peer(self) -> Undo:
        """It does not get on until all others are done."""
        pid = self._choose("peer")["pids"]["peer"]
        os.kill(pid, signal.SIGSTOP)
        return lambda: os.kill(pid, signal.SIGCONT)

    def slow_peer(self) -> Undo:
        return self._turn_bad(bad_peers.SLOW)

    def lying_peer(self) -> Undo:
        return self._turn_bad(bad_peers.LIES)

    def wrong_peer(self) -> Undo:
        return self._turn_bad(bad_peers.WRONG)

    def failing_peer(self) -> Undo:
        return self._turn_bad(bad_peers.FAILS)

    def _turn_bad(self, misdeed: str) -> Undo:
        folder = self.lab.nodes[self._choose("peer")["node"]].folder
        set_misdeed(folder, misdeed)
        return lambda: set_misdeed(folder, "")
