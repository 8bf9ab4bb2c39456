"""What peers and shards tell each other, and the events and commands of their machines.

Everything is a frozen dataclass of plain values: it crosses Ray pickled, and the simulator as it
is. Reports and messages may be lost, doubled or overtaken; each is written so that this does no
harm (absolute states, attempt numbers, fencing tokens), and what matters is said again on a timer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from passel.core.versions import OLDEST, WIRE
from passel.ids import BlobId, BlobKey, BlobRef, Digest, PeerId


class Role(Enum):
    PEER = "peer"
    SEED = "seed"


class Trouble(Enum):
    """Why a piece did not come. Different consequences are different members."""

    BUSY = "busy"  # the parent has no slot: ask it again, later
    DEAD = "dead"  # nobody there, or it broke off: ask somebody else
    STALLED = "stalled"  # silent for a while: ask anew, and somebody else after the second time
    MISSING = "missing"  # it does not hold the piece after all
    CORRUPT = "corrupt"  # wrong bytes: never ask it again for this blob


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer as the shards know it. `incarnation` grows with every start of its process."""

    peer: PeerId
    node: str
    zone: str
    role: Role
    address: str
    incarnation: int
    upload_slots: int
    download_slots: int
    rack: str = ""
    region: str = ""
    #: What it speaks, and the oldest that it understands.
    wire: int = WIRE
    oldest: int = OLDEST


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a read cannot be served: an HTTP status, an OCI error code, a sentence.

    Status 4xx is the origin's own word and goes to the client; 503 is ours, and the gateway then
    asks the origin itself; 502 and 504 are about the origin.
    """

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


# --- peer -> shard -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    info: PeerInfo


@dataclass(frozen=True, slots=True)
class Holds:
    """A full announcement of one blob. `digests` is 32 bytes per piece, zeros where unknown.

    `upstream` is None for a complete blob: its whole digest was verified, so it may be shown under
    every upstream (DESIGN §7).
    """

    digest: Digest
    upstream: str | None
    size: int
    piece_size: int
    have: int
    digests: bytes


@dataclass(frozen=True, slots=True)
class Announced:
    """Hello and all Holds are said: what this peer has not named by now it does not have."""


@dataclass(frozen=True, slots=True)
class Gains:
    """Pieces that were verified and are served from now on: (piece, SHA-256)."""

    blob: BlobId
    pieces: tuple[tuple[int, bytes], ...]
    token: int | None = None


@dataclass(frozen=True, slots=True)
class Loses:
    """The peer holds nothing of this blob any more (evicted, removed, discarded)."""

    digest: Digest
    upstream: str | None


@dataclass(frozen=True, slots=True)
class Wants:
    """A peer wants a blob: these bytes now, and the rest in the background.

    Byte ranges, not pieces: the size, and so the geometry, may not be known yet. Absolute: it
    replaces what was wanted before. `sponsor` says that this peer has credentials of a client,
    which the lease-holder can ask it for.
    """

    ref: BlobRef
    urgent: tuple[tuple[int, int], ...]
    rest: bool
    sponsor: bool


@dataclass(frozen=True, slots=True)
class Unwants:
    blob: BlobId


@dataclass(frozen=True, slots=True)
class UnderWay:
    """All `pieces` of a blob that are on their way to this peer, as it knows: a plan was lost."""

    blob: BlobId
    pieces: int


@dataclass(frozen=True, slots=True)
class Complaint:
    blob: BlobId
    piece: int
    parent: PeerId
    trouble: Trouble


@dataclass(frozen=True, slots=True)
class LeaseOpened:
    """The origin answered the lease-holder: the one stat of this blob in the cluster."""

    blob: BlobId
    token: int
    size: int
    public: bool


@dataclass(frozen=True, slots=True)
class LeaseHeld:
    """Said when a shard is new: I am the one who fetches this blob."""

    ref: BlobRef
    token: int
    todo: int


@dataclass(frozen=True, slots=True)
class LeaseFailed:
    """The lease-holder gives the lease back. `refusal` 4xx is about the sponsor's credentials."""

    blob: BlobId
    token: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Corrupt:
    """All pieces were there and the whole digest was wrong: everything of the blob is suspect."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class SeenPublic:
    """A gateway saw the origin serve this blob without credentials."""

    ref: BlobRef
    ttl_s: float


ReportItem = (
    Hello
    | Holds
    | Announced
    | Gains
    | Loses
    | Wants
    | Unwants
    | UnderWay
    | Complaint
    | LeaseOpened
    | LeaseHeld
    | LeaseFailed
    | Corrupt
    | SeenPublic
)


# --- shard -> peer -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stat:
    """What the cluster knows of a blob. `public_s`: for how long it counts as public, 0 if not."""

    ref: BlobRef
    size: int
    piece_size: int
    public_s: float


@dataclass(frozen=True, slots=True)
class Edge:
    """Fetch `piece` from `parent`.

    `digest` is the shard's; None when the piece is still on its way to the parent, which is then
    asked to hold the request until it has the piece (`wait`). `authority`: the parent is the
    lease-holder that the shard itself named for this piece, so its word on the digest is the very
    word that the shard would repeat. A parent sends in the order of `turn`, lowest first; 0 is a
    client that waits.
    """

    piece: int
    parent: PeerId
    digest: bytes | None
    wait: bool = False
    authority: bool = False
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to fetch from whom. `size` of the blob: the plan stands alone, should Stat be lost."""

    blob: BlobId
    epoch: int
    size: int
    edges: tuple[Edge, ...]
    addresses: tuple[tuple[PeerId, str, str, Role], ...]  # (peer, address, zone, role)
    fallbacks: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests that the shard has learned since the edges for these pieces were handed out."""

    blob: BlobId
    pieces: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """Go back to source for these pieces, you alone, as long as the token is the newest.

    `todo` is None while the size is unknown. `sponsor` is the piece server of a peer that has a
    client's credentials, for origins that want some.
    """

    ref: BlobRef
    token: int
    todo: int | None
    urgent: tuple[tuple[int, int], ...]
    sponsor: str | None
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Demand:
    """Somebody's client waits for these bytes: fetch them before the others."""

    blob: BlobId
    token: int
    urgent: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Revoke:
    blob: BlobId
    token: int


