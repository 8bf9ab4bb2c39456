"""A day of a cluster's life in minutes: whatever happens, every byte that is read is right.

A seeded schedule of events runs against a real cluster on this machine, while readers on every node
compare all that they get with what the registry has. A read that fails is a finding, unless what it
needed had been taken away on purpose: the node's own gateway, or the registry for a blob that the
node does not hold. At the end everything must settle.
"""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from ray_lab import Lab, eventually
from soak_load import MIB, Diary, Population, Reader, Reads, Registry, ping
from soak_watch import Sampler, processes

PASSEL = str(Path(sys.executable).with_name("passel"))
CAPACITY = 40 * MIB
BLOB_MAX = 12 * MIB
BLOBS = 24
#: The registry sends so much to all: transfers take long enough to be cut.
REGISTRY = ("--rate", "48 MiB", "--latency", "5 ms")
#: What is promised is 10 s; the machine is busy, and five nodes share it.
BACK_WITHIN_S = 40.0
ADMIN_PATIENCE_S = 45.0
SETTLE_S = 60.0
PINNED_MAX = 2
EVENTS = {
    "kill_gateway": 3,
    "kill_peer": 4,
    "kill_seed": 2,
    "kill_shard": 2,
    "kill_controller": 2,
    "kill_raylet": 2,
    "leave": 2,
    "join": 3,
    "upgrade": 1,
    "preheat": 3,
    "pin": 2,
    "unpin": 2,
    "remove": 2,
    "apply": 2,
    "rotate": 1,
    "fill": 2,
    "outage": 2,
    "renew": 4,
}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Soak:
    """The cluster, its registry and its readers; `run` lets a day pass."""

    def __init__(self, folder: Path, n_nodes: int, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.diary = Diary()
        self.reads = Reads()
        self.registry = Registry(folder, random.Random(seed + 1), *REGISTRY)
        self.population = Population(self.registry, BLOBS)
        self.lab = Lab(folder / "lab", self.registry.url)
        self.zones = {f"n{i + 1}": "ab"[i % 2] for i in range(n_nodes)}
        self.ports = {name: free_port() for name in self.zones}
        self.sampler = Sampler(self.lab.folder, self.diary, CAPACITY, BLOB_MAX)
        self.readers: dict[str, list[Reader]] = {}
        self.pins: list[str] = []
        #: Nodes that are no part of the cluster now, and what ends their trouble.
        self.away: dict[str, Callable[[], None]] = {}
        self._waiting: list[threading.Thread] = []

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        first, *others = self.zones
        self.lab.start([self.zones[first]], self._extra(first))
        for name in others:
            self.lab.add(name, self.zones[name], self._extra(name))
        for name in self.zones:
            self._await_node(name, 90)
            self._read_on(name)
        self.diary.began = time.monotonic()
        self.sampler.start()

    def run(self, seconds: float) -> dict[str, Any]:
        """The report. Whatever is in its `findings` should not have been."""
        names, weights = list(EVENTS), list(EVENTS.values())
        while self.diary.now() < seconds:
            name = self.rng.choices(names, weights)[0]
            getattr(self, name)()
            time.sleep(self.rng.uniform(0.5, 4.0))
        self.settle()
        return self.report()

    def stop(self) -> None:
        self.sampler.stop()
        for name in list(self.readers):
            self._stop_reading(name)
        ours = processes(self.lab.folder)
        self.lab.stop()
        self.registry.stop()
        for process in ours:
            if process.role == "gateway":
                _signal(process.pid, signal.SIGKILL)

    def _extra(self, name: str) -> dict[str, Any]:
        return {
            "gateway": {"listen": [f"127.0.0.1:{self.ports[name]}"]},
            "store": {"capacity": f"{CAPACITY} B"},
            "upstreams": self._upstreams(60),
        }

    def _upstreams(self, ttl_s: int) -> dict[str, Any]:
        lab = {"api": self.registry.url, "networks": ["127.0.0.0/8"], "tag_ttl": f"{ttl_s} s"}
        # What a node holds is served while the registry is away: only then a failure is ours.
        return {"lab": {**lab, "when_origin_down": "serve"}}

    def _await_node(self, name: str, timeout_s: float = BACK_WITHIN_S) -> None:
        def is_there() -> bool:
            return bool(self.lab.nodes[name].health()) and ping(self.ports[name])

        try:
            eventually(is_there, timeout_s)
        except AssertionError as error:
            self.diary.finding(f"{name} does not answer after {timeout_s:g} s: {error}")

    def _read_on(self, name: str) -> None:
        self.readers[name] = [
            Reader(
                name,
                self.lab.folder / name / "store",
                self.ports[name],
                self.population,
                self.diary,
                self.reads,
                random.Random(self.rng.random()),
                is_ranged=is_ranged,
            )
            for is_ranged in (False, True)
        ]
        for reader in self.readers[name]:
            reader.start()

    def _stop_reading(self, name: str) -> None:
        readers = self.readers.pop(name)
        for reader in readers:
            reader.stop()
        for reader in readers:
            reader.join(60)

    def _later(self, what: Callable[[], None]) -> None:
        thread = threading.Thread(target=what, daemon=True)
        thread.start()
        self._waiting = [each for each in self._waiting if each.is_alive()] + [thread]

    # --- kills ----------------------------------------------------------------------------------

    def kill_gateway(self) -> None:
        self._end_gateway(self.rng.choice(sorted(self.lab.nodes)), signal.SIGKILL)

    def kill_peer(self) -> None:
        self._kill("peer")

    def kill_seed(self) -> None:
        self._kill("seed")

    def kill_shard(self) -> None:
        self._kill("shard")

    def kill_controller(self) -> None:
        self._kill("controller")

    def _kill(self, role: str) -> None:
        found = [each for each in processes(self.lab.folder) if each.role == role]
        if found:
            chosen = self.rng.choice(sorted(found, key=lambda each: each.node))
            self.diary.event(f"kill_{role}", node=chosen.node, pid=chosen.pid)
            _signal(chosen.pid, signal.SIGKILL)

    def _end_gateway(self, name: str, number: signal.Signals) -> None:
        """The node's reads are excused until a gateway answers again: its peer starts one."""
        found = [
            each
            for each in processes(self.lab.folder)
            if (each.role, each.node) == ("gateway", name)
        ]
        self.diary.event("end_gateway", node=name, signal=number.name)
        is_over = self.diary.trouble(name)
        for each in found:
            _signal(each.pid, number)
        gone = {each.pid for each in found}

        def await_it() -> None:
            began = self.diary.now()
            while self.diary.now() < began + BACK_WITHIN_S:
                now = {p.pid for p in processes(self.lab.folder) if p.role == "gateway"}
                if name in self.away or (not gone & now and ping(self.ports[name])):
                    break
                time.sleep(0.2)
            else:
                self.diary.finding(f"no gateway on {name} after {BACK_WITHIN_S:g} s")
            is_over()

        self._later(await_it)

    def kill_raylet(self) -> None:
        """The gateway stays, and must answer all the time; somebody starts the node again."""
        name = self._guest()
        if name is None:
            return
        pid = self.lab.nodes[name].ray_node.all_processes["raylet"][0].process.pid
        self.diary.event("kill_raylet", node=name, pid=pid)
        _signal(pid, signal.SIGKILL)
        time.sleep(self.rng.uniform(0.5, 3.0))
        self.lab.remove(name)
        self.lab.add(name, self.zones[name], self._extra(name))
        self._await_node(name)

    # --- nodes ----------------------------------------------------------------------------------

    def _guest(self) -> str | None:
        """A node that may go: the first has Ray's control store, and three stay."""
        present = sorted(set(self.lab.nodes) - {"n1"})
        return self.rng.choice(present) if len(present) > 2 else None

    def leave(self) -> None:
        name = self._guest()
        if name is None:
            return
        is_graceful = self.rng.random() < 0.5
        self.diary.event("leave", node=name, graceful=is_graceful)
        if is_graceful:
            self._stop_reading(name)
        self.away[name] = self.diary.trouble(name)
        ours = [each for each in processes(self.lab.folder) if each.node == name]
        gateways = [each.pid for each in ours if each.role == "gateway"]
        if is_graceful:
            self.lab.remove(name, is_graceful=True)
        else:
            for each in ours:
                _signal(each.pid, signal.SIGKILL)
            self.lab.remove(name)
        for pid in gateways:
            _signal(pid, signal.SIGTERM if is_graceful else signal.SIGKILL)
        if not is_graceful:
            self._stop_reading(name)

    def join(self) -> None:
        if not self.away:
            return
        name = self.rng.choice(sorted(self.away))
        is_new = self.rng.random() < 0.5
        self.diary.event("join", node=name, new=is_new)
        if is_new:
            shutil.rmtree(self.lab.folder / name, ignore_errors=True)
        self.lab.add(name, self.zones[name], self._extra(name))
        self._await_node(name)
        self.away.pop(name)()
        self._read_on(name)

    def upgrade(self) -> None:
        """As a rolling upgrade does: the gateway ends its answers, then the node's Ray starts."""
        name = self._guest()
        if name is None:
            return
        self.diary.event("upgrade", node=name)
        self._end_gateway(name, signal.SIGTERM)
        self.lab.remove(name, is_graceful=True)
        self.lab.add(name, self.zones[name], self._extra(name))
        self._await_node(name)

    # --- operators ------------------------------------------------------------------------------

    def _ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        """What the controller says, which may be starting again just now."""
        deadline = time.monotonic() + ADMIN_PATIENCE_S
        answer: dict[str, Any] = {}
        while time.monotonic() < deadline:
            try:
                answer = self.lab.nodes["n1"].ask("POST", f"/v1/admin/{verb}", fields)
            except (OSError, ValueError) as error:
                answer = {"errors": [str(error)]}
            if "errors" not in answer:
                return answer
            time.sleep(0.5)
        self.diary.finding(f"nobody carried out {verb} in {ADMIN_PATIENCE_S:g} s: {answer}")
        return {}

    def _blob_facts(self) -> tuple[str, dict[str, Any]]:
        blob = self.rng.choice(self.population.blobs)
        facts = {"upstream": "lab", "repository": "soak/blob", "digest": blob.digest}
        return f"lab/soak/blob@{blob.digest}", {**facts, "size": blob.size}

    def preheat(self) -> None:
        what, blob = self._blob_facts()
        to = self.rng.choice(("all", "seeds", "zone=a", "zone=b"))
        self.diary.event("preheat", what=blob["digest"][7:15], to=to)
        self._ask("submit", what=what, to=to, blobs=[blob], ttl_s=None)

    def pin(self) -> None:
        small = [b for b in self.population.blobs if b.size < 4 * MIB and b.digest not in self.pins]
        if small and len(self.pins) < PINNED_MAX:
            digest = self.rng.choice(small).digest
            self.pins.append(digest)
            self.diary.event("pin", what=digest[7:15])
            self._ask("pin", what=digest, ttl_s=None)

    def unpin(self) -> None:
        if self.pins:
            digest = self.pins.pop(self.rng.randrange(len(self.pins)))
            self.diary.event("unpin", what=digest[7:15])
            self._ask("unpin", what=digest)

    def remove(self) -> None:
        digest = self.rng.choice(self.population.blobs).digest
        self.diary.event("remove", what=digest[7:15])
        self._ask("remove", digest=digest)

    def rotate(self) -> None:
        facts = self._ask("rotate", begin=True)
        self.diary.event("rotate", stage=facts.get("stage"), generation=facts.get("generation"))

    def apply(self) -> None:
        capacity = self.rng.choice((CAPACITY - 8 * MIB, CAPACITY, CAPACITY + 8 * MIB))
        wanted = {
            "upstreams": self._upstreams(self.rng.randrange(5, 60)),
            "default_upstream": "lab",
            "store": {"capacity": f"{capacity} B", "reserve": "0 B"},
            "gateway": {"limits": {"connections": self.rng.randrange(256, 4096)}},
        }
        file = self.lab.folder / "wanted.yaml"
        file.write_text(yaml.safe_dump(wanted))
        own = str(self.lab.nodes["n1"].folder / "passel.yaml")
        self.diary.event("apply", capacity=capacity)
        self.sampler.set_capacity(capacity)
        for _ in range(4):
            done = subprocess.run(
                [PASSEL, "config", "apply", str(file), "--config", own],
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            if done.returncode == 0 or "take it up when they do" in done.stderr:
                return
            time.sleep(4)
        self.diary.finding(f"passel config apply: {done.stderr.strip()}")

    # --- disks and origin -----------------------------------------------------------------------

    def fill(self) -> None:
        """One node reads all there is, more than its store takes."""
        name = self.rng.choice(sorted(self.readers))
        self.diary.event("fill", node=name)
        self._read_all(name, is_strict=False)

    def outage(self) -> None:
        is_over = self.diary.trouble("origin")
        seconds = self.rng.uniform(1.0, 6.0)
        self.diary.event("outage", seconds=round(seconds, 2))
        self.registry.stop()
        time.sleep(seconds)
        self.registry.start()
        is_over()

    def renew(self) -> None:
        self.diary.event("renew", what=self.population.renew().digest[7:15])

    def _read_all(self, name: str, *, is_strict: bool) -> bool:
        reader = self.readers[name][0]
        is_good = True
        for blob in self.population.blobs:
            connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=30)
            is_good &= reader.read(connection, blob, 0, blob.size)
            connection.close()
            if not is_good and not is_strict:
                break
        return is_good

    # --- the evening ----------------------------------------------------------------------------

    def settle(self) -> None:
        """Nothing happens any more: everybody is there, reads succeed, the books are right."""
        while self.away:
            self.join()
        for thread in self._waiting:
            thread.join(BACK_WITHIN_S)
        for name in self.lab.nodes:
            self._await_node(name)
        self.diary.event("quiet")
        time.sleep(6)
        for name in self.lab.nodes:
            self._read_all(name, is_strict=True)
        for name in list(self.readers):
            self._stop_reading(name)
        for what in (self._hungry, self._books, self._jobs):
            try:
                eventually(lambda what=what: not what(), SETTLE_S, 1.0)
            except AssertionError:
                self.diary.finding(f"not settled after {SETTLE_S:g} s: {what()}")
        self.diary.event("settled")

    def _idle_partials(self) -> list[int]:
        """Sizes of what was begun and nobody wants: it goes when there is no room, as a rule."""
        return [
            (path / "data").stat().st_size
            for node in self.lab.nodes.values()
            for path in (node.store / "partial").iterdir()
        ]

    def _hungry(self) -> list[str]:
        """Nobody reads any more, so nothing is to be under way."""
        blobs = self._ask("blobs", limit=10_000)["blobs"]
        return [
            f"{blob['digest'][7:15]} is still wanted: {blob}" for blob in blobs if blob["wanted"]
        ]

    def _books(self) -> list[str]:
        """Where what the shards say differs from what lies on the disks."""
        listed = {blob["digest"]: blob for blob in self._ask("blobs", limit=10_000)["blobs"]}
        holders: dict[str, list[str]] = {}
        for name, node in self.lab.nodes.items():
            for path in (node.store / "blobs" / "sha256").glob("*/*"):
                if "." not in path.name:
                    holders.setdefault(f"sha256:{path.name}", []).append(name)
        said = {digest: blob["complete"] for digest, blob in listed.items()}
        return [
            f"{digest[7:15]} is on {holders.get(digest, [])}, listed {listed.get(digest)}"
            for digest in said.keys() | holders.keys()
            if said.get(digest, 0) != len(holders.get(digest, []))
        ]

    def _jobs(self) -> list[str]:
        running = [j["job"] for j in self._ask("jobs").get("jobs", []) if j["state"] == "running"]
        found = [f"job {job} still runs" for job in running]
        ring = self._ask("rotate", begin=False)
        if ring.get("stage") != "steady":
            found.append(f"the secret's rotation stands at {ring}")
        behind = self._ask("config").get("waits_for")
        return [*found, f"{behind} have not taken up the configuration"] if behind else found

    def report(self) -> dict[str, Any]:
        account = self.registry.account()
        reads = self.reads
        return {
            "seed": self.seed,
            "seconds": round(self.diary.now(), 1),
            "nodes": len(self.zones),
            "events": dict(self.diary.counts),
            "reads": reads.n,
            "read_bytes": reads.n_bytes,
            "excused": reads.n_excused,
            "slowest_read_s": round(reads.slowest_s, 3),
            "slowest_read": reads.slowest,
            "origin": account,
            "origin_share": round(account["bytes"] / max(reads.n_bytes, 1), 3),
            "population_bytes": self.population.total,
            "store_max_bytes": self.sampler.disk_max,
            "idle_partials": self._idle_partials(),
            "log_max_bytes": self.sampler.log_max,
            "processes": self.sampler.growth(60.0),
            "n_findings": self.diary.n_findings,
            "findings": self.diary.findings,
        }


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
