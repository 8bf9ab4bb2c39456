"""A small deterministic world around the real core machines: virtual time, no sockets, no disk.

Messages take `latency_s`, a piece takes its length / `rate`, the origin answers after
`origin_latency_s`. Everything is drawn from one seed. Bytes are not moved: the digest of a piece is
a function of (blob, piece), and a peer that lies has another one.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from passel.core import messages as m
from passel.core.peer import PeerMachine
from passel.core.pieces import Geometry
from passel.core.shard import ShardMachine
from passel.ids import BlobId, BlobRef, Digest, PeerId


def a_digest(name: str) -> Digest:
    return Digest("sha256", hashlib.sha256(name.encode()).hexdigest())


def a_ref(name: str = "blob", upstream: str = "up", repository: str = "org/app") -> BlobRef:
    return BlobRef(upstream, repository, a_digest(name))


def true_digest(blob: BlobId, piece: int) -> bytes:
    return hashlib.sha256(f"{blob} {piece}".encode()).digest()


@dataclass
class ReadLog:
    started_at: float
    ready_at: float | None = None
    done_at: float | None = None
    source: str = ""
    upto: int = 0
    refusal: m.Refusal | None = None
    passthrough: bool = False


@dataclass
class Node:
    info: m.PeerInfo
    machine: PeerMachine
    disk: dict[BlobId, dict[int, bytes]] = field(default_factory=dict)
    keys: dict[BlobId, tuple[Any, int, int]] = field(default_factory=dict)
    done: dict[Digest, tuple[int, bytes]] = field(default_factory=dict)
    alive: bool = True
    lies: bool = False
    full: bool = False
    timer: float | None = None
    heard: int = 0
    n_sending: int = 0
    n_sent: int = 0
    line: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)


@dataclass
class Flow:
    up: PeerId
    down: PeerId
    left: float
    done: Callable[[], None]
    rate: float = 0.0


class Links:
    """Every node has an uplink and a downlink of `rate`, shared fairly by its running transfers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.flows: list[Flow] = []
        self._at = 0.0
        self._version = 0

    def begin(self, up: PeerId, down: PeerId, n_bytes: int, done: Callable[[], None]) -> None:
        self._move()
        self.flows.append(Flow(up, down, float(n_bytes), done))
        self._share()

    def _move(self) -> None:
        now = self.world.now
        for flow in self.flows:
            flow.left -= flow.rate * (now - self._at)
        self._at = now

    def _share(self) -> None:
        users: dict[tuple[str, PeerId], list[Flow]] = {}
        for flow in self.flows:
            users.setdefault(("up", flow.up), []).append(flow)
            users.setdefault(("down", flow.down), []).append(flow)
            flow.rate = 0.0
        left = dict.fromkeys(users, self.world.rate)
        waiting = {link: len(flows) for link, flows in users.items()}
        while waiting:
            # Max-min fairness: the tightest link gives its flows what they get.
            link = min(waiting, key=lambda each: left[each] / waiting[each])
            share = left[link] / waiting[link]
            for flow in users[link]:
                if flow.rate == 0.0:
                    flow.rate = share
                    for other in (("up", flow.up), ("down", flow.down)):
                        left[other] = max(left[other] - share, 1.0)
                        waiting[other] -= 1
                        if waiting[other] == 0:
                            del waiting[other]
        self._version += 1
        version = self._version
        if self.flows:
            soonest = min(flow.left / flow.rate for flow in self.flows)
            self.world.after(max(soonest, 1e-9), lambda: self._tick(version))

    def _tick(self, version: int) -> None:
        if version != self._version:
            return
        self._move()
        over = [flow for flow in self.flows if flow.left <= 1.0]
        self.flows = [flow for flow in self.flows if flow.left > 1.0]
        self._share()
        for flow in over:
            flow.done()