@dataclass(frozen=True, slots=True)
class Refused:
    """What you wanted cannot be had."""

    blob: BlobId
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Discard:
    """Throw away what is not yet complete of this blob: its pieces do not make up its digest."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class Copies:
    """Of these complete blobs yours is the last copy in the cluster (`sole`), or no more.

    Said to seeds when it changes. `number` grows: a word that comes late is known as such. Since
    wire version 2 (see `passel.core.versions`).
    """

    number: int
    sole: tuple[Digest, ...]
    shared: tuple[Digest, ...]


ShardMessage = Stat | Plan | Digests | Lease | Demand | Revoke | Refused | Discard | Copies


# --- events and commands of the shard ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reported:
    peer: PeerId
    incarnation: int
    items: tuple[ReportItem, ...]


@dataclass(frozen=True, slots=True)
class PeerGone:
    """A peer does not answer. `for_good`: its node is gone, and its disk with it."""

    peer: PeerId
    incarnation: int | None = None
    for_good: bool = False


@dataclass(frozen=True, slots=True)
class PeersExpected:
    """A restarted shard learns who is alive: when all of these have announced, it knows again."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Draining:
    """All peers whose nodes are to go away. Absolute: others are no more, or never were."""

    peers: frozenset[PeerId]


ShardEvent = Reported | PeerGone | PeersExpected | Draining


@dataclass(frozen=True, slots=True)
class Deliver:
    peer: PeerId
    message: ShardMessage


# --- events of the peer ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadStarted:
    """A client of the gateway waits for bytes (start, stop) of a blob; stop None: to its end."""

    read: int
    ref: BlobRef
    start: int
    stop: int | None
    sponsor: bool


@dataclass(frozen=True, slots=True)
class ReadEnded:
    """The gateway closed the connection: served, or given up."""

    read: int


@dataclass(frozen=True, slots=True)
class BlobFound:
    """At start: what the store holds."""

    digest: Digest
    upstream: str | None
    size: int
    piece_size: int
    have: int
    digests: bytes


@dataclass(frozen=True, slots=True)
class StoreRecovered:
    """At start: every blob that the store holds was said."""


@dataclass(frozen=True, slots=True)
class BlobLost:
    """A complete blob was evicted or removed."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class ShardSaid:
    message: ShardMessage


@dataclass(frozen=True, slots=True)
class ShardReborn:
    """A shard has a new incarnation and knows nothing: announce everything that it owns."""

    shard: int


@dataclass(frozen=True, slots=True)
class ShardHeard:
    """A shard answered a report: the leases that it gave hold on for their full time again."""

    shard: int


@dataclass(frozen=True, slots=True)
class ShardLost:
    """A shard does not answer. Peers go on with what they know, and with fallbacks."""

    shard: int


@dataclass(frozen=True, slots=True)
class PieceArrived:
    """All bytes of a piece are in the data file; `digest` was computed from them as they came."""

    attempt: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class PieceFailed:
    attempt: int
    trouble: Trouble
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SpanOpened:
    """The origin's answer began. `public`: it was given without any credentials."""

    attempt: int
    size: int
    public: bool


@dataclass(frozen=True, slots=True)
class SpanPiece:
    """A whole piece came from the origin and is in the data file."""

    attempt: int
    piece: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SpanPart:
    """Bytes (start, stop), a part of one piece, came from the origin and are in the data file."""

    attempt: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SpanEnded:
    """The origin's answer ended: as asked, or with a refusal."""

    attempt: int
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class PieceHashed:
    """Answer to HashPiece."""

    blob: BlobId
    piece: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Promoted:
    blob: BlobId
    digests: bytes


@dataclass(frozen=True, slots=True)
class PromotionFailed:
    """`corrupt`: the digest was wrong (the partial is gone). Else the disk refused (it stays)."""

    blob: BlobId
    corrupt: bool


@dataclass(frozen=True, slots=True)
class StoreFull:
    blob: BlobId


