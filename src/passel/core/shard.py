"""The scheduler shard: who fetches which piece from whom, and who alone goes back to source.

Life of a blob in a shard::

    Wants ──> lease granted ──LeaseOpened──> size known ──Gains──> pieces held ──> edges planned
      │            │ refused by the origin: Refused to those whose credentials it was
      │            │ holder gone or silent: the next holder, a higher token
      └── everybody complete: only the rows stay, as an index of holders

Two kinds of decision. Urgent pieces (a client waits) are given a parent, or demanded from the
lease-holder, in the very call that asks for them. The rest is planned in epochs by
`passel.core.graph`. The state is soft: it is rebuilt from what peers announce.

A peer says things at least once and in any order; every handler is idempotent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from typing_extensions import assert_never

from passel.core import bitfield, rendezvous
from passel.core.copies import CompleteCopies, CopyIndex
from passel.core.messages import (
    Announced,
    Complaint,
    Corrupt,
    Deliver,
    Demand,
    Digests,
    Discard,
    Draining,
    Edge,
    Gains,
    Hello,
    Holds,
    LeaseFailed,
    LeaseHeld,
    LeaseOpened,
    Loses,
    PeerGone,
    PeerInfo,
    PeersExpected,
    Plan,
    Refusal,
    Refused,
    Reported,
    ReportItem,
    Revoke,
    Role,
    SeenPublic,
    ShardEvent,
    ShardLimits,
    Stat,
    Trouble,
    UnderWay,
    Unwants,
    Wants,
)
from passel.core.pace import Pace
from passel.core.planning import plan_bulk
from passel.core.silence import Silence
from passel.core.swarm import EXPIRED_MAX, Coming, LeaseState, Row, Swarm, Traffic
from passel.core.trust import judge
from passel.core.urgent import urgent_edge
from passel.core.versions import COPIES_SINCE
from passel.ids import BlobId, BlobKey, BlobRef, Digest, PeerId

#: Tokens of a later incarnation of a shard are always higher: 2^32 leases fit into one incarnation.
TOKENS_PER_INCARNATION = 1 << 32


#: However many peers there are, and however slow.
EPOCH_S_MAX = 0.5
#: For blobs that nobody looks at: nobody would notice there that a peer is slow no more.
NO_PACE = Pace()
#: How long a child is not sent to a parent that it could not reach, seconds.
BAN_S = 10.0


class ShardMachine:
    """One scheduler shard. Touched only through `handle` and `handle_timer`.

    `incarnation` grows with every start; `quiet_until` keeps a restarted shard from granting leases
    before its peers had time to say what they hold.
    """

    def __init__(
        self,
        limits: ShardLimits,
        incarnation: int,
        rng: np.random.Generator,
        quiet_until: float = 0.0,
    ) -> None:
        self.limits = limits
        self.peers: dict[PeerId, PeerInfo] = {}
        self.swarms: dict[BlobId, Swarm] = {}
        self.copies = CopyIndex()
        self.traffic = Traffic()
        self._by_digest: dict[Digest, dict[BlobId, None]] = {}
        self._active: dict[BlobId, None] = {}
        self._turn = 1
        self._next_token = incarnation * TOKENS_PER_INCARNATION
        self._rng = rng
        self._quiet_until = quiet_until
        #: Who must have announced for the quiet to end early (empty: nobody said), and who has.
        self._expected: set[PeerId] = set()
        self._heard: set[PeerId] = set()
        self._silence = Silence()
        self._epoch_at: float | None = None
        self._out: list[Deliver] = []
        #: Counters for telemetry.
        self.n_edges = 0
        self.n_epochs = 0
        self.n_leases = 0

    # --- the interface --------------------------------------------------------------------------

    def handle(self, event: ShardEvent, now: float) -> list[Deliver]:
        """Take in one event; what is to be said to peers comes back."""
        self._out = []
        dirty: dict[BlobId, None] = {}
        match event:
            case Reported(peer, incarnation, items):
                for item in items:
                    self._item(peer, incarnation, item, now, dirty)
                if self._is_alive(peer, incarnation):
                    self._silence.heard(peer, now)
                for silent in self._silence.lost(now):
                    self._forget_silent(silent, now, dirty)
            case PeersExpected(peers):
                self._expected = set(peers)
            case Draining(peers):
                self.copies.drain(peers)
            case PeerGone(peer, incarnation, for_good):
                if incarnation is None or self._is_alive(peer, incarnation):
                    self._peer_gone(peer, now, now, dirty, for_good)
            case _:
                assert_never(event)
        if now < self._quiet_until and self._expected and self._expected <= self._heard:
            self._quiet_until = now
            dirty.update(self._active)
        for blob in dirty:
            self._serve(self.swarms[blob], now)
        if now >= self._quiet_until:
            # Before that every copy looks like the last one.
            for member, word in self.copies.news(self._keeps_last_copies).items():
                self._say(member, word)
        return self._out

    def next_timer(self) -> float | None:
        return self._epoch_at

    def handle_timer(self, now: float) -> list[Deliver]:
        """An epoch: give up what is late, plan the bulk, renew or take back leases."""
        self._out = []
        self.n_epochs += 1
        self.traffic.end_epoch()
        n_hungry = 0
        for blob in list(self._active):
            swarm = self.swarms[blob]
            n_hungry += sum(swarm.row_is_hungry(row) for row in swarm.rows.values())
            self._expire(swarm, now)
        self._judge_pace(now)
        for blob in list(self._active):
            swarm = self.swarms[blob]
            self._serve(swarm, now)
            self._bulk(swarm, now)
            if not swarm.is_wanted and swarm.lease is None:
                swarm.heed_pace(NO_PACE, can_fetch=False)
                del self._active[blob]
        self._epoch_at = now + self._epoch_s(n_hungry) if self._active else None
        self._trim()
        return self._out

    def _epoch_s(self, n_hungry: int) -> float:
        limits = self.limits
        shortest = max(limits.epoch_s, limits.epoch_per_flight * self.traffic.flight_s)
        return min(shortest + n_hungry * limits.epoch_per_peer_s, EPOCH_S_MAX)

    def check_invariants(self) -> None:
        """Re-derive what is kept twice. Raises AssertionError."""
        up: dict[PeerId, int] = {}
        down: dict[PeerId, int] = {}
        for blob, swarm in self.swarms.items():
            assert swarm.key.id == blob
            assert blob in self._by_digest[swarm.key.digest]
            swarm.check_invariants()
            for child, row in swarm.rows.items():
                assert child in self.peers, "a row of an unknown peer"
                for coming in row.coming.values():
                    up[coming.parent] = up.get(coming.parent, 0) + 1
                    down[child] = down.get(child, 0) + 1
            if swarm.is_wanted or swarm.lease is not None:
                assert blob in self._active, "wanted, and never looked at"
        self.copies.check_invariants()
        for counted, side in ((up, self.traffic.up), (down, self.traffic.down)):
            assert counted == {peer: n for peer, n in side.outstanding.items() if n}, "traffic"

    # --- what peers say -------------------------------------------------------------------------

    def _item(
        self,
        peer: PeerId,
        incarnation: int,
        item: ReportItem,
        now: float,
        dirty: dict[BlobId, None],
    ) -> None:
        if isinstance(item, Hello):
            self._hello(item.info, now, dirty)
            return
        if not self._is_alive(peer, incarnation):
            return  # a late word of a peer that is gone, or of its former life
        match item:
            case Holds():
                self._holds(peer, item, now, dirty)
            case Announced():
                self._announced(peer, dirty)
            case Gains():
                self._gains(peer, item, now, dirty)
            case Loses(digest, upstream):
                self._loses(peer, digest, upstream, dirty)
            case Wants():
                self._wants(peer, item, now, dirty)
            case Unwants(blob):
                self._unwants(peer, blob)
            case UnderWay(blob, pieces):
                swarm = self.swarms.get(blob)
                if swarm is not None:
                    swarm.only_under_way(peer, pieces)
                    dirty[blob] = None
            case Complaint():
                self._complaint(peer, item, now, dirty)
            case LeaseOpened() | LeaseHeld() | LeaseFailed():
                self._lease_item(peer, item, now, dirty)
            case Corrupt(blob):
                self._corrupt(blob, now, dirty)
            case SeenPublic(ref, ttl_s):
                swarm = self._swarm(ref.key, now)
                swarm.public[ref.repository] = now + ttl_s
            case _:
                assert_never(item)

    def _hello(self, info: PeerInfo, now: float, dirty: dict[BlobId, None]) -> None:
        known = self.peers.get(info.peer)
        if known is not None and known.incarnation > info.incarnation:
            return
        if known is not None and known.incarnation < info.incarnation:
            # A new life of the process: it will say itself what its disk kept.
            self._peer_gone(info.peer, now, now, dirty)
        self.peers[info.peer] = info

    def _announced(self, peer: PeerId, dirty: dict[BlobId, None]) -> None:
        self._heard.add(peer)
        for blob, swarm in self.swarms.items():
            if swarm.is_back(peer):
                dirty[blob] = None

    def _holds(self, peer: PeerId, item: Holds, now: float, dirty: dict[BlobId, None]) -> None:
        if item.upstream is None:
            copies = self.copies.add(item.digest, item.size, item.digests, peer)
            for blob in self._by_digest.get(item.digest, ()):
                self._add_copies(self.swarms[blob], copies, (peer,))
                dirty[blob] = None
            return
        swarm = self._swarm(BlobKey(item.upstream, item.digest), 0.0)
        swarm.open(item.size)
        if swarm.geometry is None or swarm.geometry.size != item.size:
            return  # it speaks of other bytes; the digest check of whoever completes will tell
        swarm.row(peer)
        for piece in bitfield.pieces(item.have & swarm.geometry.all_pieces):
            if swarm.learn(piece, item.digests[piece * 32 : piece * 32 + 32]):
                swarm.gain(peer, piece, now)
        dirty[swarm.key.id] = None

    def _gains(self, peer: PeerId, item: Gains, now: float, dirty: dict[BlobId, None]) -> None:
        swarm = self.swarms.get(item.blob)
        if swarm is None or swarm.geometry is None:
            return
        row = swarm.row(peer)
        n_pieces = swarm.geometry.n_pieces
        fresh: list[tuple[int, bytes]] = []
        is_holder = swarm.lease is not None and swarm.lease.token == item.token
        for piece, digest in item.pieces:
            if piece >= n_pieces or row.have >> piece & 1:
                continue
            known = swarm.digest(piece)
            if not swarm.learn(piece, digest, is_authority=is_holder):
                continue
            if known != digest:
                fresh.append((piece, digest))
            swarm.gain(peer, piece, now)
        if swarm.lease is not None and is_holder:
            swarm.lease.progress_at = now
            if swarm.lease.todo == 0:
                swarm.lease = None
        self._tell_digests(swarm, fresh)
        dirty[item.blob] = None

    def _tell_digests(self, swarm: Swarm, fresh: list[tuple[int, bytes]]) -> None:
        if not fresh:
            return
        bits = bitfield.of(piece for piece, _ in fresh)
        for peer, row in swarm.rows.items():
            awaited = row.undigested & bits
            if awaited:
                row.undigested &= ~awaited
                pieces = tuple((p, d) for p, d in fresh if awaited >> p & 1)
                self._say(peer, Digests(swarm.key.id, pieces))

    def _loses(
        self, peer: PeerId, digest: Digest, upstream: str | None, dirty: dict[BlobId, None]
    ) -> None:
        if upstream is None:
            self.copies.remove(digest, peer)
            blobs: Iterable[BlobId] = self._by_digest.get(digest, ())
        else:
            blobs = (BlobKey(upstream, digest).id,)
        for blob in blobs:
            swarm = self.swarms.get(blob)
            row = swarm.rows.get(peer) if swarm else None
            if swarm is not None and row is not None:
                swarm.lose(peer, row.have)
                swarm.acquit(peer)
                swarm.take_back(peer)
                dirty[blob] = None

    def _wants(self, peer: PeerId, item: Wants, now: float, dirty: dict[BlobId, None]) -> None:
        swarm = self._swarm(item.ref.key, now)
        swarm.touched_at = now
        row = swarm.row(peer)
        row.ref = item.ref
        row.rest = item.rest
        row.sponsor = item.sponsor
        if swarm.geometry is None:
            row.ranges = item.urgent
        else:
            row.urgent = swarm.pieces_of(item.urgent) & ~row.have
            swarm.unserved[peer] = None
            self._say_stat(swarm, peer, row, now)
        self._wake(swarm, now)
        dirty[swarm.key.id] = None

    def _unwants(self, peer: PeerId, blob: BlobId) -> None:
        swarm = self.swarms.get(blob)
        row = swarm.rows.get(peer) if swarm else None
        if swarm is not None and row is not None:
            row.rest, row.urgent, row.ranges, row.sponsor = False, 0, (), False
            for piece in list(row.coming):
                swarm.give_up(peer, piece)

    def _complaint(
        self, peer: PeerId, item: Complaint, now: float, dirty: dict[BlobId, None]
    ) -> None:
        swarm = self.swarms.get(item.blob)
        row = swarm.rows.get(peer) if swarm else None
        if swarm is None or row is None:
            return
        coming = row.coming.get(item.piece)
        if coming is not None and coming.parent == item.parent:
            swarm.give_up(peer, item.piece)
        match item.trouble:
            case Trouble.CORRUPT:
                swarm.ban(peer, item.parent, math.inf)
            case Trouble.DEAD:
                swarm.ban(peer, item.parent, now + BAN_S)
            case Trouble.STALLED:
                # A connection may be lost without its peer: only twice in a row is too often.
                if item.parent in row.stalled:
                    swarm.ban(peer, item.parent, now + BAN_S)
                row.stalled.add(item.parent)
            case Trouble.MISSING:
                parent = swarm.rows.get(item.parent)
                if parent is not None and parent.have >> item.piece & 1:
                    swarm.lose(item.parent, 1 << item.piece)
                    swarm.recount()
            case Trouble.BUSY:
                pass
            case _:
                assert_never(item.trouble)
        dirty[item.blob] = None
        answers = item.trouble not in (Trouble.DEAD, Trouble.STALLED)
        if not answers and self._silence.is_suspect(item.parent, now):
            # Two who hear nothing of it are enough: its copies stand in the way of a lease.
            self._forget_silent(item.parent, now, dirty)

    def _corrupt(self, blob: BlobId, now: float, dirty: dict[BlobId, None]) -> None:
        """All partial copies share the wrong piece; complete ones were checked and stay."""
        swarm = self.swarms.get(blob)
        if swarm is None:
            return
        swarm.corruptions += 1
        self._revoke(swarm)
        for peer, row in swarm.rows.items():
            for piece in list(row.coming):
                swarm.settle(peer, piece)
            self._say(peer, Discard(blob))
        swarm.forget_bytes()
        copies = self.copies.by_digest.get(swarm.key.digest)
        if copies is not None:
            self._add_copies(swarm, copies, copies.holders)
        if swarm.corruptions > self.limits.corruptions_max:
            self._refuse(
                swarm,
                Refusal(502, "UNKNOWN", "the origin's bytes do not have the digest of this blob"),
                lambda _: True,
            )
            swarm.corruptions = 0
        dirty[blob] = None

    # --- leases ---------------------------------------------------------------------------------

    def _lease_item(
        self,
        peer: PeerId,
        item: LeaseOpened | LeaseHeld | LeaseFailed,
        now: float,
        dirty: dict[BlobId, None],
    ) -> None:
        if isinstance(item, LeaseHeld):
            swarm = self._swarm(item.ref.key, now)
            if swarm.lease is None and item.todo:
                swarm.row(peer)
                swarm.lease = LeaseState(item.token, peer, item.ref, None, None, now)
                if swarm.geometry is not None:
                    swarm.lease.todo = item.todo & ~swarm.held
                self._wake(swarm, now)
            dirty[swarm.key.id] = None
            return
        found = self.swarms.get(item.blob)
        if found is None or found.lease is None:
            return
        lease = found.lease
        if lease.token != item.token or lease.holder != peer:
            return  # a fenced-off holder
        dirty[item.blob] = None
        if isinstance(item, LeaseFailed):
            self._lease_failed(found, lease, item.refusal, now)
            return
        lease.progress_at = now
        found.failures = 0
        if found.geometry is None:
            found.open(item.size)
        if item.public:
            found.public[lease.ref.repository] = now + self.limits.public_ttl_s
        for member, row in found.rows.items():
            if row.wants_anything:
                self._say_stat(found, member, row, now)

    def _lease_failed(self, swarm: Swarm, lease: LeaseState, refusal: Refusal, now: float) -> None:
        swarm.lease = None
        if 400 <= refusal.status < 500:
            # The origin's own word about these credentials in this repository. Whoever else waits
            # with other credentials, or for another repository, gets an attempt of his own.
            def same_question(row: Row, peer: PeerId | None = lease.sponsor) -> bool:
                if row.ref is None or row.ref.repository != lease.ref.repository:
                    return False
                return not row.sponsor if peer is None else row is swarm.rows.get(peer)

            self._refuse(swarm, refusal, same_question)
            return
        swarm.failing[lease.holder] = now + self.limits.fetch_again_s
        swarm.failures += 1
        if swarm.failures >= 3 or self._fetcher(swarm, now) is None:
            swarm.failures = 0
            self._refuse(swarm, refusal, lambda _: True)

    def _refuse(self, swarm: Swarm, refusal: Refusal, whom: Callable[[Row], bool]) -> None:
        for peer, row in swarm.rows.items():
            if row.wants_anything and whom(row):
                row.rest, row.urgent, row.ranges, row.sponsor = False, 0, (), False
                self._say(peer, Refused(swarm.key.id, refusal))

    def _revoke(self, swarm: Swarm) -> None:
        if swarm.lease is not None:
            self._say(swarm.lease.holder, Revoke(swarm.key.id, swarm.lease.token))
            swarm.lease = None

    def _fetcher(self, swarm: Swarm, now: float) -> PeerId | None:
        """Who goes to the origin: the blob's seed, else one of those who want it.

        Whoever is slow, or drains, only if nobody else can: its own clients still want their bytes.
        """
        able = [p for p in self.peers if swarm.failing.get(p, 0.0) <= now]
        fast = [p for p in able if not self.traffic.pace.is_slow(p)]
        return self._fetcher_of(swarm, fast) or self._fetcher_of(swarm, able)

    def _fetcher_of(self, swarm: Swarm, able: list[PeerId]) -> PeerId | None:
        trusted = [p for p in able if not swarm.is_aside(p)]
        staying = [p for p in trusted if p not in self.copies.draining]
        seeds = [p for p in staying if self.peers[p].role is Role.SEED]
        hungry = [p for p in able if p in swarm.rows and swarm.row_is_hungry(swarm.rows[p])]
        # From whom nobody takes anything fetches for nobody but itself.
        hungry = [p for p in hungry if not swarm.is_aside(p)] or hungry
        others = [p for p in hungry if p not in self.copies.draining]
        owner = rendezvous.owner(str(swarm.key.digest), seeds or others or hungry)
        return None if owner is None else PeerId(owner)

    def _lease(self, swarm: Swarm, now: float) -> None:
        """See to it that what nobody holds is being fetched, by one peer."""
        if now < self._quiet_until:
            return
        if swarm.is_provided_for:
            return
        limits = self.limits
        needed = swarm.needed(now - limits.revive_s, now - limits.grace_s)
        lease = swarm.lease
        if lease is not None and swarm.is_aside(lease.holder):
            if self._fetcher(swarm, now) != lease.holder:
                self._revoke(swarm)  # others wait as well now, and would not take it from there
                lease = None
            elif needed is not None:
                needed &= ~swarm.rows[lease.holder].have
        if lease is not None:
            if needed is not None and (lease.todo is None or needed & ~lease.todo):
                lease.todo = needed | (lease.todo or 0)
                self._say_lease(swarm, lease)
            return
        if needed == 0 or not swarm.is_wanted:
            return
        holder = self._fetcher(swarm, now)
        asker = swarm.asker()
        if holder is None or asker is None:
            return
        ref = swarm.rows[asker].ref
        assert ref is not None
        has = swarm.row(holder).have
        if needed is not None and not (needed := needed & ~has):
            return
        self._next_token += 1
        self.n_leases += 1
        sponsor = asker if swarm.rows[asker].sponsor else None
        swarm.lease = LeaseState(self._next_token, holder, ref, sponsor, needed, now)
        self._say_lease(swarm, swarm.lease)

    def _say_lease(self, swarm: Swarm, lease: LeaseState) -> None:
        sponsor = self.peers.get(lease.sponsor) if lease.sponsor else None
        ranges: list[tuple[int, int]] = []
        if swarm.geometry is None:
            for row in swarm.rows.values():
                ranges.extend(row.ranges)
        message = lease.message(
            tuple(sorted(set(ranges))[:64]),
            sponsor.address if sponsor else None,
            self.limits.lease_ttl_s,
        )
        self._say(lease.holder, message)

    # --- urgent pieces --------------------------------------------------------------------------

    def _serve(self, swarm: Swarm, now: float) -> None:
        """What cannot wait for the epoch: leases, and parents for pieces that clients wait for."""
        if judge(swarm, self.peers, now):
            self._revoke(swarm)
        self._lease(swarm, now)
        if swarm.geometry is None:
            return
        waiting = swarm.waiting()
        demanded = 0
        for peer, row in waiting:
            edges: list[Edge] = []
            for piece in bitfield.pieces(row.urgent & ~row.coming_bits & ~row.have):
                if row.is_slow_child and any(c.urgent for c in row.coming.values()):
                    break  # side by side they would come later, all of them
                edge = urgent_edge(swarm, self.peers, self._rng, peer, piece)
                if edge is None:
                    demanded |= 1 << piece
                    continue
                if not swarm.held >> piece & 1:
                    demanded |= 1 << piece
                until = now + self.limits.urgent_ttl_s * row.patience
                coming = Coming(edge.parent, now, until, edge.turn)
                swarm.expect(peer, piece, coming, edge.digest)
                edges.append(edge)
            if edges:
                self._say_plan(swarm, peer, edges)
        self._demand(swarm, demanded, now)

    def _demand(self, swarm: Swarm, pieces: int, now: float) -> None:
        """Tell the lease-holder what clients wait for; again every quarter of a second."""
        lease = swarm.lease
        if lease is None or lease.todo is None or swarm.geometry is None:
            return
        if not pieces and now < lease.demanded_at + 0.25:
            return
        for row in swarm.rows.values():
            if row.urgent & row.coming_bits:
                for piece, coming in row.coming.items():
                    if coming.urgent and coming.parent == lease.holder:
                        pieces |= 1 << piece
        pieces &= lease.todo
        if not pieces & ~lease.demanded and now < lease.demanded_at + 0.25:
            return
        lease.demanded, lease.demanded_at = pieces, now
        if pieces:
            spans = tuple(swarm.geometry.span(piece) for piece in bitfield.pieces(pieces))
            self._say(lease.holder, Demand(swarm.key.id, lease.token, spans[:256]))

    # --- epochs ---------------------------------------------------------------------------------

    def _bulk(self, swarm: Swarm, now: float) -> None:
        if swarm.geometry is None or not swarm.held:
            return
        plan = plan_bulk(swarm, self.peers, self._rng, now, self._turn)
        self._turn += plan.n_steps
        swarm.epoch += 1
        for child, edges in plan.edges.items():
            until = now + self.limits.edge_ttl_s * swarm.rows[child].patience
            for edge in edges:
                coming = Coming(edge.parent, now, until, edge.turn)
                swarm.expect(child, edge.piece, coming, edge.digest)
            self._say_plan(swarm, child, edges, plan.fallbacks.get(child, ()))

    def _expire(self, swarm: Swarm, now: float) -> None:
        swarm.forgive(now)
        for peer, row in swarm.rows.items():
            late = [p for p, coming in row.coming.items() if coming.is_late(now, row)]
            if late:
                row.n_expired = min(row.n_expired + 1, EXPIRED_MAX)
            for piece in late:
                swarm.give_up(peer, piece)
        lease = swarm.lease
        if lease is not None and now - lease.progress_at > self.limits.lease_ttl_s:
            swarm.failing[lease.holder] = now + self.limits.lease_ttl_s
            self._revoke(swarm)

    def _judge_pace(self, now: float) -> None:
        """Nobody waits for peers that are far slower than others."""
        pace = self.traffic.pace
        if not pace.is_due(now):
            return
        swarms = self.wanted_swarms()
        piece_size = max((s.geometry.piece_size for s in swarms if s.geometry), default=0)
        pace.judge((pair for swarm in swarms for pair in swarm.ready_pairs()), piece_size, now)
        for swarm in swarms:
            fetcher = self._fetcher(swarm, now) if pace.slow_parents else None
            # Where nobody faster can fetch: better slow than not at all.
            can_fetch = fetcher is not None and not pace.is_slow(fetcher)
            swarm.heed_pace(pace, can_fetch)
            if can_fetch and swarm.lease is not None and swarm.lease.holder in pace.slow_parents:
                self._revoke(swarm)

    def _is_alive(self, peer: PeerId, incarnation: int) -> bool:
        known = self.peers.get(peer)
        return known is not None and known.incarnation == incarnation

    def _forget_silent(self, peer: PeerId, now: float, dirty: dict[BlobId, None]) -> None:
        # It died when it fell silent: its disk was waited for since then.
        self._peer_gone(peer, self._silence.since(peer), now, dirty)

    def _peer_gone(
        self,
        peer: PeerId,
        died_at: float,
        now: float,
        dirty: dict[BlobId, None],
        for_good: bool = False,
    ) -> None:
        for blob, swarm in self.swarms.items():
            if swarm.forget_peer(peer, died_at, for_good):
                dirty[blob] = None
                if swarm.is_wanted:
                    self._wake(swarm, now)
        self.copies.forget(peer)
        self.peers.pop(peer, None)
        self._silence.forget(peer)
        self._heard.discard(peer)
        if for_good:
            self._expected.discard(peer)
        self.traffic.forget(peer)

    # --- small things ---------------------------------------------------------------------------

    def _swarm(self, key: BlobKey, now: float) -> Swarm:
        swarm = self.swarms.get(key.id)
        if swarm is None:
            swarm = self.swarms[key.id] = Swarm(key, self.traffic, touched_at=now)
            self._by_digest.setdefault(key.digest, {})[key.id] = None
            copies = self.copies.by_digest.get(key.digest)
            if copies is not None:
                self._add_copies(swarm, copies, copies.holders)
        return swarm

    def _add_copies(self, swarm: Swarm, copies: CompleteCopies, holders: Iterable[PeerId]) -> None:
        swarm.open(copies.size)
        geometry = swarm.geometry
        assert geometry is not None
        if geometry.size != copies.size:
            return
        # These digests belong to bytes whose whole digest was verified: they overrule.
        swarm.digests = bytearray(copies.digests)
        swarm.known = geometry.all_pieces
        for peer in holders:
            row = swarm.row(peer)
            for piece in list(row.coming):
                swarm.settle(peer, piece)
            row.have = geometry.all_pieces
            row.urgent = row.undigested = 0
            swarm.held |= row.offers
        if swarm.lease is not None and swarm.held == geometry.all_pieces:
            self._revoke(swarm)

    def _wake(self, swarm: Swarm, now: float) -> None:
        self._active[swarm.key.id] = None
        if self._epoch_at is None:
            self._epoch_at = now + self.limits.epoch_s

    def _keeps_last_copies(self, peer: PeerId) -> bool:
        info = self.peers.get(peer)
        if info is None or info.wire < COPIES_SINCE:
            return False
        return info.role is Role.SEED or peer in self.copies.draining

    def _say(self, peer: PeerId, message: object) -> None:
        self._out.append(Deliver(peer, message))  # type: ignore[arg-type]

    def _say_stat(self, swarm: Swarm, peer: PeerId, row: Row, now: float) -> None:
        assert swarm.geometry is not None
        assert row.ref is not None
        public_s = swarm.public_s(row.ref.repository, now)
        geometry = swarm.geometry
        self._say(peer, Stat(row.ref, geometry.size, geometry.piece_size, public_s))

    def _say_plan(
        self,
        swarm: Swarm,
        child: PeerId,
        edges: list[Edge],
        fallbacks: tuple[PeerId, ...] = (),
    ) -> None:
        self.n_edges += len(edges)
        parents = dict.fromkeys([edge.parent for edge in edges]) | dict.fromkeys(fallbacks)
        addresses = tuple(
            (peer, self.peers[peer].address, self.peers[peer].zone, self.peers[peer].role)
            for peer in parents
        )
        assert swarm.geometry is not None
        size = swarm.geometry.size
        self._say(child, Plan(swarm.key.id, swarm.epoch, size, tuple(edges), addresses, fallbacks))

    def _trim(self) -> None:
        """Forget the blobs that nobody wants and that were touched longest ago, above the limit."""
        surplus = len(self.swarms) - self.limits.blobs_max
        if surplus <= 0:
            return
        idle = [s for s in self.swarms.values() if s.key.id not in self._active]
        for swarm in sorted(idle, key=lambda s: s.touched_at)[:surplus]:
            del self.swarms[swarm.key.id]
            names = self._by_digest[swarm.key.digest]
            names.pop(swarm.key.id, None)
            if not names:
                del self._by_digest[swarm.key.digest]

    def knows_all_of(self, peer: PeerId, now: float) -> bool:
        """Whether the peer has said all that it has, and others had time to say theirs."""
        return now >= self._quiet_until and peer in self._heard

    def wanted_swarms(self) -> list[Swarm]:
        """The blobs that somebody wants, or goes to the origin for."""
        return [self.swarms[blob] for blob in self._active]

    def swarms_of(self, digest: Digest) -> list[Swarm]:
        """The same bytes, under each upstream that they are known of."""
        return [self.swarms[blob] for blob in self._by_digest.get(digest, ())]

    def stat(self, ref: BlobRef, now: float) -> tuple[int | None, float]:
        """(size, seconds for which it counts as public in this repository) of a blob."""
        swarm = self.swarms.get(ref.key.id)
        copies = self.copies.by_digest.get(ref.digest)
        size = copies.size if copies else None
        if swarm is not None and swarm.geometry is not None:
            size = swarm.geometry.size
        return size, swarm.public_s(ref.repository, now) if swarm is not None else 0.0
