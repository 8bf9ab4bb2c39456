"""Back to source in virtual time: one request of a lease-holder, and the origin that answers it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from passel.core import messages as m
from passel.core.pieces import Geometry
from passel.ids import BlobId

if TYPE_CHECKING:
    from passel.sim.node import Node
    from passel.sim.world import World

#: The origin client's patience with an answer that does not come, seconds.
FIRST_BYTE_TIMEOUT_S = 10.0
#: All of a span; a hanging body is given up before.
SPAN_TIMEOUT_S = 60.0
WRONG = hashlib.sha256(b"bad").digest()


@dataclass
class Origin:
    """The registry: one link, a latency, and what can be wrong with it.

    Attributes
    ----------
    trouble : str
        Empty, "down" (503 at once) or "hang" (no answer at all).
    n_bytes : dict
        Bytes that left the origin, by blob; also those of requests that were broken off.
    """

    world: World
    link: int
    latency_s: float
    sizes: dict[BlobId, int] = field(default_factory=dict)
    private: set[BlobId] = field(default_factory=set)
    missing: set[BlobId] = field(default_factory=set)
    corrupt: set[BlobId] = field(default_factory=set)
    trouble: str = ""
    n_bytes: dict[BlobId, int] = field(default_factory=dict)
    n_requests: int = 0

    def is_corrupt(self, blob: BlobId) -> bool:
        return blob in self.corrupt

    def refusal(self, command: m.FetchSpan) -> m.Refusal | None:
        """Why it does not send this, None if it does."""
        blob = command.ref.id
        if self.trouble == "down":
            return m.Refusal(503, "UNKNOWN", "the origin is down")
        if blob in self.missing:
            return m.Refusal(404, "BLOB_UNKNOWN", "there is no such blob")
        if blob in self.private and command.sponsor is None:
            return m.Refusal(401, "UNAUTHORIZED", "this blob is private")
        return None

    def count(self, blob: BlobId, n_bytes: int) -> None:
        self.n_bytes[blob] = self.n_bytes.get(blob, 0) + n_bytes


class SpanFetch:
    """One ranged GET: its bytes come as one stream, told piece by piece."""

    def __init__(self, node: Node, command: m.FetchSpan) -> None:
        self.node = node
        self.command = command
        self.transfer: int | None = None
        self._is_over = False
        self._at = command.start
        self._until = command.start
        self._began_at = 0.0
        self._stop = command.stop

    def begin(self) -> None:
        world = self.node.world
        world.origin.n_requests += 1
        self._began_at = world.clock.now
        world.clock.after(world.origin.latency_s * world.jitter(), self._open)

    def cancel(self) -> None:
        """Broken off: what came so far was sent for nothing if no piece was whole."""
        self._is_over = True
        if self.transfer is not None:
            world = self.node.world
            left = world.network.cancel(self.transfer)
            world.origin.count(self.command.ref.id, round(self._until - self._at - left))
            self.transfer = None

    def _was_cancelled(self) -> bool:
        return self._is_over

    def _step(self, event: m.PeerEvent) -> None:
        self.node.step(event)

    def _end(self, refusal: m.Refusal | None) -> None:
        if not self._is_over:
            self._is_over = True
            self.node.fetches.pop(self.command.attempt, None)
            self._step(m.SpanEnded(self.command.attempt, refusal))

    def _open(self) -> None:
        if self._is_over:
            return
        world, origin = self.node.world, self.node.world.origin
        blob = self.command.ref.id
        if origin.trouble == "hang":
            late = m.Refusal(504, "UNKNOWN", "the origin said nothing in time")
            world.clock.after(FIRST_BYTE_TIMEOUT_S, self._end, late)
            return
        refusal = origin.refusal(self.command)
        if refusal is not None:
            self._end(refusal)
            return
        size = origin.sizes[blob]
        self._geometry = Geometry.of(size)
        self._stop = min(self._stop, size)
        self._step(m.SpanOpened(self.command.attempt, size, blob not in origin.private))
        if self._was_cancelled():
            return
        if self._at >= self._stop:
            self._end(None)
            return
        node = self.node
        self.transfer = world.network.begin(
            (origin.link, node.place.down, node.place.disk),
            self._next_cut(),
            SPAN_TIMEOUT_S,
            self._came,
        )

    def _next_cut(self) -> int:
        """Bytes to the end of the piece, or of the span."""
        piece = self._at // self._geometry.piece_size
        self._until = min(self._stop, self._geometry.span(piece)[1])
        return self._until - self._at

    def _came(self, is_whole: bool) -> float:
        """One piece, or a part of one, is here; the answer is what comes next."""
        world, blob, attempt = self.node.world, self.command.ref.id, self.command.attempt
        if not is_whole:
            self.transfer = None
            self._end(m.Refusal(504, "UNKNOWN", "the origin stopped in the middle"))
            return 0.0
        start, stop = self._at, self._until
        piece = start // self._geometry.piece_size
        world.origin.count(blob, stop - start)
        world.record_span(self, piece, stop - start, self._began_at)
        self._at, self._began_at = stop, world.clock.now
        more = 0.0 if stop >= self._stop else float(self._next_cut())
        if not more:
            self.transfer = None
        if (start, stop) == self._geometry.span(piece):
            is_wrong = world.origin.is_corrupt(blob)
            digest = WRONG if is_wrong else world.digest(blob, piece)
            self._step(m.SpanPiece(attempt, piece, digest))
        else:
            self._step(m.SpanPart(attempt, start, stop))
        if self._was_cancelled():
            return 0.0
        if not more:
            self._end(None)
        return more
