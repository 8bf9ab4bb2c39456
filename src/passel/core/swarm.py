"""One blob in a shard: who holds what, who wants what, what is on its way, who goes to the origin.

Only bookkeeping and questions live here; what follows from the answers is decided in `shard`. The
redundant fields (`held`, the counters in `Traffic`) are re-derived by `check_invariants`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from passel.core import bitfield
from passel.core.messages import Lease
from passel.core.pace import Pace
from passel.core.pieces import Geometry
from passel.ids import BlobKey, BlobRef, PeerId

DIGEST_BYTES = 32
#: Edges that a peer has outstanding in each direction, beyond what it moves in an epoch.
DEPTH_MIN = 4
DEPTH_MAX = 64
#: Doublings of the time after which a piece is given up as late; what comes sooner than `IN_TIME_S`
#: ends them.
EXPIRED_MAX = 4
#: How many times its time a piece for a slow child gets in addition.
SLOW_TIMES = 3
IN_TIME_S = 3.0


@dataclass(frozen=True, slots=True)
class Coming:
    """A piece on its way to a peer; given up at `until`."""

    parent: PeerId
    since: float
    until: float
    turn: int

    @property
    def urgent(self) -> bool:
        """A client waits for the piece."""
        return self.turn == 0

    def is_late(self, now: float, row: Row) -> bool:
        """Whether the piece is to be planned anew; for a slow child it would begin anew."""
        more_s = SLOW_TIMES * (self.until - self.since) if row.is_slow_child else 0.0
        return self.until + more_s <= now


@dataclass(slots=True)
class Row:
    """One peer in one blob."""

    have: int = 0
    #: Pieces that a client of this peer waits for right now.
    urgent: int = 0
    #: The same as byte ranges, kept until the geometry is known.
    ranges: tuple[tuple[int, int], ...] = ()
    #: Wants the whole blob, in the background.
    rest: bool = False
    #: What it said when it asked; None for a peer that only holds.
    ref: BlobRef | None = None
    sponsor: bool = False
    coming: dict[int, Coming] = field(default_factory=dict)
    #: Pieces whose edge was handed out before the shard knew their digest.
    undigested: int = 0
    #: Parents that sent wrong bytes to this peer, or could not be reached, and until when they are
    #: not asked: who was away comes back, and may be the only one who has the blob.
    banned: dict[PeerId, float] = field(default_factory=dict)
    #: Parents whose last word to this peer was silence.
    stalled: set[PeerId] = field(default_factory=set)
    #: How much of `rest` was planned is in `coming`; this is the set for quick tests.
    coming_bits: int = 0
    #: It serves wrong bytes: nobody is sent to it for this blob, and what it has does not count.
    is_aside: bool = False
    #: Far slower than others in sending, or in getting, pieces: see `passel.core.pace`.
    is_slow_parent: bool = False
    is_slow_child: bool = False
    #: How often its pieces were given up as late since one came in less than `IN_TIME_S`.
    n_expired: int = 0

    @property
    def can_serve(self) -> bool:
        return not (self.is_aside or self.is_slow_parent)

    @property
    def offers(self) -> int:
        """The pieces that others can get here."""
        return self.have if self.can_serve else 0

    @property
    def patience(self) -> int:
        """How many times the usual time its pieces get. Each that is given up begins at nothing.

        A peer on a slow link would never get any if each had the same time.
        """
        return 1 << self.n_expired

    @property
    def wants_anything(self) -> bool:
        return self.ref is not None and (self.rest or bool(self.urgent) or bool(self.ranges))


@dataclass(slots=True)
class LeaseState:
    """Who goes back to source. `todo` is None until the origin's answer told the size."""

    token: int
    holder: PeerId
    ref: BlobRef
    sponsor: PeerId | None
    todo: int | None
    progress_at: float
    demanded: int = 0
    demanded_at: float = 0.0

    def message(
        self, urgent: tuple[tuple[int, int], ...], sponsor: str | None, ttl_s: float
    ) -> Lease:
        return Lease(self.ref, self.token, self.todo, urgent, sponsor, ttl_s)


