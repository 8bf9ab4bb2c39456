"""A rollout of real machines in virtual time, seen as the page sees one, second by second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from passel.core import messages as m
from passel.core.overview import overview
from passel.ids import PeerId
from passel.sim.world import Setup, World
from passel.telemetry.flows import Flows
from passel.telemetry.scene import BLOBS_MAX, SOURCES, Glance, Scene, Spot

MIB = 1 << 20
SIMULATED_S = 1_764_000_000.0


@dataclass
class _Counts:
    came: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    sent: int = 0
    cross: int = 0
    flows: Flows = field(default_factory=Flows)


class _Counter:
    """Takes the place of the trace's recorder, and counts what a live peer counts."""

    def __init__(self) -> None:
        self.of: dict[str, _Counts] = {}

    def piece(self, *, at_s: float, node: str, zone: str, **about: Any) -> None:
        if about["outcome"] != "ok":
            return
        mine, parent, n_bytes = self._of(node), about["parent"], about["n_bytes"]
        mine.came[about["source"]] += n_bytes
        if parent is not None:
            mine.flows.add(PeerId(parent), n_bytes, at_s)
            mine.cross += n_bytes if about["parent_zone"] != zone else 0
            self._of(parent).sent += n_bytes

    def _of(self, node: str) -> _Counts:
        return self.of.setdefault(node, _Counts())

    def glance(self, world: World, node: str) -> Glance:
        counts = self._of(node)
        machine = world.nodes[PeerId(node)].machine
        used = sum(counts.came.values())
        local, peer, seed, origin = (counts.came[source] for source in SOURCES)
        flows = counts.flows.recent(world.now)
        came = (local, peer, seed, origin)
        return Glance(came, counts.sent, counts.cross, used, len(machine.complete), flows)

    def ignore(self, *_: object, **__: object) -> None:
        """Everything else of a trace."""

    read = epoch = messages = fault = ignore


@dataclass(frozen=True)
class Rollout:
    """`nodes` in `zones` pull `blobs` of so many MiB each, one after the other begun."""

    nodes: int = 500
    zones: int = 5
    blobs: int = 3
    mib: int = 64
    #: Bytes per second of every node's links, and of the origin.
    rate: float = 12.5 * MIB
    seed: int = 1
    #: All nodes begin within so many seconds.
    begin_s: float = 4.0
    dead: int = 0

    def views(self, until_s: float = 60.0) -> Iterator[dict[str, Any]]:
        """One each second of virtual time, the first at 1 s."""
        counter = _Counter()
        setup = Setup(
            n_peers=self.nodes,
            zones=self.zones,
            seeds=max(1, self.nodes // 100),
            shards=2,
            seed=self.seed,
            rate=self.rate,
            origin_rate=4 * self.rate,
            latency_s=0.0005,
            zone_latency_s=0.002,
            quantum_s=0.02 if self.nodes > 64 else 0.0,
        )
        world = World(setup, counter)  # type: ignore[arg-type]
        refs = [world.blob(f"layer {i}", self.mib * MIB) for i in range(self.blobs)]
        for i in range(self.nodes):
            for k, ref in enumerate(refs):
                at_s = (k + i / self.nodes) * self.begin_s / self.blobs
                world.clock.at(at_s, world.read, f"p{i}", ref)
        scene = Scene("simulated", "simulated", ["0", "1"], 0.0)
        scene.members(_spot(node.info) for node in world.nodes.values())
        scene.jobs([_job(self, refs)])
        dead = {f"p{self.nodes - 1 - i}" for i in range(self.dead)}
        turns = -(-self.nodes // 250)
        for second in range(1, int(until_s) + 1):
            world.run(float(second), check=False)
            for shard in world.shards:
                said = overview(shard.machine, BLOBS_MAX)
                scene.shard_said(str(shard.number), said, world.now)
            for i, name in enumerate(list(world.nodes)):
                # As the controller does: of a large cluster some in each second.
                if i % turns == second % turns and name not in dead:
                    scene.peer_said(name, counter.glance(world, name), world.now)
            yield scene.view(world.now, SIMULATED_S + second)


def _spot(info: m.PeerInfo) -> Spot:
    return Spot(info.peer, info.node, info.zone, info.role.value)


def _job(rollout: Rollout, refs: list[Any]) -> dict[str, Any]:
    node = {"zone": "z0", "blobs": 1, "bytes": rollout.mib * MIB, "trouble": ""}
    return {
        "job": "0123456789ab",
        "what": "ghcr.io/org/training:2026.11",
        "to": "all",
        "state": "running",
        "trouble": "",
        "created": "2025-11-24T16:00:00Z",
        "blobs": len(refs),
        "bytes": rollout.mib * MIB * len(refs),
        "nodes": [{"node": f"p{i}", **node} for i in range(rollout.nodes)],
    }