@dataclass(frozen=True, slots=True)
class PieceUnsaid:
    """The store did not take a piece that was confirmed (two fetchers wrote over each other)."""

    blob: BlobId
    piece: int


PeerEvent = (
    ReadStarted
    | ReadEnded
    | BlobFound
    | StoreRecovered
    | BlobLost
    | ShardSaid
    | ShardReborn
    | ShardHeard
    | ShardLost
    | PieceArrived
    | PieceFailed
    | SpanOpened
    | SpanPiece
    | SpanPart
    | SpanEnded
    | PieceHashed
    | Promoted
    | PromotionFailed
    | StoreFull
    | PieceUnsaid
    | SeenPublic
)


# --- commands of the peer ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tell:
    """Put this into the next report to the shard; `now`: do not wait for others."""

    shard: int
    item: ReportItem
    hurry: bool = False


@dataclass(frozen=True, slots=True)
class OpenPartial:
    key: BlobKey
    size: int
    piece_size: int


@dataclass(frozen=True, slots=True)
class FetchPiece:
    attempt: int
    blob: BlobId
    piece: int
    parent: PeerId
    address: str
    start: int
    stop: int
    wait: bool
    turn: int
    source: str  # "peer" or "seed", for the counters
    cross_zone: bool


@dataclass(frozen=True, slots=True)
class FetchSpan:
    """Back to source for the bytes (start, stop); `stop` may lie beyond the end of the blob."""

    attempt: int
    ref: BlobRef
    start: int
    stop: int
    sponsor: str | None


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    attempt: int


@dataclass(frozen=True, slots=True)
class Confirm:
    """The piece is what it should be: make it visible to readers."""

    blob: BlobId
    piece: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class HashPiece:
    """A piece came in parts: read it back and hash it."""

    blob: BlobId
    piece: int


@dataclass(frozen=True, slots=True)
class Promote:
    blob: BlobId


@dataclass(frozen=True, slots=True)
class DropPartial:
    blob: BlobId


@dataclass(frozen=True, slots=True)
class ReadReady:
    """The first verified bytes at the read's start are in the store."""

    read: int
    size: int
    piece_size: int
    source: str
    public: bool
    upto: int


@dataclass(frozen=True, slots=True)
class ReadProgress:
    read: int
    upto: int


@dataclass(frozen=True, slots=True)
class ReadWaiting:
    """Nothing yet, and this is what it waits for: "shard", "peer" or "origin"."""

    read: int
    on: str


@dataclass(frozen=True, slots=True)
class ReadDone:
    read: int


@dataclass(frozen=True, slots=True)
class ReadFailed:
    read: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class ReadPassthrough:
    """This node cannot keep the blob: the gateway goes to the origin itself."""

    read: int
    reason: str


PeerCommand = (
    Tell
    | OpenPartial
    | FetchPiece
    | FetchSpan
    | CancelAttempt
    | Confirm
    | HashPiece
    | Promote
    | DropPartial
    | ReadReady
    | ReadProgress
    | ReadWaiting
    | ReadDone
    | ReadFailed
    | ReadPassthrough
)


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """The numbers that a peer's decisions depend on, in base units."""

    download_slots: int = 16
    per_parent: int = 4
    #: Length of a request to the origin, in seconds of its rate: while clients read here and there,
    #: and while they only pull.
    span_s: float = 0.25
    pull_span_s: float = 1.0
    #: For so long after a client's wish more wishes are likely.
    lazy_s: float = 3.0
    spans_per_lease: int = 3
    #: Reads up to this length are urgent as a whole; nydusd's are 2 MiB at the most.
    small_read_bytes: int = 8 * 1024 * 1024
    #: Whether small reads bring the rest of their blob in the background; longer ones do.
    whole_blobs: bool = True
    #: A pull that got nothing in order for so long has its next piece treated as urgent.
    stall_s: float = 8.0
    retry_s: float = 0.05
    patience_s: float = 30.0


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """The numbers that a shard's decisions depend on, in base units."""

    #: From one plan to the next: the least, a share of the time that a piece is under way (plans
    #: that come more often find nothing new), and what every peer that wants something adds.
    epoch_s: float = 0.015
    epoch_per_flight: float = 0.05
    epoch_per_peer_s: float = 5e-5
    lease_ttl_s: float = 10.0
    #: How long a peer does not go to an origin that failed it just now. It has tried thrice itself.
    fetch_again_s: float = 2.0
    #: How long a dead peer's pieces are expected back with its disk: by clients that wait, and by
    #: everybody else.
    revive_s: float = 3.0
    grace_s: float = 8.0
    edge_ttl_s: float = 15.0
    urgent_ttl_s: float = 3.0
    blobs_max: int = 100_000
    refusal_ttl_s: float = 15.0
    public_ttl_s: float = 300.0
    corruptions_max: int = 2


@dataclass(slots=True)
class Story:
    """A bounded log of what a machine did, for the message of InvalidTransition."""

    lines: list[str] = field(default_factory=list)
    keep: int = 64

    def add(self, line: str) -> None:
        self.lines.append(line)
        if len(self.lines) > self.keep:
            del self.lines[: -self.keep]

    def __str__(self) -> str:
        return "\n".join(self.lines)
