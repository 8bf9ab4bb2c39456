"""One per cluster: a peer on every live node, the shards alive, who is a seed, and the status."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from typing import Any, Protocol

from passel.actors import certifying
from passel.actors.admin import Admin
from passel.actors.duties import Duties
from passel.actors.handles import (
    PeerHandle,
    ShardHandle,
    end_actor,
    is_second_life,
    live_nodes,
    own_node,
)
from passel.actors.metrics import Publisher
from passel.actors.rotating import Rotation
from passel.actors.watching import Watching
from passel.actors.words import PeerSpec, Place, peer_name
from passel.config.sections import Config
from passel.core import rendezvous
from passel.core.messages import Role
from passel.errors import PeerUnavailable
from passel.ids import PeerId
from passel.telemetry import logs
from passel.telemetry.series import Measure

log = logging.getLogger(__name__)

#: A node that joins has its peer within 5 s: two looks, and the start of a process.
LOOK_EVERY_S = 0.5
ANSWER_TIMEOUT_S = 2.0

ZONE_LABEL = "ray.io/availability-zone"
REGION_LABEL = "ray.io/region"
RACK_LABEL = "passel/rack"
NODE_LABEL = "passel/node"


class Launcher(Protocol):
    """Starts actors; see `passel.actors.launch`."""

    def shard(self, number: int, config: Config, node: str) -> None: ...

    def peer(self, spec: PeerSpec) -> None: ...


class Controller:
    """All state is derived from Ray's nodes and the configuration it was created with."""

    # Ray awaits the constructor of an async actor.
    async def __init__(  # type: ignore[misc]
        self, config: Config, cluster: str, launcher: Launcher
    ) -> None:
        logs.setup(config.logging.level)
        self._config = config
        self._cluster = cluster
        self._launcher = launcher
        self._specs: dict[PeerId, PeerSpec] = {}
        #: Nodes whose raylet is gone and whose name is taken by a new one, until Ray notices.
        self._replaced: set[str] = set()
        self._peers: dict[PeerId, PeerHandle] = {}
        self._shards = [ShardHandle(shard) for shard in range(config.scheduler.shards)]
        self._has_looked = False
        self._node = own_node()
        self._duties = Duties(log)
        self._authority = await certifying.take_up(cluster) if config.peer.tls else None
        # Before any peer is there: it reads the secret when it starts.
        self._rotation = await Rotation.take_up(self._specs, self._peers)
        for shard in range(config.scheduler.shards):
            await asyncio.to_thread(launcher.shard, shard, config, self._node)
        self._admin = Admin(
            self._duties, config, self._shards, self._specs, self._peers, self._rotation
        )
        self._watching = Watching(
            self._duties, cluster, self._specs, self._peers, self._shards, self._admin.newest_jobs
        )
        self._duties.start(self._watch())
        self._duties.start(self._admin.run())
        self._duties.start(Publisher({}).run(self._measures))

    def __repr__(self) -> str:
        # Ray asks once, after the constructor, and shows that for the actor's life: no counts.
        return f"Controller({self._cluster})"

    async def _watch(self) -> None:
        while True:
            nodes = await asyncio.to_thread(live_nodes)
            await self._reconcile(nodes)
            if not self._has_looked:
                # A step of a rotation waits for all peers, a drain ends with its node: not before
                # it is known who they are.
                self._has_looked = True
                self._duties.start(self._rotation.run(self._duties))
                self._duties.start(self._admin.drain())
            await asyncio.sleep(LOOK_EVERY_S)

    async def _reconcile(self, nodes: list[dict[str, Any]]) -> None:
        """A peer on every live node, none for nodes that are gone."""
        self._replaced &= {node["NodeID"] for node in nodes}
        nodes = [node for node in nodes if node["NodeID"] not in self._replaced]
        places = {PeerId(node["NodeID"]): place_of(node) for node in nodes}
        labels = {PeerId(node["NodeID"]): node.get("Labels") or {} for node in nodes}
        for peer in [peer for peer in self._specs if peer not in places]:
            await self._forget(peer)
        fresh = [peer for peer in places if peer not in self._specs]
        if not fresh:
            return
        # A raylet that was replaced comes back under its node's name before Ray calls it dead.
        names = {labels[peer][NODE_LABEL] for peer in fresh if NODE_LABEL in labels[peer]}
        for peer in [p for p, spec in self._specs.items() if spec.place.node in names]:
            self._replaced.add(peer)
            await self._forget(peer)
        current = self._current_seeds() or await self._seeds_of_former_life(fresh)
        draining = self._admin.draining.peers
        staying = {peer: place for peer, place in places.items() if peer not in draining}
        seeds = choose_seeds(self._config, staying, labels, current - draining)
        for peer in fresh:
            role = Role.SEED if peer in seeds else Role.PEER
            spec = await self._spec_of(peer, places[peer], role)
            await asyncio.to_thread(self._launcher.peer, spec)
            self._specs[peer] = spec
            self._peers[peer] = PeerHandle(peer)
            log.info("peer_placed node=%s role=%s", spec.place.node, role.value)

    async def _spec_of(self, peer: PeerId, place: Place, role: Role) -> PeerSpec:
        certificate = None
        if self._authority is not None:
            certificate = await asyncio.to_thread(self._authority.issue, place.node)
        return PeerSpec(peer, place, role, self._config, self._cluster, certificate)

    async def _seeds_of_former_life(self, peers: list[PeerId]) -> set[PeerId]:
        """A restarted controller finds peers that have their roles already."""
        if not is_second_life():
            return set()
        answers = await asyncio.gather(*(self._ask(PeerHandle(peer)) for peer in peers))
        return {
            peer
            for peer, answer in zip(peers, answers, strict=True)
            if answer and answer["role"] == Role.SEED.value
        }

    def _current_seeds(self) -> set[PeerId]:
        return {peer for peer, spec in self._specs.items() if spec.role is Role.SEED}

    async def _forget(self, peer: PeerId) -> None:
        spec = self._specs.pop(peer)
        self._peers.pop(peer)
        log.info("node_gone node=%s", spec.place.node)
        await asyncio.to_thread(end_actor, peer_name(peer))
        for shard in self._shards:
            try:
                await shard.peer_gone(peer, ANSWER_TIMEOUT_S)
            except PeerUnavailable as error:
                log.info("shard_away while forgetting a node: %s", error)

    async def peers(self) -> tuple[PeerId, ...]:
        """The peers of all live nodes, for a shard that starts again; none if not known yet."""
        return tuple(self._specs) if self._has_looked else ()

    async def admin(self, verb: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """What an operator asks for; see `Admin.answer`. Idempotent."""
        return await self._admin.answer(verb, fields)

    async def watch(self) -> bytes:
        """The cluster as it is now, for the page; see `Watching.view`."""
        return await self._watching.view()

    async def _measures(self) -> Iterable[Measure]:
        return self._admin.measures()

    async def status(self) -> dict[str, Any]:
        """The whole cluster, in the shape of DESIGN §10."""
        peers = list(self._specs.values())
        answers = await asyncio.gather(*(self._ask(self._peers[s.peer]) for s in peers))
        shards = await asyncio.gather(*(self._ask(shard) for shard in self._shards))
        nodes = [
            {**_node_status(s, a), "draining": s.peer in self._admin.draining.peers}
            for s, a in zip(peers, answers, strict=True)
        ]
        names = {spec.peer: spec.place.node for spec in peers}
        here = names.get(PeerId(self._node), self._node)
        return {
            "nodes": sorted(nodes, key=lambda node: node["node"]),
            "shards": [shard_status(answer, names) for answer in shards if answer],
            "controller": {"node": here, "pid": os.getpid()},
            "config": self._admin.configuring.facts(),
            "blobs": sum(answer["blobs"] for answer in shards if answer),
        }

    async def _ask(self, handle: PeerHandle | ShardHandle) -> dict[str, Any] | None:
        try:
            return await handle.status(ANSWER_TIMEOUT_S)
        except PeerUnavailable:
            return None


def place_of(node: dict[str, Any]) -> Place:
    """Where a node of `ray.nodes()` stands."""
    labels = node.get("Labels") or {}
    return Place(
        node=labels.get(NODE_LABEL) or node["NodeManagerAddress"],
        zone=labels.get(ZONE_LABEL, ""),
        region=labels.get(REGION_LABEL, ""),
        rack=labels.get(RACK_LABEL, ""),
    )


def choose_seeds(
    config: Config,
    places: dict[PeerId, Place],
    labels: dict[PeerId, dict[str, str]],
    current: set[PeerId],
) -> set[PeerId]:
    """The nodes labelled as seeds; without any label, `seeds.count` of them.

    Those that are seeds stay seeds: their disks hold what the cluster has fetched. Among the rest
    the choice follows the node's name, so that it is the same after a restart.
    """
    labelled = {peer for peer in places if labels[peer].get(config.seeds.label) == "seed"}
    if labelled:
        return labelled
    chosen = set(list(current)[: config.seeds.count])
    names = {places[peer].node: peer for peer in places if peer not in chosen}
    for name in rendezvous.ranked("seed", names):
        if len(chosen) < config.seeds.count:
            chosen.add(names[name])
    return chosen


def shard_status(answer: dict[str, Any], names: dict[PeerId, str]) -> dict[str, Any]:
    """What a shard says of itself, with the name of its node: it may be another than ours."""
    node = str(answer.get("node", ""))
    return {**answer, "node": names.get(PeerId(node), node)}


def _node_status(spec: PeerSpec, answer: dict[str, Any] | None) -> dict[str, Any]:
    status: dict[str, Any] = {
        "node": spec.place.node,
        "zone": spec.place.zone,
        "role": spec.role.value,
        "alive": answer is not None,
        "gateway": None,
        "health": None,
        "store": None,
        "pids": {"gateway": None, "peer": None, "raylet": None},
        "bytes": {"local": 0, "peer": 0, "seed": 0, "origin": 0},
    }
    if answer is None:
        return status
    status["store"] = answer["store"]
    status["pids"] = {
        "gateway": answer.get("gateway_pid"),
        "peer": answer["pid"],
        "raylet": answer["raylet"],
    }
    status["gateway"] = answer.get("gateway")
    status["health"] = answer.get("health")
    status["bytes"] = {"local": answer.get("local_bytes", 0), **answer["bytes"]}
    status["config"] = {key: answer.get(key, 0) for key in ("version", "gateway_version")}
    # A peer of another version may not know them all.
    status.update({key: answer.get(key) for key in ("passel", "wire", "trouble")})
    extra = ("address", "cross_zone_bytes", "uploaded_bytes", "origin_requests", "complete")
    status.update({key: answer[key] for key in (*extra, "used_bytes")})
    return status
