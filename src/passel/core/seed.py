"""Back to source: what a lease-holder fetches from the origin, in which order, in which requests.

One `LeaseWork` per lease. Its pieces are fetched by spans: contiguous byte ranges, one request
each, some seconds of the origin's measured rate long, so that the origin sees few requests. While
clients read here and there (`lazy_s`) they are short, so that who needs a piece in the middle of a
running span waits for a fraction of a second at the most: a running request cannot be shortened
without the origin having sent bytes for nothing. Urgent pieces start a span of their own; bulk
leaves a slot free for them.

The first request of a blob, whose size nobody knows, asks for one `MIN_PIECE` around the first byte
that is wanted: its Content-Range is the stat, and no byte of it is fetched twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from passel.core import bitfield
from passel.core.messages import (
    CancelAttempt,
    Demand,
    FetchSpan,
    HashPiece,
    Lease,
    LeaseFailed,
    LeaseOpened,
    PeerCommand,
    PeerLimits,
    Refusal,
    Tell,
)
from passel.core.pieces import MIN_PIECE, Geometry
from passel.ids import BlobId, BlobRef

FIRST_SPAN_BYTES = 4 * MIN_PIECE
LONGEST_SPAN_BYTES = 32 * MIN_PIECE
#: After a client's wish bulk holds its breath: the piece is still on its way from here to the
#: client, through the same processor and the same links. Behind an origin that takes longer than
#: this for a piece the moment begins when the piece is here, so that a client that goes on reading
#: has the origin for itself: bulk would take more from it than it brings.
BULK_AFTER_S = 0.05


@dataclass(slots=True)
class Span:
    """One running request to the origin, for the bytes (start, stop)."""

    start: int
    stop: int
    begun_at: float
    opened: bool = False


@dataclass(slots=True)
class LeaseWork:
    """One lease and how far it got."""

    ref: BlobRef
    token: int
    shard: int
    sponsor: str | None
    until: float
    ttl_s: float
    geometry: Geometry | None
    todo: int = 0
    #: Pieces that clients wait for, in the order in which they were asked for.
    urgent: dict[int, None] = field(default_factory=dict)
    #: The same as byte ranges, while the size is unknown.
    ranges: tuple[tuple[int, int], ...] = ()
    spans: dict[int, Span] = field(default_factory=dict)
    #: Pieces that came in parts -> the byte ranges that are there.
    parts: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    rate_bytes_per_s: float = 0.0
    #: The longest span that ended well.
    longest_bytes: int = 0
    #: When a client last asked for something, or got it: bulk keeps out of its way for a moment.
    urgent_at: float = float("-inf")

    def in_flight(self) -> int:
        """The pieces that running spans touch."""
        if self.geometry is None:
            return 0
        bits = 0
        for span in self.spans.values():
            touched = self.geometry.pieces_of(span.start, span.stop)
            bits |= bitfield.of_range(touched.start, touched.stop)
        return bits


class SeedMachine:
    """All leases of one peer. Called only by its `PeerMachine`, which hands out attempt numbers."""

    def __init__(self, limits: PeerLimits) -> None:
        self.limits = limits
        self.works: dict[BlobId, LeaseWork] = {}
        self._blob_of: dict[int, BlobId] = {}

    def owns(self, attempt: int) -> BlobId | None:
        """The blob that this attempt fetches a span of, None if it is not (or no more) ours."""
        return self._blob_of.get(attempt)

    def lease(
        self, message: Lease, shard: int, geometry: Geometry | None, have: int, now: float
    ) -> list[PeerCommand]:
        """A lease is granted, or said again with more to do."""
        out: list[PeerCommand] = []
        work = self.works.get(message.ref.id)
        if work is not None and message.token > work.token:
            out += self.revoke(message.ref.id, work.token)
            work = None
        if work is None:
            until = now + message.ttl_s
            work = LeaseWork(
                message.ref, message.token, shard, message.sponsor, until, message.ttl_s, geometry
            )
            self.works[message.ref.id] = work
        elif message.token < work.token:
            return out
        work.until = now + work.ttl_s
        if message.todo is not None:
            work.todo = message.todo & ~have
        self._note_urgent(work, message.urgent, now)
        return out

    def demand(self, message: Demand, now: float) -> None:
        """Clients wait for these bytes."""
        work = self.works.get(message.blob)
        if work is not None and work.token == message.token:
            self._note_urgent(work, message.urgent, now)

    def next_timer(self, now: float) -> float | None:
        """When bulk that keeps out of a client's way may go on."""
        held_back = [
            work.urgent_at + BULK_AFTER_S
            for work in self.works.values()
            if work.todo and now < work.urgent_at + BULK_AFTER_S
        ]
        return min(held_back, default=None)

    def _note_urgent(
        self, work: LeaseWork, ranges: tuple[tuple[int, int], ...], now: float
    ) -> None:
        if ranges:
            work.urgent_at = now
        if work.geometry is None:
            work.ranges = tuple(dict.fromkeys(work.ranges + ranges))[:64]
            return
        for start, stop in ranges:
            for piece in work.geometry.pieces_of(start, stop):
                work.urgent[piece] = None

    def revoke(self, blob: BlobId, token: int) -> list[PeerCommand]:
        work = self.works.get(blob)
        if work is None or work.token != token:
            return []
        return self._drop(blob)

    def _drop(self, blob: BlobId) -> list[PeerCommand]:
        work = self.works.pop(blob)
        for attempt in work.spans:
            self._blob_of.pop(attempt, None)
        return [CancelAttempt(attempt) for attempt in work.spans]

    def fail(self, blob: BlobId, refusal: Refusal) -> list[PeerCommand]:
        """Give the lease back, with the reason."""
        work = self.works.get(blob)
        if work is None:
            return []
        told = Tell(work.shard, LeaseFailed(blob, work.token, refusal), hurry=True)
        return [*self._drop(blob), told]

    def heard(self, shard: int, now: float) -> None:
        for work in self.works.values():
            if work.shard == shard:
                work.until = now + work.ttl_s

    # --- what the shell reports -----------------------------------------------------------------

    def opened(self, attempt: int, size: int, public: bool, now: float) -> list[PeerCommand]:
        blob = self._blob_of[attempt]
        work = self.works[blob]
        out: list[PeerCommand] = []
        work.spans[attempt].opened = True
        if work.geometry is None:
            work.geometry = geometry = Geometry.of(size)
            span = work.spans[attempt]
            span.stop = min(span.stop, size)
            ranges, work.ranges = work.ranges, ()
            self._note_urgent(work, ranges, now)
            touched = geometry.pieces_of(span.start, span.stop)
            work.todo |= bitfield.of_range(touched.start, touched.stop)
            for piece in work.urgent:
                work.todo |= 1 << piece
            out.append(Tell(work.shard, LeaseOpened(blob, work.token, size, public), hurry=True))
        elif work.geometry.size != size:
            text = f"the origin says {size} bytes, the blob has {work.geometry.size}"
            out += self.fail(blob, Refusal(502, "UNKNOWN", text))
        return out

    def got_piece(self, blob: BlobId, piece: int, now: float) -> bool:
        """A piece is here, from wherever. True if somebody was waiting for it."""
        work = self.works.get(blob)
        if work is None:
            return False
        work.todo &= ~(1 << piece)
        work.parts.pop(piece, None)
        was_urgent = piece in work.urgent
        work.urgent.pop(piece, None)
        if was_urgent and self._is_slow(work):
            work.urgent_at = now
        return was_urgent

    def _is_slow(self, work: LeaseWork) -> bool:
        if work.geometry is None or not work.rate_bytes_per_s:
            return False
        return work.geometry.piece_size / work.rate_bytes_per_s > BULK_AFTER_S

    def got_part(self, attempt: int, start: int, stop: int) -> list[PeerCommand]:
        """Part of a piece is in the data file; hash the piece when nothing of it is missing."""
        blob = self._blob_of[attempt]
        work = self.works[blob]
        assert work.geometry is not None
        piece = start // work.geometry.piece_size
        parts = work.parts.setdefault(piece, [])
        parts.append((start, stop))
        parts.sort()
        if self._gap(work, piece) is None:
            return [HashPiece(blob, piece)]
        return []

    def ended(self, attempt: int, refusal: Refusal | None, now: float) -> list[PeerCommand]:
        blob = self._blob_of.pop(attempt)
        work = self.works[blob]
        span = work.spans.pop(attempt)
        if refusal is not None:
            return self.fail(blob, refusal)
        took_s = max(now - span.begun_at, 1e-3)
        length = span.stop - span.start
        work.longest_bytes = max(work.longest_bytes, length)
        # Down at once, up in steps: many origins send the first megabytes of an answer in a burst.
        rate = length / took_s
        before = work.rate_bytes_per_s or rate
        work.rate_bytes_per_s = min(rate, (before + rate) / 2)
        return []

    # --- what to fetch next ---------------------------------------------------------------------

    def pump(self, now: float, next_attempt: int) -> tuple[list[PeerCommand], int]:
        """Start the spans that there is room for; returns the next free attempt number too."""
        out: list[PeerCommand] = []
        for blob in list(self.works):
            work = self.works[blob]
            if now > work.until:
                continue  # fenced off: the shard may have given the lease to another peer by now
            while (chosen := self._next_span(work, now)) is not None:
                start, stop = chosen
                out.append(FetchSpan(next_attempt, work.ref, start, stop, work.sponsor))
                work.spans[next_attempt] = Span(start, stop, now)
                self._blob_of[next_attempt] = blob
                next_attempt += 1
            if work.geometry is not None and not work.todo and not work.spans:
                del self.works[blob]
        return out, next_attempt

    def _next_span(self, work: LeaseWork, now: float) -> tuple[int, int] | None:
        if work.geometry is None:
            if work.spans:
                return None
            first = min((start for start, _ in work.ranges), default=0)
            start = first // MIN_PIECE * MIN_PIECE
            return start, start + MIN_PIECE
        free = work.todo & ~work.in_flight() & ~self._being_hashed(work)
        if not free or len(work.spans) >= self.limits.spans_per_lease:
            return None
        for piece in work.urgent:
            if free >> piece & 1:
                return self._span_from(work, piece, free, self.limits.span_s)
        if len(work.spans) >= self.limits.spans_per_lease - 1:
            return None
        if any(work.todo >> piece & 1 for piece in work.urgent):
            return None  # bulk yields to clients that wait
        if now < work.urgent_at + BULK_AFTER_S:
            return None  # and to their pieces' way on to them
        is_lazy = now < work.urgent_at + self.limits.lazy_s
        length_s = self.limits.span_s if is_lazy else self.limits.pull_span_s
        return self._span_from(work, bitfield.lowest(free), free, length_s)

    def _span_from(
        self, work: LeaseWork, piece: int, free: int, length_s: float
    ) -> tuple[int, int]:
        """A span from this piece on, over as many free pieces as `length_s` allows."""
        geometry = work.geometry
        assert geometry is not None
        gap = self._gap(work, piece)
        assert gap is not None, "a piece that is all there is not free"
        start, stop = gap
        if stop < geometry.span(piece)[1]:
            return start, stop
        wished = FIRST_SPAN_BYTES
        if work.rate_bytes_per_s:
            # Never far from what was measured: a burst says little about a long answer.
            sure = max(FIRST_SPAN_BYTES, 2 * work.longest_bytes)
            wished = min(int(work.rate_bytes_per_s * length_s), sure)
        wished = min(max(wished, geometry.piece_size), LONGEST_SPAN_BYTES)
        run = bitfield.run_length(free, piece)
        for following in range(piece + 1, piece + run):
            if following in work.parts or geometry.span(following)[1] - start > wished:
                break
            stop = geometry.span(following)[1]
        return start, stop

    def _being_hashed(self, work: LeaseWork) -> int:
        """Pieces that came in parts, of which none is missing."""
        return bitfield.of(piece for piece in work.parts if self._gap(work, piece) is None)

    def _gap(self, work: LeaseWork, piece: int) -> tuple[int, int] | None:
        """The first byte range of a piece that has not come, None when all of it is there."""
        assert work.geometry is not None
        at, end = work.geometry.span(piece)
        for start, stop in work.parts.get(piece, ()):
            if start > at:
                return at, start
            at = max(at, stop)
        return (at, end) if at < end else None

    def check_invariants(self) -> None:
        for blob, work in self.works.items():
            assert work.ref.id == blob
            for attempt in work.spans:
                assert self._blob_of[attempt] == blob
            spans = sorted((span.start, span.stop) for span in work.spans.values())
            for (_, stop), (start, _) in pairwise(spans):
                assert stop <= start, "two spans fetch the same bytes"
        assert set(self._blob_of) == {a for w in self.works.values() for a in w.spans}
