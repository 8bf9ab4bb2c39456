"""The peer of a node: which pieces it fetches from whom, when, and what its readers are told.

Life of a piece on a peer::

    (missing) ──Plan──> queued ──slot──> running ──arrived──> verified ──> announced, served
                          │  ^               │ busy: queued again, later
                          │  └───────────────┤ dead, missing, corrupt: Complaint, another parent
                          │                  └ digest not known yet: unconfirmed until Digests
    (missing) ──Lease──> span of the origin ──────────────────> verified ──> announced, served

A reader is told `ReadReady` once, when the first bytes that it wants are verified, then
`ReadProgress`, and at the end `ReadDone` or `ReadFailed`. Blobs are wanted whole from the first
touch on (DESIGN §5.5); when all pieces are there the blob is promoted.
"""

from __future__ import annotations

import hashlib

from typing_extensions import assert_never

from passel.core import bitfield, rendezvous
from passel.core.copies import LastCopies
from passel.core.holding import Attempt, Holding, Parent, Queued, Read, Unconfirmed
from passel.core.messages import (
    Announced,
    BlobFound,
    BlobLost,
    CancelAttempt,
    Complaint,
    Confirm,
    Copies,
    Corrupt,
    Demand,
    Digests,
    Discard,
    DropPartial,
    Edge,
    FetchPiece,
    Gains,
    Hello,
    Holds,
    Lease,
    LeaseFailed,
    LeaseHeld,
    Loses,
    OpenPartial,
    PeerCommand,
    PeerEvent,
    PeerInfo,
    PeerLimits,
    PieceArrived,
    PieceFailed,
    PieceHashed,
    PieceUnsaid,
    Plan,
    Promote,
    Promoted,
    PromotionFailed,
    ReadDone,
    ReadEnded,
    ReadFailed,
    ReadPassthrough,
    ReadProgress,
    ReadReady,
    ReadStarted,
    ReadWaiting,
    Refusal,
    Refused,
    ReportItem,
    Revoke,
    SeenPublic,
    ShardHeard,
    ShardLost,
    ShardMessage,
    ShardReborn,
    ShardSaid,
    SpanEnded,
    SpanOpened,
    SpanPart,
    SpanPiece,
    Stat,
    StoreFull,
    StoreRecovered,
    Tell,
    Trouble,
    UnderWay,
    Unwants,
)
from passel.core.pieces import Geometry
from passel.core.room import Room
from passel.core.seed import SeedMachine
from passel.ids import BlobId, BlobRef, Digest, PeerId

#: How often a reader who gets nothing is told what it waits for, seconds.
WAITING_EVERY_S = 0.5
#: How long a piece may wait for the shard's word on its digest, seconds.
UNCONFIRMED_S = 3.0
#: When a store that had no room is asked again, at the latest: room comes without an eviction too.
FULL_S = 15.0
NOTHING_CAME = Refusal(503, "UNKNOWN", "no peer, seed or origin sent anything in time")
NO_ROOM = Refusal(503, "UNKNOWN", "this node's store has no room for the blob")


