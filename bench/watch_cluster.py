"""What does looking at a cluster of 500 nodes cost: `passel status`, and the page?

Ray, the controller's code, the peer's door and the command line are the real ones; four actors
stand for all peers, so that every question to a peer is a call of Ray. Needs no cluster; Ray is
started and ended here.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from report import Report

from passel.actors.controller import Controller
from passel.actors.door import Door
from passel.actors.duties import Duties
from passel.actors.handles import ControllerHandle, PeerHandle, ShardHandle
from passel.actors.watching import Watching, log
from passel.actors.words import NAMESPACE, PeerSpec, Place, controller_name
from passel.client.status import peer_status
from passel.config.load import parse
from passel.core.messages import Role
from passel.core.overview import BlobView, Overview
from passel.gateway import door as gateway_door
from passel.gateway.feed import Feed
from passel.ids import PeerId
from passel.telemetry.scene import Glance

GOAL_STATUS_S = 1.0
GOAL_PAGE_BYTES_S = 200_000
N_ACTORS = 4
PARENTS = 24
RATE = 100_000_000
#: So many blobs of this size, in bytes, are on their way to all nodes.
N_BLOBS, BLOB_BYTES = 8, 10**9


def peer_id(number: int) -> PeerId:
    return PeerId(f"{number:056x}")


class Answers:
    """Any peer, and any shard, in the middle of a rollout: every number is new in every second."""

    def __init__(self, n_nodes: int) -> None:
        self.n_nodes = n_nodes
        self.began = time.time() - 10
        self.rng = random.Random(1)

    def _count(self, share: float) -> int:
        return int((time.time() - self.began) * RATE * share * self.rng.uniform(0.99, 1.0))

    async def status(self) -> dict[str, Any]:
        numbers = {"cross_zone_bytes": 1, "uploaded_bytes": 2, "origin_requests": 3, "complete": 4}
        words = {"store": "/var/lib/passel/store", "address": "10.0.0.1:40123", "role": "peer"}
        gateway = {"gateway": "http://127.0.0.1:65001", "health": "http://127.0.0.1:40901"}
        pids = {"pid": 1, "raylet": 2, "gateway_pid": 3, "used_bytes": 5}
        came = {"peer": self._count(0.8), "seed": self._count(0.1), "origin": 0}
        return {**numbers, **words, **gateway, **pids, "bytes": came, "local_bytes": 1}

    async def glance(self) -> Glance:
        parents = self.rng.sample(range(self.n_nodes), PARENTS)
        flows = {peer_id(i): self._count(1 / PARENTS) for i in parents}
        came = (self._count(0.01), self._count(0.8), self._count(0.1), self._count(0.01))
        return Glance(came, self._count(1.0), self._count(0.05), self._count(1.0), 12, flows)

    async def overview(self, limit: int) -> Overview:
        held = min(self._count(1.0), BLOB_BYTES - 1)
        upstreams = ("registry.example.com",)
        blobs = [
            BlobView(f"sha256:{i:064x}", BLOB_BYTES, upstreams, 3, self.n_nodes, held * 9, 10**12)
            for i in range(N_BLOBS)
        ]
        wanted = {peer_id(i): (held, BLOB_BYTES) for i in range(self.n_nodes)}
        return Overview(N_BLOBS, blobs, wanted)


class Stage(Controller):
    """The controller's own answers, over handles that were given to it."""

    # Ray awaits the constructor of an async actor.
    async def __init__(self, n_nodes: int, actors: list[Any]) -> None:  # type: ignore[misc]
        config = parse("")
        self._cluster, self._node = "bench", str(peer_id(0))
        self._specs, self._peers = {}, {}
        for i in range(n_nodes):
            place = Place(f"ip-10-0-{i // 256}-{i % 256}", f"us-east-1{'abcde'[i % 5]}", "", "")
            role = Role.SEED if i < 5 else Role.PEER
            self._specs[peer_id(i)] = PeerSpec(peer_id(i), place, role, config, "bench", None)
            handle = self._peers[peer_id(i)] = PeerHandle(peer_id(i))
            handle._actor = actors[i % len(actors)]  # noqa: SLF001
        self._shards = []
        shard = ShardHandle(0)
        shard._actor = actors[0]  # noqa: SLF001
        specs, peers = self._specs, self._peers
        self._watching = Watching(Duties(log), "bench", specs, peers, [shard], lambda limit: [])

    async def processor_s(self) -> float:
        return time.process_time()