class Side:
    """One direction, up or down, of all peers: edges handed out, and how many fit."""

    def __init__(self) -> None:
        self.outstanding: dict[PeerId, int] = {}
        self._moved: dict[PeerId, int] = {}
        self._rate: dict[PeerId, float] = {}

    def add(self, peer: PeerId, n: int) -> None:
        self.outstanding[peer] = self.outstanding.get(peer, 0) + n

    def moved(self, peer: PeerId) -> None:
        self._moved[peer] = self._moved.get(peer, 0) + 1

    def end_epoch(self) -> None:
        """Take in what was moved since the last one, half and half with what was known."""
        for peer in self._rate.keys() | self._moved.keys():
            self._rate[peer] = (self._rate.get(peer, 0.0) + self._moved.get(peer, 0)) / 2
        self._moved.clear()

    def depth(self, peer: PeerId) -> int:
        """How many edges the peer should have outstanding.

        About what it moves in an epoch, and a few to begin the next with. A deeper queue holds
        rare pieces back; a shallower one lets the link run dry. A peer that moves all it gets is
        given more the next time, so a fast one gets up to speed in a few epochs.
        """
        return min(math.ceil(1.2 * self._rate.get(peer, 0.0)) + DEPTH_MIN, DEPTH_MAX)

    def forget(self, peer: PeerId) -> None:
        for table in (self.outstanding, self._moved, self._rate):
            table.pop(peer, None)


class Traffic:
    """Edges handed out and not yet done, per peer, over all blobs of the shard."""

    def __init__(self) -> None:
        self.up = Side()
        self.down = Side()
        #: How long pieces are under way, from the plan to the news of it: a running mean.
        self.flight_s = 0.0
        self.pace = Pace()

    def add(self, child: PeerId, parent: PeerId, n: int) -> None:
        self.up.add(parent, n)
        self.down.add(child, n)

    def moved(self, child: PeerId, coming: Coming, now: float) -> None:
        self.flight_s += (now - coming.since - self.flight_s) / 16
        self.up.moved(coming.parent)
        self.down.moved(child)
        self.pace.moved(child, coming.parent, now)

    def end_epoch(self) -> None:
        self.up.end_epoch()
        self.down.end_epoch()

    def forget(self, peer: PeerId) -> None:
        self.up.forget(peer)
        self.down.forget(peer)
        self.pace.forget(peer)


