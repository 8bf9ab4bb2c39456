"""One blob on one peer: what is held, what is queued, who reads it. Bookkeeping for `peer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from passel.core import bitfield
from passel.core.messages import Edge, PeerLimits, Role, Wants
from passel.core.pieces import Geometry
from passel.ids import BlobRef, PeerId

DIGEST_BYTES = 32


@dataclass(slots=True)
class Read:
    """A client of the gateway that waits for the bytes (start, stop)."""

    read: int
    ref: BlobRef
    start: int
    stop: int | None
    sponsor: bool
    begun_at: float
    upto: int
    ready: bool = False
    said_waiting_at: float = 0.0
    #: When it last got further.
    moved_at: float = 0.0


@dataclass(slots=True)
class Attempt:
    """One running fetch of a piece from a parent."""

    blob_key: str
    piece: int
    edge: Edge


@dataclass(slots=True)
class Parent:
    """Where a parent is, as the shard said it."""

    address: str
    zone: str
    role: Role


@dataclass(slots=True)
class Queued:
    """An edge that waits for its turn; not before `not_before`."""

    edge: Edge
    not_before: float = 0.0
    attempts: int = 0


@dataclass(slots=True)
class Unconfirmed:
    """A piece that came before the shard's word on its digest."""

    digest: bytes
    parent: PeerId
    until: float


@dataclass(slots=True)
class Holding:
    """All that a peer knows of one blob of one upstream."""

    ref: BlobRef
    shard: int
    geometry: Geometry | None = None
    have: int = 0
    digests: dict[int, bytes] = field(default_factory=dict)
    reads: dict[int, Read] = field(default_factory=dict)
    queue: dict[int, Queued] = field(default_factory=dict)
    #: piece -> attempt number
    running: dict[int, int] = field(default_factory=dict)
    unconfirmed: dict[int, Unconfirmed] = field(default_factory=dict)
    fallbacks: tuple[PeerId, ...] = ()
    #: Where each piece came from: "peer", "seed" or "origin"; only for what came in this life.
    sources: dict[int, str] = field(default_factory=dict)
    rest: bool = False
    told: Wants | None = None
    public_until: float = 0.0
    #: The data file exists (or is about to, in the same step).
    opened: bool = False
    promoting: bool = False
    complete: bool = False
    #: The store has no room for it, as far as is known, and until when that counts.
    full: bool = False
    full_until: float = 0.0

    @property
    def is_whole(self) -> bool:
        return self.geometry is not None and self.have == self.geometry.all_pieces

    @property
    def is_idle(self) -> bool:
        """There is a part of it here, nothing is under way, and nobody here waits for more."""
        is_partial = self.opened and not self.complete and not self.promoting
        is_moving = bool(self.running or self.queue or self.unconfirmed)
        return is_partial and not is_moving and not self.reads and self.told is None

    def verified_to(self, start: int) -> int:
        """Up to which offset the bytes from `start` on are held without a gap."""
        assert self.geometry is not None
        if start >= self.geometry.size:
            return start
        piece = start // self.geometry.piece_size
        run = bitfield.run_length(self.have, piece)
        if run == 0:
            return start
        return min((piece + run) * self.geometry.piece_size, self.geometry.size)

    def digest_bytes(self) -> bytes:
        """32 bytes per piece; zeros where unknown."""
        assert self.geometry is not None
        nothing = bytes(DIGEST_BYTES)
        return b"".join(self.digests.get(piece, nothing) for piece in range(self.geometry.n_pieces))

    def take_digests(self, digests: bytes) -> None:
        assert self.geometry is not None
        for piece in range(self.geometry.n_pieces):
            digest = digests[piece * DIGEST_BYTES : (piece + 1) * DIGEST_BYTES]
            if any(digest):
                self.digests[piece] = digest

    def wants(self, limits: PeerLimits, now: float) -> Wants | None:
        """What this peer wants of the blob now; None for nothing.

        A small read is urgent as a whole. Of a large one only the piece that its client waits for
        is, at its beginning and when it has not moved on for `stall_s`: a crowd that pulls whole
        blobs in the same order would hang on the seed's uplink, in any order its members feed each
        other.
        """
        wants_rest = limits.whole_blobs
        ranges: dict[tuple[int, int], None] = {}
        missing = False
        for read in self.reads.values():
            stop = read.stop
            if self.geometry is not None:
                stop = self.geometry.size if stop is None else min(stop, self.geometry.size)
            if stop is None or stop - read.start > limits.small_read_bytes:
                wants_rest = True
                if read.ready and read.moved_at > now - limits.stall_s:
                    continue
                stop = read.upto + 1
            if self.geometry is None:
                ranges[read.upto, stop] = None
                missing = True
                continue
            for piece in self.geometry.pieces_of(read.upto, stop):
                if not self.have >> piece & 1:
                    ranges[self.geometry.span(piece)] = None
        wants_rest = wants_rest and self.rest and not self.complete and not self.is_whole
        if not ranges and not wants_rest and not missing:
            return None
        sponsor = any(read.sponsor for read in self.reads.values())
        ref = next((read.ref for read in self.reads.values() if read.sponsor), self.ref)
        return Wants(ref, tuple(ranges)[:256], wants_rest, sponsor)

    @property
    def hurried(self) -> set[int]:
        """Pieces that clients wait for, as the shard was told."""
        if self.told is None or self.geometry is None:
            return set()
        return {p for span in self.told.urgent for p in self.geometry.pieces_of(*span)}

    def check_invariants(self) -> None:
        for piece, queued in self.queue.items():
            assert queued.edge.piece == piece
            assert not self.have >> piece & 1, "a held piece is queued"
        assert not set(self.queue) & set(self.running), "queued and running at once"
        for piece in self.running:
            assert not self.have >> piece & 1, "a held piece is being fetched"
        if self.geometry is not None:
            assert self.have >> self.geometry.n_pieces == 0
        for read in self.reads.values():
            if self.geometry is not None and read.ready:
                assert read.upto <= self.verified_to(read.start), "a read is ahead of the pieces"