class Host:
    """What the door asks of its peer: the two questions that go to the controller."""

    def __init__(self) -> None:
        self.controller = ControllerHandle()

    async def cluster_status(self) -> dict[str, Any]:
        return await self.controller.status(10.0)

    async def watch(self) -> bytes:
        return await self.controller.watch(5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    # Ray would make a token and leave it in the home folder.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init("local", num_cpus=2, namespace=NAMESPACE, include_dashboard=False, log_to_driver=False)
    try:
        answers = ray.remote(num_cpus=0)(Answers)
        actors = [answers.remote(options.nodes) for _ in range(N_ACTORS)]
        stage = ray.remote(num_cpus=0)(Stage)
        controller = stage.options(name=controller_name()).remote(options.nodes, actors)
        ray.get([actor.status.remote() for actor in [*actors, controller]])  # they are all up
        with tempfile.TemporaryDirectory(prefix="pwat") as folder:
            asyncio.run(measure(Path(folder), controller, options))
    finally:
        ray.shutdown()


async def measure(folder: Path, controller: Any, options: argparse.Namespace) -> None:
    store = folder / "store"
    store.mkdir()
    config = folder / "passel.yaml"
    config.write_text(f"store: {{path: {store}}}\n")
    door = Door(Host(), store / "peer.sock")  # type: ignore[arg-type]
    await door.open()
    report = Report("What does looking at a large cluster cost?", seed=1)
    parameters = {"nodes": options.nodes, "actors": N_ACTORS}
    command = [str(Path(sys.executable).with_name("passel")), "node", "status"]
    command += ["--config", str(config)]
    asked, typed = [], []
    for _ in range(options.repetitions + 1):
        began = time.perf_counter()
        facts = await asyncio.to_thread(peer_status, store)
        asked.append(time.perf_counter() - began)
        assert sum(node["alive"] for node in facts["nodes"]) == options.nodes
        began = time.perf_counter()
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
        typed.append(time.perf_counter() - began)
        assert done.stdout.count(b"\n") > options.nodes
    for case, values in (("the answer", asked), ("the command as typed", typed)):
        report.row(case, "s", values[1:], parameters=parameters, goal=GOAL_STATUS_S)
    await watch(store, controller, report, parameters, options.seconds)
    await door.close()


async def watch(
    store: Path, controller: Any, report: Report, parameters: dict[str, Any], seconds: int
) -> None:
    gateway = gateway_door.Door(store / "peer.sock", 0.4)
    feed = Feed(gateway.watch)
    per_second, seen = [], (None, "")
    with feed.watching():
        for _ in range(5):  # the whole picture, and until rates are known
            await feed.wait(5.0)
            _, seen = feed.events(seen)
        cpu_before, own_before = await controller.processor_s.remote(), time.process_time()
        for _ in range(seconds):
            await feed.wait(5.0)
            events, seen = feed.events(seen)
            per_second.append(float(len(events)))
        cpu = (await controller.processor_s.remote() - cpu_before) / seconds
        own = (time.process_time() - own_before) / seconds
    await feed.close()
    await gateway.close()
    report.row(
        "a second of the page",
        "B",
        per_second,
        parameters={**parameters, "parents": PARENTS, "blobs": N_BLOBS},
        goal=GOAL_PAGE_BYTES_S,
        highest=max(per_second),
        median=statistics.median(per_second),
        controller_cpu_s_per_s=round(cpu, 3),
        gateway_and_door_cpu_s_per_s=round(own, 3),
    )


if __name__ == "__main__":
    main()
