"""The world of a rollout: nodes, shards, the origin and the links between them, in virtual time.

The machines are the very objects that the actors drive. The world adds what the real one adds:
time, bytes under way, things that break; and it looks at all nodes at once, which no node can, so
it is where truths across machines are checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from passel.core import messages as m
from passel.core.peer import PeerMachine
from passel.core.pieces import Geometry
from passel.ids import BlobId, BlobKey, BlobRef, Digest, PeerId
from passel.sim.clock import Clock
from passel.sim.network import Network
from passel.sim.node import Node, PieceFetch, Place, ReadLog, true_digest
from passel.sim.shard import Shard
from passel.sim.spans import Origin, SpanFetch

if TYPE_CHECKING:
    from passel.telemetry.trace import Recorder

INFINITE = float("inf")
#: Normal numbers drawn at a time for jitter.
DRAWS = 4096


@dataclass(frozen=True)
class Setup:
    """A world in base units: seconds, bytes, bytes per second. None means no limit.

    Attributes
    ----------
    rate, down_rate : float
        Uplink and downlink of a node; `down_rate` None is the same as `rate`.
    trunk_rate, rack_rate : float or None
        What one zone (one rack) sends and receives altogether over its border, each direction.
    disk_rate : float or None
        How fast a node writes.
    verify_rate : float or None
        How fast a node hashes; None: as fast as the bytes come, as in the live peer.
    latency_s, zone_latency_s : float
        One way, within a zone and between zones.
    jitter : float
        Standard deviation of the logarithm of a latency.
    call_s : float
        One way of a call to a shard, on top of the latency.
    shard_call_s : float
        How long a shard is busy with one report.
    quantum_s : float
        See `passel.sim.network`.
    speeds : tuple of float
        Factors of the link rates of node 0, 1, ...; nodes beyond have 1.
    """

    n_peers: int = 4
    zones: int = 1
    racks: int = 1
    seeds: int = 1
    shards: int = 1
    seed: int = 0
    rate: float = 100e6
    down_rate: float | None = None
    origin_rate: float = 100e6
    trunk_rate: float | None = None
    rack_rate: float | None = None
    disk_rate: float | None = None
    verify_rate: float | None = None
    latency_s: float = 0.001
    zone_latency_s: float | None = None
    jitter: float = 0.0
    origin_latency_s: float = 0.02
    call_s: float = 0.0
    shard_call_s: float = 0.0
    quantum_s: float = 0.0
    speeds: tuple[float, ...] = ()
    peer_limits: m.PeerLimits = field(default_factory=m.PeerLimits)
    shard_limits: m.ShardLimits = field(default_factory=m.ShardLimits)
    upload_slots: int = 6


class World:
    """All of it. `run` moves time; everything else happens at the present moment."""

    def __init__(self, setup: Setup | None = None, recorder: Recorder | None = None) -> None:
        self.setup = setup = setup or Setup()
        self.recorder = recorder
        self.clock = Clock()
        self.network = Network(self.clock, setup.quantum_s)
        self._rng = np.random.default_rng([setup.seed, 1 << 20])
        self._draws: list[float] = []
        self.origin = Origin(self, self.network.add_link(setup.origin_rate), setup.origin_latency_s)
        self.keys: dict[BlobId, BlobKey] = {}
        self._digests: dict[BlobId, list[bytes]] = {}
        self.reads: dict[int, ReadLog] = {}
        self._waiting_for: dict[int, Callable[[ReadLog], None]] = {}
        self._number_of: dict[int, int] = {}
        self.n_open_reads = 0
        self.cross_zone_bytes = 0
        self.peer_bytes = 0
        self.wasted_bytes = 0
        self._trunks: dict[str, tuple[int, int]] = {}
        self._partition: set[str] = set()
        zone_names = [f"z{i}" for i in range(setup.zones)]
        self.shards = [
            Shard(self, number, zone_names[number % setup.zones]) for number in range(setup.shards)
        ]
        self.nodes: dict[PeerId, Node] = {}
        for i in range(setup.n_peers):
            role = m.Role.SEED if i < setup.seeds else m.Role.PEER
            rack = f"r{i // setup.zones % setup.racks}" if setup.racks > 1 else ""
            speed = setup.speeds[i] if i < len(setup.speeds) else 1.0
            self.add_peer(f"p{i}", zone_names[i % setup.zones], role, rack=rack, speed=speed)

    # --- building -------------------------------------------------------------------------------

    def add_peer(
        self, name: str, zone: str, role: m.Role, *, rack: str = "", speed: float = 1.0
    ) -> Node:
        """A node joins, with links of its own."""
        setup, peer = self.setup, PeerId(name)
        info = m.PeerInfo(
            peer,
            name,
            zone,
            role,
            f"{name}:1",
            1,
            setup.upload_slots,
            setup.peer_limits.download_slots,
            rack,
        )
        link = self.network.add_link
        zone_out, zone_in = self._trunk(zone, setup.trunk_rate)
        rack_out, rack_in = self._trunk(f"{zone} {rack}", setup.rack_rate)
        down = setup.rate if setup.down_rate is None else setup.down_rate
        disk = INFINITE if setup.disk_rate is None else setup.disk_rate
        place = Place(
            link(setup.rate * speed),
            link(down * speed),
            link(disk),
            rack_out,
            rack_in,
            zone_out,
            zone_in,
        )
        return self._start(info, place)

    def _trunk(self, name: str, rate: float | None) -> tuple[int, int]:
        if name not in self._trunks:
            bytes_per_s = INFINITE if rate is None else rate
            link = self.network.add_link
            self._trunks[name] = (link(bytes_per_s), link(bytes_per_s))
        return self._trunks[name]

    def _start(self, info: m.PeerInfo, place: Place) -> Node:
        node = Node(self, info, PeerMachine(info, self.setup.peer_limits, len(self.shards)), place)
        self.nodes[info.peer] = node
        node.perform(node.machine.start())
        return node

    def blob(self, name: str, size: int, upstream: str = "up") -> BlobRef:
        """A blob that the origin has."""
        digest = Digest("sha256", hashlib.sha256(name.encode()).hexdigest())
        ref = BlobRef(upstream, "org/app", digest)
        self.origin.sizes[ref.id] = size
        self.keys[ref.id] = ref.key
        return ref

    def digest(self, blob: BlobId, piece: int) -> bytes:
        """The true digest of a piece."""
        digests = self._digests.setdefault(blob, [])
        while len(digests) <= piece:
            digests.append(true_digest(blob, len(digests)))
        return digests[piece]

    # --- reading --------------------------------------------------------------------------------

    def read(
        self,
        name: str,
        ref: BlobRef,
        start: int = 0,
        stop: int | None = None,
        sponsor: bool = False,
        then: Callable[[ReadLog], None] | None = None,
    ) -> int:
        """A client on that node asks for the bytes (start, stop); `then` hears how it ended."""
        number = len(self.reads) + 1
        node = self.nodes[PeerId(name)]
        log = ReadLog(node.peer, ref.id, start, stop, self.clock.now)
        self.reads[number] = log
        self._number_of[id(log)] = number
        self.n_open_reads += 1
        if then is not None:
            self._waiting_for[number] = then
        if node.alive:
            node.step(m.ReadStarted(number, ref, start, stop, sponsor))
        else:
            self._peer_died(log)
        return number

    def read_over(self, log: ReadLog) -> None:
        """A read ended, well or badly."""
        number = self._number_of.pop(id(log), None)
        if number is None:
            return
        if self.recorder is not None:
            self._record_read(log)
        self.clock.after(0.0, self._tell_client, self._waiting_for.pop(number, None), log)

    def _record_read(self, log: ReadLog) -> None:
        assert self.recorder is not None
        now, info = self.clock.now, self.nodes[log.node].info
        ready_at = now if log.ready_at is None else log.ready_at
        outcome = "ok" if log.refusal is None else f"refused {log.refusal.status}"
        self.recorder.read(
            at_s=now,
            node=info.node,
            zone=info.zone,
            blob=log.blob,
            start=log.start,
            stop=log.stop,
            n_bytes=max(log.upto - log.start, 0),
            source=log.source,
            queue_s=ready_at - log.started_at,
            transfer_s=now - ready_at,
            outcome="passthrough" if log.passthrough else outcome,
        )

    def _tell_client(self, then: Callable[[ReadLog], None] | None, log: ReadLog) -> None:
        if then is not None:
            then(log)
        self.n_open_reads -= 1

    def _peer_died(self, log: ReadLog) -> None:
        log.refusal = m.Refusal(503, "UNKNOWN", "the peer died")
        self.read_over(log)

    # --- breaking -------------------------------------------------------------------------------

    def kill_peer(self, name: str, notice_s: float = 0.5) -> None:
        """The peer's process dies; the shards get to know after `notice_s`."""
        node = self.nodes[PeerId(name)]
        self.record_fault(node.peer, "crash")
        node.die()
        for shard in self.shards:
            gone = m.PeerGone(node.peer, node.info.incarnation)
            self.clock.after(notice_s, shard.hear_of, gone)
        for log in list(self.reads.values()):
            if log.node == node.peer and not log.is_over:
                self._peer_died(log)

    def restart_peer(self, name: str) -> Node:
        """A new process on the same node finds the old one's disk."""
        old = self.nodes[PeerId(name)]
        self.record_fault(old.peer, "restart")
        new = self._start(replace(old.info, incarnation=old.info.incarnation + 1), old.place)
        new.disk, new.keys, new.done = old.disk, old.keys, old.done
        new.recover()
        return new

    def kill_shard(self, down_s: float = 1.0, number: int = 0) -> None:
        """A shard dies and comes back empty."""
        self.record_fault(PeerId(f"shard {number}"), "crash")
        self.shards[number].die()
        self.clock.after(down_s, self.shards[number].restart)

    def slow_down(self, name: str, factor: float) -> None:
        """A node's links carry only so much of what they did."""
        place = self.nodes[PeerId(name)].place
        self.record_fault(PeerId(name), "slow" if factor < 1 else "healed")
        for link in (place.up, place.down):
            self.network.set_capacity(link, self.network.capacity(link) * factor)

    def make_liar(self, name: str) -> None:
        """A node serves wrong bytes from now on."""
        self.record_fault(PeerId(name), "lie")
        self.nodes[PeerId(name)].lies = True

    def make_honest(self, name: str) -> None:
        self.record_fault(PeerId(name), "healed")
        self.nodes[PeerId(name)].lies = False

    def partition(self, zone: str, heal_after_s: float) -> None:
        """Nothing crosses the border of a zone, in any direction, for some time."""
        self._partition.add(zone)
        self.record_fault(PeerId(zone), "partition")
        inside = {p for p, node in self.nodes.items() if node.info.zone == zone}
        outside = self.nodes.keys() - inside
        for node in self.nodes.values():
            node.cut_off(outside if node.peer in inside else inside)
        self.clock.after(heal_after_s, self._heal, zone)

    def _heal(self, zone: str) -> None:
        self._partition.discard(zone)
        self.record_fault(PeerId(zone), "healed")

    def origin_trouble(self, trouble: str) -> None:
        """The origin is "down", or "hang"s, or (empty) is well again."""
        self.origin.trouble = trouble
        self.record_fault(PeerId("origin"), trouble or "healed")

    def slow_origin(self, factor: float) -> None:
        """The origin's link carries only so much of what it did."""
        link = self.origin.link
        self.network.set_capacity(link, self.network.capacity(link) * factor)
        self.record_fault(PeerId("origin"), "slow" if factor < 1 else "healed")

    # --- distances ------------------------------------------------------------------------------

    def jitter(self) -> float:
        """A factor of a latency."""
        if not self.setup.jitter:
            return 1.0
        if not self._draws:
            factors = np.exp(self.setup.jitter * self._rng.standard_normal(DRAWS))
            self._draws = factors.tolist()
        return self._draws.pop()

    def latency_s(self, one: Node, other: Node) -> float:
        """One way between two nodes."""
        return self._zone_latency_s(one.info.zone, other.info.zone)

    def _zone_latency_s(self, zone: str, other: str) -> float:
        setup = self.setup
        is_far = zone != other and setup.zone_latency_s is not None
        latency_s = setup.zone_latency_s if is_far else setup.latency_s
        assert latency_s is not None
        return latency_s * self.jitter()

    def control_s(self, zone: str, other: str) -> float | None:
        """One way of a call between a peer and a shard, None if a partition is between them."""
        if zone != other and self._partition and {zone, other} & self._partition:
            return None
        return self.setup.call_s + self._zone_latency_s(zone, other)

    def are_connected(self, one: Node, other: Node) -> bool:
        zones = {one.info.zone, other.info.zone}
        return len(zones) == 1 or not zones & self._partition

    def verify_s(self, n_bytes: int) -> float:
        rate = self.setup.verify_rate
        return 0.0 if rate is None else n_bytes / rate

    def route(self, parent: Node, child: Node) -> tuple[int, ...]:
        """The links from one node to another."""
        here, there = parent.place, child.place
        links = (here.up, there.down, there.disk)
        if parent.info.zone != child.info.zone:
            return (*links, here.rack_out, here.zone_out, there.zone_in, there.rack_in)
        if parent.info.rack != child.info.rack:
            return (*links, here.rack_out, there.rack_in)
        return links

    # --- counting -------------------------------------------------------------------------------

    def count_piece(self, fetch: PieceFetch, verify_s: float) -> None:
        """A piece came whole."""
        n_bytes = fetch.command.stop - fetch.command.start
        self.peer_bytes += n_bytes
        if fetch.command.cross_zone:
            self.cross_zone_bytes += n_bytes
        self.record_piece(fetch, "ok", verify_s)

    def count_wasted(self, fetch: PieceFetch, left: float) -> None:
        """A body was broken off: what had come crossed the links all the same."""
        n_bytes = round(fetch.command.stop - fetch.command.start - left)
        self.wasted_bytes += n_bytes
        if fetch.command.cross_zone:
            self.cross_zone_bytes += n_bytes

    def record_piece(self, fetch: PieceFetch, outcome: str, verify_s: float = 0.0) -> None:
        if self.recorder is None:
            return
        command, child = fetch.command, fetch.child.info
        now = self.clock.now
        sent_at = fetch.sent_at or now
        self.recorder.piece(
            at_s=now,
            node=child.node,
            zone=child.zone,
            blob=command.blob,
            piece=command.piece,
            parent=fetch.parent.info.node,
            parent_zone=fetch.parent.info.zone,
            n_bytes=command.stop - command.start,
            source=command.source,
            queue_s=sent_at - fetch.asked_at,
            transfer_s=now - sent_at - verify_s,
            verify_s=verify_s,
            outcome=outcome,
        )

    def record_span(self, span: SpanFetch, piece: int, n_bytes: int, began_at: float) -> None:
        if self.recorder is not None:
            self.recorder.piece(
                at_s=self.clock.now,
                node=span.node.info.node,
                zone=span.node.info.zone,
                blob=span.command.ref.id,
                piece=piece,
                parent=None,
                parent_zone=None,
                n_bytes=n_bytes,
                source="origin",
                queue_s=0.0,
                transfer_s=self.clock.now - began_at,
                verify_s=0.0,
                outcome="ok",
            )

    def record_epoch(self, shard: Shard, n_edges: int) -> None:
        if self.recorder is not None:
            n_peers = len(shard.machine.peers)
            self.recorder.epoch(self.clock.now, shard.number, n_edges, n_peers, plan_s=0.0)

    def record_messages(self, shard: Shard, out: list[m.Deliver]) -> None:
        if self.recorder is not None:
            self.recorder.messages(self.clock.now, shard.number, out)

    def record_fault(self, who: PeerId, what: str) -> None:
        if self.recorder is not None:
            self.recorder.fault(self.clock.now, who, what)

    # --- time -----------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.clock.now

    def run(self, until: float, check: bool = True) -> None:
        """Run to the given time; with `check`, every truth is checked after every event."""
        while self.clock.next_at() <= until:
            self.clock.step()
            if check:
                self.check()
        self.clock.now = until

    def run_reads(self, until: float, tick: Callable[[], None] | None = None) -> bool:
        """Run until all reads are over, at the latest to `until`; whether they are."""
        clock, n_events = self.clock, 0
        while self.n_open_reads and clock.next_at() <= until:
            clock.step()
            n_events += 1
            if tick is not None and not n_events & 0x3FFF:
                tick()
        return not self.n_open_reads

    def check(self) -> None:
        """What must hold at any moment, DESIGN §9. Raises AssertionError."""
        for shard in self.shards:
            shard.machine.check_invariants()
        for node in self.nodes.values():
            if node.alive:
                node.machine.check_invariants()
            assert node.uploads.n_taken <= node.info.upload_slots, "more uploads than slots"
        for log in self.reads.values():
            assert log.done_at is None or log.ready_at is not None

    @property
    def origin_bytes(self) -> int:
        """Bytes that left the origin."""
        return sum(self.origin.n_bytes.values())

    def geometry(self, ref: BlobRef) -> Geometry:
        return Geometry.of(self.origin.sizes[ref.id])