@dataclass(slots=True)
class Swarm:
    """All that a shard knows of one blob of one upstream."""

    key: BlobKey
    traffic: Traffic
    geometry: Geometry | None = None
    digests: bytearray = field(default_factory=bytearray)
    #: Pieces whose digest is known.
    known: int = 0
    #: Pieces that somebody alive holds: the union of all rows.
    held: int = 0
    rows: dict[PeerId, Row] = field(default_factory=dict)
    #: Peers that may have an urgent piece without a parent: a crowd that pulls in bulk has few, and
    #: every report of every member asks for them.
    unserved: dict[PeerId, None] = field(default_factory=dict)
    lease: LeaseState | None = None
    #: Peers from whom somebody got wrong bytes, or nothing. What follows from that is in `trust`.
    accused: dict[PeerId, None] = field(default_factory=dict)
    judge_at: float = 0.0
    #: Pieces of peers that died a moment ago, and when: their disks may be back soon.
    ghosts: dict[PeerId, tuple[int, float]] = field(default_factory=dict)
    #: The lease-holder that died, and when: it may come back with more than it had announced.
    lost_holder: tuple[PeerId, float] | None = None
    #: repository -> until when it counts as public there.
    public: dict[str, float] = field(default_factory=dict)
    #: Peers that could not fetch from the origin lately -> until when they are not asked.
    failing: dict[PeerId, float] = field(default_factory=dict)
    failures: int = 0
    corruptions: int = 0
    epoch: int = 0
    touched_at: float = 0.0

    def row(self, peer: PeerId) -> Row:
        return self.rows.setdefault(peer, Row())

    def open(self, size: int) -> None:
        """The size is known now; byte ranges that were waited for become pieces."""
        if self.geometry is not None:
            return
        self.geometry = Geometry.of(size)
        self.digests = bytearray(DIGEST_BYTES * self.geometry.n_pieces)
        for peer, row in self.rows.items():
            row.urgent |= self.pieces_of(row.ranges) & ~row.have
            row.ranges = ()
            self.unserved[peer] = None

    def forget_bytes(self) -> None:
        """Size and digests were those of wrong bytes. Whoever wants the blob says so again."""
        self.geometry = None
        self.known = self.held = 0
        self.digests = bytearray()
        for row in self.rows.values():
            row.have = row.undigested = row.urgent = 0

    def pieces_of(self, ranges: tuple[tuple[int, int], ...]) -> int:
        assert self.geometry is not None
        bits = 0
        for start, stop in ranges:
            span = self.geometry.pieces_of(start, stop)
            bits |= bitfield.of_range(span.start, span.stop)
        return bits

    def digest(self, piece: int) -> bytes | None:
        if not self.known >> piece & 1:
            return None
        return bytes(self.digests[piece * DIGEST_BYTES : (piece + 1) * DIGEST_BYTES])

    def learn(self, piece: int, digest: bytes, is_authority: bool = False) -> bool:
        """Note a piece's digest; False when another one is known already.

        A peer that says what it holds may say wrong digests as well. Those of whoever fetches from
        the origin (`is_authority`) overrule them, and so do all others when nobody has the piece
        of which that was said.
        """
        known, bit = self.digest(piece), 1 << piece
        if known == digest:
            return True
        if known is not None and self.held & bit:
            if not is_authority:
                return False
            for peer, row in self.rows.items():
                if row.have & bit:
                    self.lose(peer, bit)
        if known is not None:
            # Whoever was sent for the piece compares with the old one otherwise.
            for row in self.rows.values():
                row.undigested |= bit & row.coming_bits
        self.digests[piece * DIGEST_BYTES : (piece + 1) * DIGEST_BYTES] = digest
        self.known |= bit
        return True

    def gain(self, peer: PeerId, piece: int, now: float) -> None:
        row = self.row(peer)
        bit = 1 << piece
        row.have |= bit
        row.urgent &= ~bit
        row.undigested &= ~bit
        if row.can_serve:
            self.held |= bit
        coming = self.settle(peer, piece)
        if coming is not None:
            self.traffic.moved(peer, coming, now)
            row.stalled.discard(coming.parent)
            if now - coming.since < IN_TIME_S:
                row.n_expired = 0
        if self.lease is not None and self.lease.todo is not None:
            self.lease.todo &= ~bit
            self.lease.demanded &= ~bit

    def expect(self, child: PeerId, piece: int, coming: Coming, digest: bytes | None) -> None:
        """An edge was handed out."""
        row = self.row(child)
        self.settle(child, piece)
        row.coming[piece] = coming
        row.coming_bits |= 1 << piece
        if digest is None:
            row.undigested |= 1 << piece
        self.traffic.add(child, coming.parent, 1)

    def settle(self, child: PeerId, piece: int) -> Coming | None:
        """The edge for this piece, if any, is over: done, failed or given up."""
        row = self.rows[child]
        coming = row.coming.pop(piece, None)
        if coming is not None:
            row.coming_bits &= ~(1 << piece)
            self.traffic.add(child, coming.parent, -1)
            if row.urgent >> piece & 1:
                self.unserved[child] = None
        return coming

    def give_up(self, child: PeerId, piece: int) -> None:
        """The piece does not come this way, nor from here to those who wait for it here.

        So whoever waits does so, over any number of steps, for somebody who has the piece or
        fetches it: planned anew, nobody can be made to wait for himself.
        """
        self.settle(child, piece)
        self.lose(child, 1 << piece)

    def only_under_way(self, child: PeerId, pieces: int) -> None:
        """Give up what is thought to be on its way to a peer and is not among `pieces`."""
        row = self.rows.get(child)
        for piece in bitfield.pieces(row.coming_bits & ~pieces if row is not None else 0):
            self.give_up(child, piece)

    def lose(self, peer: PeerId, pieces: int) -> None:
        """The peer does not have these, nor will it: who was to get them from it gives up too."""
        row = self.rows.get(peer)
        if row is not None:
            row.have &= ~pieces
        self._break_off(peer, pieces)

    def _break_off(self, peer: PeerId, pieces: int) -> None:
        """Nobody gets these from the peer, nor from those who were to get them from it."""
        failed = [(peer, pieces)]
        while failed:
            parent, lost = failed.pop()
            for child, other in self.rows.items():
                gone = [
                    piece
                    for piece in bitfield.pieces(other.coming_bits & lost)
                    if other.coming[piece].parent == parent
                ]
                for piece in gone:
                    self.settle(child, piece)
                if gone:
                    failed.append((child, bitfield.of(gone)))

    def forget_peer(self, peer: PeerId, now: float, for_good: bool) -> bool:
        """The peer is gone: its row, the edges from it, its lease. True if it had any part here.

        `for_good`: with its disk.
        """
        row = self.rows.get(peer)
        if for_good:
            self.ghosts.pop(peer, None)
        if row is not None:
            if row.offers and not for_good:
                self.ghosts[peer] = (row.have, now)
            for piece in list(row.coming):
                self.settle(peer, piece)
            del self.rows[peer]
        self.accused.pop(peer, None)
        for other in self.rows.values():
            other.banned.pop(peer, None)
            other.stalled.discard(peer)
        self.lose(peer, -1)
        had_lease = self.lease is not None and self.lease.holder == peer
        if had_lease:
            self.lease = None
            self.lost_holder = None if for_good else (peer, now)
        elif for_good and self.lost_holder is not None and self.lost_holder[0] == peer:
            self.lost_holder = None
        if row is not None:
            self.recount()
        return row is not None or had_lease

    def ban(self, child: PeerId, parent: PeerId, until: float) -> None:
        """The child is not sent to the parent; for ever (`math.inf`) if it got wrong bytes."""
        banned = self.rows[child].banned
        if until == math.inf or parent not in banned:
            banned[parent] = until
        if parent in self.rows:
            self.accused[parent] = None

    def put_aside(self, peer: PeerId) -> None:
        """Nobody is sent to this peer: what it alone has counts as not held."""
        self.rows[peer].is_aside = True
        self._break_off(peer, -1)
        self.recount()

    def take_back(self, peer: PeerId) -> None:
        """What it has counts again."""
        self.rows[peer].is_aside = False
        self._count_again()

    def _count_again(self) -> None:
        self.recount()
        if self.lease is not None and self.lease.todo is not None:
            self.lease.todo &= ~self.held
            self.lease.demanded &= ~self.held

    def acquit(self, peer: PeerId) -> None:
        """The bytes of which it sent wrong ones are gone."""
        self.accused.pop(peer, None)
        for row in self.rows.values():
            if row.banned.get(peer) == math.inf:
                del row.banned[peer]

    def ready_pairs(self) -> set[tuple[PeerId, PeerId]]:
        """(child, parent) between whom a piece could move now: the parent has it."""
        have = {peer: row.have for peer, row in self.rows.items()}
        return {
            (child, coming.parent)
            for child, row in self.rows.items()
            for piece, coming in row.coming.items()
            if have.get(coming.parent, 0) >> piece & 1
        }

    def _is_the_only_holder(self, peer: PeerId) -> bool:
        """It has something that somebody wants and nobody else offers."""
        if self.geometry is None:
            return False
        others = wanted = 0
        for other, row in self.rows.items():
            if other != peer:
                others |= row.offers
                wanted |= self.wanted(row) if row.wants_anything else 0
        return bool(self.rows[peer].have & wanted & ~others)

    def heed_pace(self, pace: Pace, can_fetch: bool) -> None:
        """Nobody is sent to slow parents, and nobody waits for what slow children get.

        What a slow parent has counts as not held; but not if that would have to be fetched anew
        and nobody who is faster can (`can_fetch`).
        """
        for peer, row in self.rows.items():
            if row.is_slow_child != (peer in pace.slow_children):
                row.is_slow_child = not row.is_slow_child
                if row.is_slow_child:
                    self._break_off(peer, row.coming_bits)
            if row.is_slow_parent == (peer in pace.slow_parents):
                continue
            if row.is_slow_parent:
                row.is_slow_parent = False
                self._count_again()
            elif can_fetch or not self._is_the_only_holder(peer):
                row.is_slow_parent = True
                self._break_off(peer, -1)
                self.recount()

    def is_aside(self, peer: PeerId) -> bool:
        row = self.rows.get(peer)
        return row is not None and row.is_aside

    def forgive(self, now: float) -> None:
        """Bans whose time is over are lifted."""
        for row in self.rows.values():
            for parent in [p for p, until in row.banned.items() if until <= now]:
                del row.banned[parent]
                row.stalled.discard(parent)

    def is_back(self, peer: PeerId) -> bool:
        """A peer has announced what its disk kept. True if that was waited for."""
        was_ghost = self.ghosts.pop(peer, None) is not None
        was_holder = self.lost_holder is not None and self.lost_holder[0] == peer
        if was_holder:
            self.lost_holder = None
        return was_ghost or was_holder

    def expected_back(self, died_after: float) -> int:
        """Pieces on the disks of peers whose process died since then and is being restarted."""
        bits = 0
        for have, died_at in self.ghosts.values():
            if died_at > died_after:
                bits |= have
        return bits

    def forget_ghosts(self, died_before: float) -> None:
        """These will not come back."""
        for peer in [p for p, (_, died_at) in self.ghosts.items() if died_at <= died_before]:
            del self.ghosts[peer]
        if self.lost_holder is not None and self.lost_holder[1] <= died_before:
            self.lost_holder = None

    def is_source(self, peer: PeerId) -> bool:
        """It goes to the origin, or has everything and takes nothing: others depend on it alone."""
        if self.lease is not None and self.lease.holder == peer:
            return True
        return self.geometry is not None and self.rows[peer].offers == self.geometry.all_pieces

    def waiting(self) -> list[tuple[PeerId, Row]]:
        """Peers with an urgent piece that nobody was asked for yet, and their rows."""
        found: list[tuple[PeerId, Row]] = []
        for peer in list(self.unserved):
            row = self.rows.get(peer)
            if row is not None and row.urgent & ~row.coming_bits & ~row.have:
                found.append((peer, row))
            else:
                del self.unserved[peer]
        return found

    def asker(self) -> PeerId | None:
        """Whose question is put to the origin: anonymous ones first, they need nobody's secret."""
        hungry = [(p, r) for p, r in self.rows.items() if self.row_is_hungry(r)]
        return min(hungry, key=lambda item: item[1].sponsor, default=(None, None))[0]

    def recount(self) -> None:
        self.held = 0
        for row in self.rows.values():
            self.held |= row.offers

    def wanted(self, row: Row) -> int:
        """Pieces that this peer wants and has not."""
        assert self.geometry is not None
        return (self.geometry.all_pieces if row.rest else row.urgent) & ~row.have

    def needed(self, revived_since: float, graced_since: float) -> int | None:
        """Pieces that must come from the origin; None while the size is unknown.

        A dead process is back in a few seconds, with what it had: what the disks of those have that
        died since `graced_since` is not asked of the origin again. For a client that cannot wait
        so long, those that died since `revived_since`.
        """
        if self.geometry is None:
            return None
        self.forget_ghosts(graced_since)
        urgent = rest = 0
        for row in self.rows.values():
            if row.wants_anything:
                urgent |= row.urgent
                if row.rest and self.lost_holder is None:
                    rest |= self.geometry.all_pieces if row.can_serve else self.wanted(row)
        urgent &= ~self.expected_back(revived_since)
        rest &= ~self.expected_back(graced_since)
        return (urgent | rest) & ~self.held

    @property
    def is_provided_for(self) -> bool:
        """Every piece is held or leased: nothing more is to be fetched from the origin."""
        if self.geometry is None:
            return False
        leased = 0
        if self.lease is not None:
            if self.lease.todo is None:
                return False
            leased = self.lease.todo
        return (self.held | leased) == self.geometry.all_pieces

    @property
    def is_wanted(self) -> bool:
        return any(self.row_is_hungry(row) for row in self.rows.values())

    def row_is_hungry(self, row: Row) -> bool:
        if not row.wants_anything:
            return False
        return self.geometry is None or bool(self.wanted(row))

    def public_s(self, repository: str, now: float) -> float:
        return max(0.0, self.public.get(repository, 0.0) - now)

    def check_invariants(self) -> None:
        """Re-derive what is kept twice. Raises AssertionError."""
        held = 0
        for peer, row in self.rows.items():
            held |= row.offers
            assert row.coming_bits == bitfield.of(row.coming), (peer, "coming_bits")
            assert not row.coming_bits & row.have, (peer, "a held piece is still coming")
            assert all(coming.parent != peer for coming in row.coming.values()), (
                peer,
                "own parent",
            )
            assert row.ref is not None or not (row.rest or row.urgent or row.ranges), peer
            if row.urgent & ~row.coming_bits & ~row.have:
                assert peer in self.unserved, (peer, "waits, and is not looked at")
        assert held == self.held, "held"
        assert self.accused.keys() <= self.rows.keys(), "who is accused is known here"
        if self.geometry is None:
            assert not held, "pieces of a blob without a size"
            assert not self.known, "digests of a blob without a size"
        else:
            n_pieces = self.geometry.n_pieces
            assert held >> n_pieces == 0
            assert len(self.digests) == n_pieces * DIGEST_BYTES
        if self.lease is not None and self.lease.todo is not None:
            assert self.geometry is not None
            assert not self.lease.todo & self.held, "a lease on what is held"