class PeerMachine:
    """All blobs of one node. Touched only through `handle` and `handle_timer`."""

    def __init__(self, info: PeerInfo, limits: PeerLimits, n_shards: int) -> None:
        self.info = info
        self.limits = limits
        self.n_shards = n_shards
        self.blobs: dict[BlobId, Holding] = {}
        #: Whole, verified blobs, whatever upstream they came from: digest -> (size, digests).
        self.complete: dict[Digest, tuple[int, bytes]] = {}
        self.last_copies = LastCopies()
        self.seed = SeedMachine(limits)
        self.parents: dict[PeerId, Parent] = {}
        self.room = Room(limits)
        self.lost_shards: set[int] = set()
        self._reads: dict[int, BlobId] = {}
        self._next_attempt = 1
        self._timer: float | None = None
        self._out: list[PeerCommand] = []
        self._now = 0.0

    # --- the interface --------------------------------------------------------------------------

    def start(self) -> list[PeerCommand]:
        """Say hello to every shard."""
        self._out = []
        for shard in range(self.n_shards):
            self._tell(shard, Hello(self.info), hurry=True)
        return self._out

    def handle(self, event: PeerEvent, now: float) -> list[PeerCommand]:
        self._out = []
        self._now = now
        match event:
            case ReadStarted():
                self._read_started(event)
            case ReadEnded(read):
                self._read_ended(read)
            case ShardSaid(message):
                self._shard_said(message)
            case ShardReborn(shard):
                self.last_copies.forget(lambda digest: self._shard_of(digest) == shard)
                self._announce_all(shard)
            case ShardHeard(shard):
                if shard in self.lost_shards:
                    self.lost_shards.discard(shard)
                    self._say_under_way(shard)
                self.seed.heard(shard, now)
            case ShardLost(shard):
                self.lost_shards.add(shard)
            case PieceArrived(attempt, digest):
                self._arrived(attempt, digest)
            case PieceFailed(attempt, trouble, retry_after_s):
                self._failed(attempt, trouble, retry_after_s)
            case SpanOpened() | SpanPiece() | SpanPart() | SpanEnded() | PieceHashed():
                self._span_event(event)
            case BlobFound():
                self._found(event)
            case StoreRecovered():
                for shard in range(self.n_shards):
                    self._tell(shard, Announced(), hurry=True)
            case BlobLost(digest):
                self._lost(digest)
            case Promoted(blob, digests):
                self._promoted(blob, digests)
            case PromotionFailed(blob, corrupt):
                self._promotion_failed(blob, corrupt)
            case StoreFull(blob):
                self._no_room(blob)
            case PieceUnsaid(blob, piece):
                self._unsay(blob, piece)
            case SeenPublic(ref, ttl_s):
                self._tell(self._shard_of(ref.digest), SeenPublic(ref, ttl_s))
                holding = self.blobs.get(ref.id)
                if holding is not None:
                    holding.public_until = max(holding.public_until, now + ttl_s)
            case _:
                assert_never(event)
        self._pump()
        return self._out

    def next_timer(self) -> float | None:
        return self._timer

    def handle_timer(self, now: float) -> list[PeerCommand]:
        """Retries whose time has come, digests that never came, readers who wait."""
        self._out = []
        self._now = now
        for holding in self.blobs.values():
            late = [p for p, u in holding.unconfirmed.items() if u.until <= now]
            for piece in late:
                parent = holding.unconfirmed.pop(piece).parent
                self._complain(holding, piece, parent, Trouble.BUSY)
            for read in list(holding.reads.values()):
                if not read.ready and now - read.begun_at >= self.limits.patience_s:
                    self._out.append(ReadFailed(read.read, NOTHING_CAME))
                    self._read_ended(read.read)
                elif not read.ready and now - read.said_waiting_at >= WAITING_EVERY_S:
                    read.said_waiting_at = now
                    self._out.append(ReadWaiting(read.read, self._waits_for(holding)))
            if holding.reads:
                self._say_wants(holding)  # a large read may have come to a halt
        self._pump()
        return self._out

    def check_invariants(self) -> None:
        """Re-derive what is kept twice. Raises AssertionError."""
        running = self.room.check_invariants()
        for blob, holding in self.blobs.items():
            holding.check_invariants()
            for piece, number in holding.running.items():
                assert running.pop((blob, piece)) == number
            for read in holding.reads:
                assert self._reads[read] == blob
        assert not running, "attempts that no blob knows"
        self.seed.check_invariants()
        self.last_copies.check_invariants(self.complete)

    # --- readers --------------------------------------------------------------------------------

    def _read_started(self, event: ReadStarted) -> None:
        ref = event.ref
        holding = self._holding(ref)
        if self._now >= holding.full_until:
            holding.full = False
        if holding.full and not holding.is_whole:
            self._out.append(ReadPassthrough(event.read, NO_ROOM.message))
            return
        if event.sponsor or not holding.reads:
            holding.ref = ref
        read = Read(event.read, ref, event.start, event.stop, event.sponsor, self._now, event.start)
        read.said_waiting_at = self._now
        holding.reads[event.read] = read
        self._reads[event.read] = ref.id
        holding.rest = True
        if holding.geometry is not None and holding.geometry.size == 0:
            self._open(holding, 0)  # the empty blob is known to everybody, and made on the spot
            return
        self._advance(holding, read, "local")
        stop = event.stop
        if (
            not read.ready
            and stop is not None
            and stop - event.start <= self.limits.small_read_bytes
        ):
            self.room.read_waits(self._now)
        self._say_wants(holding)

    def _read_ended(self, number: int) -> None:
        blob = self._reads.pop(number, None)
        if blob is not None:
            self.blobs[blob].reads.pop(number, None)

    def _advance(self, holding: Holding, read: Read, source: str) -> None:
        """Tell a reader how far it can go now."""
        geometry = holding.geometry
        if geometry is None:
            return
        stop = geometry.size if read.stop is None else min(read.stop, geometry.size)
        upto = min(holding.verified_to(read.upto), stop)
        if not read.ready and (upto > read.start or stop <= read.start):
            read.ready = True
            public = holding.public_until > self._now
            self._out.append(
                ReadReady(read.read, geometry.size, geometry.piece_size, source, public, upto)
            )
        elif upto > read.upto:
            self._out.append(ReadProgress(read.read, upto))
        if upto > read.upto:
            read.upto, read.moved_at = upto, self._now
        if read.ready and read.upto >= stop:
            self._out.append(ReadDone(read.read))
            self._reads.pop(read.read, None)
            holding.reads.pop(read.read, None)

    def _fail_reads(self, holding: Holding, refusal: Refusal) -> None:
        for number in list(holding.reads):
            self._out.append(ReadFailed(number, refusal))
            self._reads.pop(number, None)
        holding.reads.clear()

    def _waits_for(self, holding: Holding) -> str:
        if holding.shard in self.lost_shards:
            return "shard"
        # A shard that answers and has nothing to say yet waits for the origin's first word.
        return "peer" if holding.running or holding.queue else "origin"

    # --- the shard ------------------------------------------------------------------------------

    def _say_wants(self, holding: Holding) -> None:
        """Tell the shard what is wanted, if that is news to it."""
        wants = holding.wants(self.limits, self._now)
        told = holding.told
        if wants is None:
            if told is not None:
                holding.told = None
                self._tell(holding.shard, Unwants(holding.ref.id))
            return
        # What is no more wanted the shard sees from what was gained: only news is told.
        if (
            told is not None
            and (told.rest, told.sponsor, told.ref) == (wants.rest, wants.sponsor, wants.ref)
            and set(wants.urgent) <= set(told.urgent)
        ):
            return
        holding.told = wants
        self._tell(holding.shard, wants, hurry=bool(wants.urgent))

    def _say_under_way(self, shard: int) -> None:
        """The shard's words may have been lost with the way to it: it need not wait for them."""
        for blob, holding in self.blobs.items():
            if holding.shard == shard and holding.told is not None:
                expected = (*holding.queue, *holding.running, *holding.unconfirmed)
                self._tell(shard, UnderWay(blob, bitfield.of(expected)), hurry=True)

    def _shard_said(self, message: ShardMessage) -> None:
        if isinstance(message, Lease):
            self._leased(message)
            return
        if isinstance(message, Copies):
            self.last_copies.heard(message, self.complete)
            return
        blob = message.ref.id if isinstance(message, Stat) else message.blob
        holding = self.blobs.get(blob)
        if holding is None:
            return
        match message:
            case Stat(_, size, _, public_s):
                holding.public_until = max(holding.public_until, self._now + public_s)
                self._open(holding, size)
            case Plan():
                self._planned(holding, message)
            case Digests(_, pieces):
                for piece, digest in pieces:
                    if not holding.have >> piece & 1:
                        holding.digests[piece] = digest
                    waiting = holding.unconfirmed.pop(piece, None)
                    if waiting is not None:
                        self._judge(holding, piece, waiting.digest, waiting.parent)
            case Demand():
                self.seed.demand(message, self._now)
            case Revoke(_, token):
                self._out += self.seed.revoke(blob, token)
            case Refused(_, refusal):
                holding.rest = False
                holding.told = None
                # A wish that was on its way to the shard when it said this must not stay there.
                self._tell(holding.shard, Unwants(blob))
                self._fail_reads(holding, refusal)
            case Discard():
                self._discard(holding)
            case _:
                assert_never(message)

    def _leased(self, message: Lease) -> None:
        holding = self._holding(message.ref)
        if holding.is_whole:
            self._announce(holding)
            return
        if holding.full:
            self._tell(
                holding.shard, LeaseFailed(holding.ref.id, message.token, NO_ROOM), hurry=True
            )
            return
        self._out += self.seed.lease(
            message, holding.shard, holding.geometry, holding.have, self._now
        )
        if message.todo is not None and message.todo & holding.have:
            self._announce(holding)  # the shard thinks that nobody holds them

    def _open(self, holding: Holding, size: int) -> None:
        if holding.geometry is None:
            holding.geometry = Geometry.of(size)
        self._ensure_file(holding)
        for read in list(holding.reads.values()):
            self._advance(holding, read, "local")
        if size == 0 and not holding.complete:
            self._maybe_promote(holding)
        self._say_wants(holding)

    def _ensure_file(self, holding: Holding) -> None:
        """Pieces are about to come: there must be a data file to write them to."""
        if not holding.opened and not holding.complete and not holding.full:
            assert holding.geometry is not None
            holding.opened = True
            geometry = holding.geometry
            self._out.append(OpenPartial(holding.ref.key, geometry.size, geometry.piece_size))

    def _planned(self, holding: Holding, plan: Plan) -> None:
        if holding.full:
            return
        if holding.geometry is None:
            self._open(holding, plan.size)
        for peer, address, zone, role in plan.addresses:
            self.parents[peer] = Parent(address, zone, role)
        if plan.fallbacks:
            holding.fallbacks = plan.fallbacks
        for edge in plan.edges:
            if holding.have >> edge.piece & 1 or edge.parent == self.info.peer:
                continue
            if edge.digest is not None:
                holding.digests[edge.piece] = edge.digest
            number = holding.running.get(edge.piece)
            if number is not None:
                if self.room[number].edge.parent == edge.parent:
                    continue
                self._cancel(number)
            holding.unconfirmed.pop(edge.piece, None)
            holding.queue[edge.piece] = Queued(edge)

    def _announce_all(self, shard: int) -> None:
        self._tell(shard, Hello(self.info), hurry=True)
        for digest, (size, digests) in self.complete.items():
            if self._shard_of(digest) == shard:
                geometry = Geometry.of(size)
                have = geometry.all_pieces
                item = Holds(digest, None, size, geometry.piece_size, have, digests)
                self._tell(shard, item, hurry=True)
        for holding in self.blobs.values():
            if holding.shard != shard:
                continue
            if not holding.complete and holding.have:
                self._announce(holding)
            work = self.seed.works.get(holding.ref.id)
            if work is not None:
                self._tell(shard, LeaseHeld(work.ref, work.token, work.todo), hurry=True)
            holding.told = None
            self._say_wants(holding)
        self._tell(shard, Announced(), hurry=True)

    def _announce(self, holding: Holding) -> None:
        geometry = holding.geometry
        if geometry is None:
            return
        upstream = None if holding.complete else holding.ref.upstream
        digests = holding.digest_bytes()
        self._tell(
            holding.shard,
            Holds(
                holding.ref.digest,
                upstream,
                geometry.size,
                geometry.piece_size,
                holding.have,
                digests,
            ),
            hurry=True,
        )

    # --- pieces from parents --------------------------------------------------------------------

    def _pump(self) -> None:
        """Start what there is room for: origin spans, then pieces, urgent ones first."""
        commands, self._next_attempt = self.seed.pump(self._now, self._next_attempt)
        self._out += commands
        wake = self.seed.next_timer(self._now)
        for urgent in (True, False):
            for blob, holding in self.blobs.items():
                if not holding.queue or holding.full:
                    continue
                hurried = holding.hurried
                for queued in list(holding.queue.values()):
                    if (queued.edge.turn == 0 or queued.edge.piece in hurried) is not urgent:
                        continue
                    if queued.not_before > self._now:
                        wake = min(wake or queued.not_before, queued.not_before)
                    elif self.room.is_free(queued.edge.parent, urgent, self._now):
                        self._fetch(blob, holding, queued, urgent)
        if self._now < self.room.lazy_until and any(h.queue for h in self.blobs.values()):
            wake = min(wake or self.room.lazy_until, self.room.lazy_until)
        if any(holding.reads or holding.unconfirmed for holding in self.blobs.values()):
            soon = self._now + WAITING_EVERY_S
            if self._timer is not None and self._timer > self._now:
                soon = min(soon, self._timer)  # a busy peer must not put it off for ever
            wake = min(wake, soon) if wake is not None else soon
        self._timer = wake

    def _fetch(self, blob: BlobId, holding: Holding, queued: Queued, urgent: bool) -> None:
        assert holding.geometry is not None
        self._ensure_file(holding)
        edge = queued.edge
        del holding.queue[edge.piece]
        number = self._next_attempt
        self._next_attempt += 1
        self.room.begin(number, Attempt(blob, edge.piece, edge))
        holding.running[edge.piece] = number
        parent = self.parents[edge.parent]
        start, stop = holding.geometry.span(edge.piece)
        self._out.append(
            FetchPiece(
                number,
                blob,
                edge.piece,
                edge.parent,
                parent.address,
                start,
                stop,
                edge.wait,
                0 if urgent else edge.turn,
                parent.role.value,
                parent.zone != self.info.zone,
            )
        )

    def _end_attempt(self, number: int) -> tuple[Holding, Attempt] | None:
        attempt = self.room.end(number)
        if attempt is None:
            return None
        holding = self.blobs[BlobId(attempt.blob_key)]
        holding.running.pop(attempt.piece, None)
        return holding, attempt

    def _cancel(self, number: int) -> None:
        if self._end_attempt(number) is not None:
            self._out.append(CancelAttempt(number))

    def _arrived(self, number: int, digest: bytes) -> None:
        ended = self._end_attempt(number)
        if ended is None:
            return  # a late result of an attempt that was given up
        holding, attempt = ended
        edge = attempt.edge
        if edge.piece not in holding.digests:
            if not edge.authority:
                until = self._now + UNCONFIRMED_S
                holding.unconfirmed[edge.piece] = Unconfirmed(digest, edge.parent, until)
                return
            holding.digests[edge.piece] = digest
        self._judge(holding, edge.piece, digest, edge.parent)

    def _judge(self, holding: Holding, piece: int, digest: bytes, parent: PeerId) -> None:
        """Compare what came with the shard's digest."""
        if holding.digests[piece] != digest:
            self._complain(holding, piece, parent, Trouble.CORRUPT)
            return
        known = self.parents.get(parent)
        self._gain(holding, piece, digest, known.role.value if known else "peer")

    def _failed(self, number: int, trouble: Trouble, retry_after_s: float) -> None:
        ended = self._end_attempt(number)
        if ended is None:
            return
        holding, attempt = ended
        edge = attempt.edge
        if holding.have >> edge.piece & 1:
            return
        if trouble is Trouble.BUSY:
            delay = max(self.limits.retry_s, retry_after_s)
            holding.queue[edge.piece] = Queued(edge, self._now + delay)
            self._complain(holding, edge.piece, edge.parent, trouble)
            return
        self._complain(holding, edge.piece, edge.parent, trouble)
        if holding.shard in self.lost_shards and edge.piece in holding.digests:
            others = [p for p in holding.fallbacks if p != edge.parent and p in self.parents]
            if others:
                parent = others[edge.piece % len(others)]
                again = Edge(edge.piece, parent, holding.digests[edge.piece], turn=edge.turn)
                holding.queue[edge.piece] = Queued(again, self._now + self.limits.retry_s)

    def _complain(self, holding: Holding, piece: int, parent: PeerId, trouble: Trouble) -> None:
        item = Complaint(holding.ref.id, piece, parent, trouble)
        self._tell(holding.shard, item, hurry=True)

    def _gain(self, holding: Holding, piece: int, digest: bytes, source: str) -> None:
        """A piece is verified: readers may have it, the shard and the other peers get to know."""
        if holding.have >> piece & 1:
            return
        blob = holding.ref.id
        number = holding.running.get(piece)
        if number is not None:
            self._cancel(number)
        holding.queue.pop(piece, None)
        holding.unconfirmed.pop(piece, None)
        holding.have |= 1 << piece
        holding.digests[piece] = digest
        holding.sources[piece] = source
        work = self.seed.works.get(blob)
        hurry = self.seed.got_piece(blob, piece, self._now)
        self._out.append(Confirm(blob, piece, digest))
        token = work.token if work is not None else None
        self._tell(holding.shard, Gains(blob, ((piece, digest),), token), hurry=hurry)
        for read in list(holding.reads.values()):
            self._advance(holding, read, source)
        if holding.reads:
            self._say_wants(holding)
        self._maybe_promote(holding)

    # --- pieces from the origin -----------------------------------------------------------------

    def _span_event(
        self, event: SpanOpened | SpanPiece | SpanPart | SpanEnded | PieceHashed
    ) -> None:
        blob = event.blob if isinstance(event, PieceHashed) else self.seed.owns(event.attempt)
        if blob is None:
            return
        holding = self.blobs[blob]
        match event:
            case SpanOpened(attempt, size, public):
                if public:
                    holding.public_until = self._now + 300.0
                if holding.geometry is None:
                    holding.geometry = Geometry.of(size)
                # The word on the size first: somebody waits for it, and making the file takes time.
                self._out += self.seed.opened(attempt, size, public, self._now)
                self._ensure_file(holding)
                if size == 0:
                    self._maybe_promote(holding)
                for read in list(holding.reads.values()):
                    self._advance(holding, read, "origin")
                self._say_wants(holding)
            case SpanPiece(_, piece, digest) | PieceHashed(_, piece, digest):
                known = holding.digests.get(piece)
                if known is not None and known != digest:
                    # Somebody else's word against the origin's: the origin wins here, and the
                    # shard's check of the announcement sorts the others out.
                    holding.digests.pop(piece)
                self._gain(holding, piece, digest, "origin")
            case SpanPart(attempt, start, stop):
                self._out += self.seed.got_part(attempt, start, stop)
            case SpanEnded(attempt, refusal):
                self._out += self.seed.ended(attempt, refusal, self._now)
            case _:
                assert_never(event)

    # --- the store ------------------------------------------------------------------------------

    def _maybe_promote(self, holding: Holding) -> None:
        if holding.is_whole and not holding.promoting and not holding.complete:
            holding.promoting = True
            self._out.append(Promote(holding.ref.id))

    def _promoted(self, blob: BlobId, digests: bytes) -> None:
        holding = self.blobs[blob]
        assert holding.geometry is not None
        holding.promoting = False
        holding.complete = True
        holding.take_digests(digests)
        holding.sources.clear()
        self.complete[holding.ref.digest] = (holding.geometry.size, digests)
        self._announce(holding)
        self._say_wants(holding)

    def _promotion_failed(self, blob: BlobId, corrupt: bool) -> None:
        holding = self.blobs[blob]
        holding.promoting = False
        if corrupt:
            self._tell(holding.shard, Corrupt(blob), hurry=True)
            self._discard(holding)
        else:
            self._store_full(blob)

    def _discard(self, holding: Holding) -> None:
        """The pieces of this blob do not make up its digest: away with them, and start again."""
        if holding.complete or holding.promoting:
            return  # a complete blob was checked; a promotion is being checked right now
        blob = holding.ref.id
        for number in list(holding.running.values()):
            self._cancel(number)
        work = self.seed.works.get(blob)
        if work is not None:
            self._out += self.seed.revoke(blob, work.token)
        holding.queue.clear()
        holding.unconfirmed.clear()
        holding.digests.clear()
        holding.sources.clear()
        if holding.have:
            holding.have = 0
        holding.opened = False
        self._out.append(DropPartial(blob))
        started = [r for r in holding.reads.values() if r.ready]
        for read in started:
            refusal = Refusal(502, "UNKNOWN", "the bytes of this blob do not have its digest")
            self._out.append(ReadFailed(read.read, refusal))
            self._reads.pop(read.read, None)
            del holding.reads[read.read]
        # The size was the word of whoever sent these bytes.
        holding.geometry = None
        holding.told = None
        self._say_wants(holding)

    def _no_room(self, blob: BlobId) -> None:
        """What was begun and nobody wants any more goes first: eviction takes only whole blobs."""
        busy = {blob, *self.seed.works}
        idle = [b for b, holding in self.blobs.items() if holding.is_idle and b not in busy]
        for each in idle:
            ref = self.blobs.pop(each).ref
            self._out.append(DropPartial(each))
            self._tell(self._shard_of(ref.digest), Loses(ref.digest, ref.upstream))
        holding = self.blobs[blob]
        if idle and holding.geometry is not None:
            size, piece_size = holding.geometry.size, holding.geometry.piece_size
            self._out.append(OpenPartial(holding.ref.key, size, piece_size))
        else:
            self._store_full(blob)

    def _store_full(self, blob: BlobId) -> None:
        holding = self.blobs[blob]
        holding.full, holding.full_until = True, self._now + FULL_S
        holding.rest = False
        holding.opened = holding.have != 0  # without a file nothing came; the next try makes it
        for number in list(holding.running.values()):
            self._cancel(number)
        holding.queue.clear()
        holding.unconfirmed.clear()
        self._out += self.seed.fail(blob, NO_ROOM)
        for number in list(holding.reads):
            self._out.append(ReadPassthrough(number, NO_ROOM.message))
            self._reads.pop(number, None)
        holding.reads.clear()
        holding.told = None
        self._tell(holding.shard, Unwants(blob))

    def _unsay(self, blob: BlobId, piece: int) -> None:
        """The piece is not there after all: announce the blob anew, and want the piece again."""
        holding = self.blobs[blob]
        holding.have &= ~(1 << piece)
        holding.promoting = False
        holding.told = None
        self._tell(holding.shard, Loses(holding.ref.digest, holding.ref.upstream), hurry=True)
        self._announce(holding)
        self._say_wants(holding)

    def _found(self, event: BlobFound) -> None:
        """At start: what the disk kept."""
        if event.upstream is None:
            self.complete[event.digest] = (event.size, event.digests)
            item = Holds(
                event.digest, None, event.size, event.piece_size, event.have, event.digests
            )
            self._tell(self._shard_of(event.digest), item)
            return
        holding = self._holding(BlobRef(event.upstream, "", event.digest))
        holding.geometry = Geometry(event.size, event.piece_size)
        holding.opened = True
        holding.have = event.have
        holding.take_digests(event.digests)
        self._announce(holding)
        self._maybe_promote(holding)

    def _lost(self, digest: Digest) -> None:
        self.complete.pop(digest, None)
        self.last_copies.lost(digest)
        for blob, holding in list(self.blobs.items()):
            if holding.ref.digest == digest and holding.complete:
                self._fail_reads(holding, Refusal(503, "UNKNOWN", "the blob was evicted"))
                del self.blobs[blob]
        self._tell(self._shard_of(digest), Loses(digest, None))
        for holding in self.blobs.values():
            holding.full = False  # there is room again: worth another try

    # --- small things ---------------------------------------------------------------------------

    def _holding(self, ref: BlobRef) -> Holding:
        holding = self.blobs.get(ref.id)
        if holding is None:
            holding = self.blobs[ref.id] = Holding(ref, self._shard_of(ref.digest))
        known = self.complete.get(ref.digest)
        if known is None and ref.digest.hex == hashlib.new(ref.digest.algorithm).hexdigest():
            known = (0, b"")  # the empty blob is known to everybody
        if known is not None and not holding.complete:
            holding.geometry = Geometry.of(known[0])
            holding.have = holding.geometry.all_pieces
            holding.take_digests(known[1])
            holding.complete = ref.digest in self.complete
            holding.opened = holding.complete
        return holding

    def _shard_of(self, digest: Digest) -> int:
        return rendezvous.shard_of(str(digest), self.n_shards)

    def _tell(self, shard: int, item: ReportItem, hurry: bool = False) -> None:
        self._out.append(Tell(shard, item, hurry))

    def held_pieces(self, blob: BlobId) -> int:
        """How many pieces of a blob this peer holds."""
        holding = self.blobs.get(blob)
        return bitfield.count(holding.have) if holding else 0