class World:
    def __init__(
        self,
        n_peers: int = 4,
        zones: int = 1,
        seeds: int = 1,
        seed: int = 0,
        rate: float = 100e6,
        origin_rate: float = 100e6,
        latency_s: float = 0.001,
        origin_latency_s: float = 0.02,
        shard_limits: m.ShardLimits | None = None,
        upload_slots: int = 5,
    ) -> None:
        self.upload_slots = upload_slots
        self.rng = np.random.default_rng(seed)
        self.now = 0.0
        self.latency_s = latency_s
        self.origin_latency_s = origin_latency_s
        self.rate, self.origin_rate = rate, origin_rate
        self.sizes: dict[BlobId, int] = {}
        self.private: set[BlobId] = set()
        self.missing: set[BlobId] = set()
        self.corrupt_origin: set[BlobId] = set()
        self.origin_bytes: dict[BlobId, int] = {}
        self.origin_requests = 0
        self.origin_down = False
        self.cross_zone_bytes = 0
        self.reads: dict[int, ReadLog] = {}
        self.node_of_read: dict[int, PeerId] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._n = 0
        self.links = Links(self)
        self._origin_free = 0.0
        self.shard_limits = shard_limits or m.ShardLimits()
        self.shard_incarnation = 0
        self.shard_alive = True
        self.shard = self._new_shard()
        self.shard_timer: float | None = None
        self.cancelled: set[tuple[PeerId, int]] = set()
        self.nodes: dict[PeerId, Node] = {}
        for i in range(n_peers):
            role = m.Role.SEED if i < seeds else m.Role.PEER
            self.add_peer(f"p{i}", f"z{i % zones}", role)

    # --- building and breaking ------------------------------------------------------------------

    def _new_shard(self) -> ShardMachine:
        self.shard_incarnation += 1
        quiet = self.now + 1.2 if self.shard_incarnation > 1 else 0.0
        rng = np.random.default_rng(self.rng.integers(1 << 30))
        return ShardMachine(self.shard_limits, self.shard_incarnation, rng, quiet)

    def add_peer(self, name: str, zone: str, role: m.Role, incarnation: int = 1) -> Node:
        peer = PeerId(name)
        info = m.PeerInfo(peer, name, zone, role, f"{name}:1", incarnation, 16, 16)
        node = Node(info, PeerMachine(info, m.PeerLimits(), 1))
        self.nodes[peer] = node
        self._perform(node, node.machine.start())
        return node

    def kill_peer(self, name: str, notice_s: float = 0.5) -> None:
        node = self.nodes[PeerId(name)]
        node.alive = False
        incarnation = node.info.incarnation
        self.after(notice_s, lambda: self._shard_event(m.PeerGone(node.info.peer, incarnation)))
        for read, log in self.reads.items():
            if self.node_of_read[read] == node.info.peer and log.done_at is None:
                log.refusal = m.Refusal(503, "UNKNOWN", "the peer died")

    def restart_peer(self, name: str) -> Node:
        old = self.nodes[PeerId(name)]
        new = self.add_peer(name, old.info.zone, old.info.role, old.info.incarnation + 1)
        new.disk, new.keys, new.done = old.disk, old.keys, old.done
        for digest, (size, digests) in old.done.items():
            geometry = Geometry.of(size)
            found = m.BlobFound(
                digest, None, size, geometry.piece_size, geometry.all_pieces, digests
            )
            self._event(new, found)
        for blob, pieces in old.disk.items():
            key, size, piece_size = old.keys[blob]
            digests = b"".join(
                pieces.get(p, bytes(32)) for p in range(Geometry(size, piece_size).n_pieces)
            )
            have = sum(1 << p for p in pieces)
            found = m.BlobFound(key.digest, key.upstream, size, piece_size, have, digests)
            self._event(new, found)
        self._event(new, m.StoreRecovered())
        return new

    def kill_shard(self, down_s: float = 1.0) -> None:
        self.shard_alive = False
        self.after(down_s, self._shard_back)

    def _shard_back(self) -> None:
        self.shard = self._new_shard()
        self.shard_alive = True

    def blob(self, name: str, size: int) -> BlobRef:
        ref = a_ref(name)
        self.sizes[ref.id] = size
        return ref

    # --- reading --------------------------------------------------------------------------------

    def read(
        self,
        name: str,
        ref: BlobRef,
        start: int = 0,
        stop: int | None = None,
        sponsor: bool = False,
    ) -> int:
        number = len(self.reads) + 1
        self.reads[number] = ReadLog(self.now)
        node = self.nodes[PeerId(name)]
        self.node_of_read[number] = node.info.peer
        self._event(node, m.ReadStarted(number, ref, start, stop, sponsor))
        return number

    # --- time -----------------------------------------------------------------------------------

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        self._n += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._n, what))

    def run(self, until: float, check: bool = True) -> None:
        """Run to the given time; timers of machines are honoured at the time they asked for."""
        for node in self.nodes.values():
            self._heartbeat(node)
        while True:
            timers = [
                (n.timer, p) for p, n in self.nodes.items() if n.alive and n.timer is not None
            ]
            head = self._queue[0][0] if self._queue else float("inf")
            peer_at, who = min(timers, default=(float("inf"), PeerId("")))
            assert peer_at is not None
            shard_at = self.shard_timer if self.shard_timer is not None else float("inf")
            if not self.shard_alive:
                shard_at = float("inf")
            at = min(head, peer_at, shard_at)
            if at > until:
                self.now = until
                return
            self.now = max(self.now, at)
            if at == head:
                heapq.heappop(self._queue)[2]()
            elif at == peer_at:
                node = self.nodes[who]
                self._perform(node, node.machine.handle_timer(self.now))
            else:
                out = self.shard.handle_timer(self.now)
                self.shard_timer = self.shard.next_timer()
                self._deliver(out)
            if check:
                self.check()

    def check(self) -> None:
        self.shard.check_invariants()
        for node in self.nodes.values():
            if node.alive:
                node.machine.check_invariants()
        for log in self.reads.values():
            assert log.done_at is None or log.ready_at is not None

    # --- wiring ---------------------------------------------------------------------------------

    def _heartbeat(self, node: Node) -> None:
        if self.nodes.get(node.info.peer) is not node or not node.alive:
            return
        self._report(node, ())
        self.after(1.0, lambda: self._heartbeat(node))

    def _report(self, node: Node, items: tuple[m.ReportItem, ...]) -> None:
        def arrive() -> None:
            if not self.shard_alive:
                if node.alive:
                    self._event(node, m.ShardLost(0))
                    if items:
                        self.after(0.2, lambda: self._report(node, items))
                return
            self._shard_event(m.Reported(node.info.peer, node.info.incarnation, items))
            if not node.alive:
                return
            if node.heard != self.shard_incarnation:
                first = node.heard == 0
                node.heard = self.shard_incarnation
                if not first:
                    self._event(node, m.ShardReborn(0))
            self._event(node, m.ShardHeard(0))

        self.after(self.latency_s, arrive)

    def _shard_event(self, event: m.ShardEvent) -> None:
        if not self.shard_alive:
            return
        out = self.shard.handle(event, self.now)
        self.shard_timer = self.shard.next_timer()
        self._deliver(out)

    def _deliver(self, out: list[m.Deliver]) -> None:
        for deliver in out:
            node = self.nodes[deliver.peer]
            message = deliver.message
            self.after(self.latency_s, lambda n=node, x=message: self._event(n, m.ShardSaid(x)))

    def _event(self, node: Node, event: m.PeerEvent) -> None:
        if node.alive and self.nodes.get(node.info.peer) is node:
            self._perform(node, node.machine.handle(event, self.now))

    def _perform(self, node: Node, commands: list[m.PeerCommand]) -> None:
        node.timer = node.machine.next_timer()
        tells: list[m.ReportItem] = []
        for command in commands:
            if isinstance(command, m.Tell):
                tells.append(command.item)
            else:
                self._command(node, command)
        if tells:
            self._report(node, tuple(tells))

    def _command(self, node: Node, command: m.PeerCommand) -> None:
        match command:
            case m.OpenPartial(key, size, piece_size):
                if node.full:
                    self.after(0, lambda: self._event(node, m.StoreFull(key.id)))
                    return
                node.disk.setdefault(key.id, {})
                node.keys[key.id] = (key, size, piece_size)
            case m.FetchPiece():
                self._fetch_piece(node, command)
            case m.FetchSpan():
                self._fetch_span(node, command)
            case m.CancelAttempt(attempt):
                self.cancelled.add((node.info.peer, attempt))
            case m.Confirm(blob, piece, digest):
                node.disk[blob][piece] = digest
            case m.HashPiece(blob, piece):
                digest = true_digest(blob, piece)
                self.after(0.001, lambda: self._event(node, m.PieceHashed(blob, piece, digest)))
            case m.Promote(blob):
                self.after(0.01, lambda: self._promote(node, blob))
            case m.DropPartial(blob):
                node.disk.pop(blob, None)
            case m.ReadReady(read, _, _, source, _, upto):
                log = self.reads[read]
                log.ready_at, log.source, log.upto = self.now, source, upto
                self._check_served(node, read)
            case m.ReadProgress(read, upto):
                self.reads[read].upto = upto
            case m.ReadDone(read):
                self.reads[read].done_at = self.now
            case m.ReadFailed(read, refusal):
                self.reads[read].refusal = refusal
            case m.ReadPassthrough(read):
                self.reads[read].passthrough = True
            case m.ReadWaiting():
                pass

    def _check_served(self, node: Node, read: int) -> None:
        blob = node.machine._reads.get(read)
        if blob is not None and blob in node.disk and blob not in self.corrupt_origin:
            for piece, digest in node.disk[blob].items():
                assert digest == true_digest(blob, piece), "a wrong byte is visible to readers"

    def _promote(self, node: Node, blob: BlobId) -> None:
        key, size, _ = node.keys[blob]
        geometry = Geometry.of(size)
        if blob not in node.disk:
            return
        pieces = node.disk.pop(blob)
        right = all(pieces.get(p) == true_digest(blob, p) for p in range(geometry.n_pieces))
        if not right:
            self._event(node, m.PromotionFailed(blob, corrupt=True))
            return
        digests = b"".join(pieces[p] for p in range(geometry.n_pieces))
        node.done[key.digest] = (size, digests)
        self._event(node, m.Promoted(blob, digests))

    def _fetch_piece(self, node: Node, command: m.FetchPiece) -> None:
        deadline = self.now + 10.0

        def attempt() -> None:
            if (node.info.peer, command.attempt) in self.cancelled:
                return
            parent = self.nodes[command.parent]
            if not parent.alive:
                self._event(node, m.PieceFailed(command.attempt, m.Trouble.DEAD))
                return
            digest = parent.disk.get(command.blob, {}).get(command.piece)
            for done, (_, digests) in parent.done.items():
                if done == node.machine.blobs[command.blob].ref.digest:
                    digest = digests[command.piece * 32 : command.piece * 32 + 32]
            if digest is None:
                if command.wait and self.now < deadline:
                    self.after(0.005, attempt)
                else:
                    self._event(node, m.PieceFailed(command.attempt, m.Trouble.MISSING))
                return
            if parent.lies:
                digest = hashlib.sha256(b"lie").digest()
            n_bytes = command.stop - command.start
            if parent.info.zone != node.info.zone:
                self.cross_zone_bytes += n_bytes

            def turn() -> None:
                parent.n_sent += 1
                self.links.begin(
                    command.parent, node.info.peer, n_bytes, lambda: arrive(digest, parent)
                )

            if parent.n_sending < self.upload_slots - (command.turn > 0):
                parent.n_sending += 1
                turn()
            else:
                self._n += 1
                heapq.heappush(parent.line, (command.turn, self._n, turn))

        def arrive(digest: bytes, parent: Node) -> None:
            parent.n_sending -= 1
            if parent.line and parent.n_sending < self.upload_slots - (parent.line[0][0] > 0):
                parent.n_sending += 1
                heapq.heappop(parent.line)[2]()
            if (node.info.peer, command.attempt) in self.cancelled:
                return
            if not parent.alive:
                self._event(node, m.PieceFailed(command.attempt, m.Trouble.DEAD))
            else:
                self._event(node, m.PieceArrived(command.attempt, digest))

        self.after(self.latency_s, attempt)

    def _fetch_span(self, node: Node, command: m.FetchSpan) -> None:
        blob = command.ref.id
        self.origin_requests += 1
        state = {"at": command.start}

        def dead() -> bool:
            return not node.alive or (node.info.peer, command.attempt) in self.cancelled

        def refuse(status: int) -> None:
            refusal = m.Refusal(status, "X", "refused")
            self._event(node, m.SpanEnded(command.attempt, refusal))

        def opened() -> None:
            if dead():
                return
            if self.origin_down:
                refuse(503)
                return
            if blob in self.missing:
                refuse(404)
                return
            if blob in self.private and command.sponsor is None:
                refuse(401)
                return
            size = self.sizes[blob]
            public = blob not in self.private
            self._event(node, m.SpanOpened(command.attempt, size, public))
            more()

        def more() -> None:
            if dead():
                return
            geometry = Geometry.of(self.sizes[blob])
            stop = min(command.stop, geometry.size)
            if state["at"] >= stop:
                self._event(node, m.SpanEnded(command.attempt, None))
                return
            begin = state["at"]
            piece = begin // geometry.piece_size
            end = min(stop, geometry.span(piece)[1])
            start_at = max(self.now, self._origin_free)
            took = (end - begin) / self.origin_rate
            self._origin_free = start_at + took

            def got() -> None:
                self.origin_bytes[blob] = self.origin_bytes.get(blob, 0) + end - begin
                if dead():
                    return
                state["at"] = end
                if (begin, end) == geometry.span(piece):
                    digest = true_digest(blob, piece)
                    if blob in self.corrupt_origin:
                        digest = hashlib.sha256(b"bad").digest()
                    self._event(node, m.SpanPiece(command.attempt, piece, digest))
                else:
                    self._event(node, m.SpanPart(command.attempt, begin, end))
                more()

            self.after(start_at + took - self.now, got)

        self.after(self.origin_latency_s, opened)
