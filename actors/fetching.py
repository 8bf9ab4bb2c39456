"""Carries out a peer's fetch commands: pieces from parents, spans from the origin.

Each runs as one task and ends in exactly one final event, unless it is cancelled: then the machine
has forgotten the attempt already.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from passel.actors.duties import Duties
from passel.actors.recording import PeerRecording
from passel.core.messages import (
    FetchPiece,
    FetchSpan,
    PeerEvent,
    PieceArrived,
    PieceFailed,
    Refusal,
    SpanEnded,
    SpanOpened,
    SpanPart,
    SpanPiece,
    Trouble,
)
from passel.errors import (
    ContentError,
    NoSpace,
    OriginNonsense,
    OriginRefused,
    OriginTimeout,
    PasselError,
    PeerBusy,
    PeerUnavailable,
    TransientError,
)
from passel.store.partial import PartialBlob
from passel.store.store import Store
from passel.telemetry.flows import Flows
from passel.transport.origin import BlobStream, OriginClient
from passel.transport.piece_client import PieceClient
from passel.transport.wire import PeerSilent, PieceNotHeld

log = logging.getLogger(__name__)

#: The last resort. Silence is noticed long before, and who is slower than others by the shard; a
#: piece of 16 MiB over a link of 2 Mbit/s that is all there is takes 67 s.
PIECE_TIMEOUT_S = 120.0
WAIT_S = 5.0
CREDENTIALS_TIMEOUT_S = 2.0
#: Origin bytes are hashed and written in batches of this size, on a thread.
BATCH_BYTES = 512 * 1024


class Origins(Protocol):
    """One origin client per upstream."""

    def of(self, upstream: str) -> OriginClient: ...


class Fetching:
    """The fetches of one peer. Belongs to its event loop."""

    def __init__(
        self,
        store: Store,
        pieces: PieceClient,
        origins: Origins,
        duties: Duties,
        step: Callable[[PeerEvent], None],
        recording: PeerRecording,
    ) -> None:
        self._store = store
        self._pieces = pieces
        self._origins = origins
        self._duties = duties
        self._step = step
        self._recording = recording
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.bytes_from = {"peer": 0, "seed": 0, "origin": 0}
        self.cross_zone_bytes = 0
        self.flows = Flows()
        self.n_origin_requests = 0
        self.n_origin_errors = 0

    @property
    def n_running(self) -> int:
        """Pieces and spans that are being fetched now."""
        return len(self._tasks)

    def piece(self, command: FetchPiece) -> None:
        self._run(command.attempt, self._fetch_piece(command))

    def span(self, command: FetchSpan) -> None:
        self._run(command.attempt, self._fetch_span(command))

    def _run(self, attempt: int, work: Coroutine[Any, Any, None]) -> None:
        task = self._duties.task(work)
        self._tasks[attempt] = task
        task.add_done_callback(lambda _: self._tasks.pop(attempt, None))

    def cancel(self, attempt: int) -> None:
        task = self._tasks.pop(attempt, None)
        if task is not None:
            task.cancel()

    # --- from a parent --------------------------------------------------------------------------

    async def _fetch_piece(self, command: FetchPiece) -> None:
        partial = self._store.partial(command.blob)
        if partial is None:
            self._step(PieceFailed(command.attempt, Trouble.BUSY))
            return
        start, length = command.start, command.stop - command.start
        note = self._recording.begin()

        def sink(offset: int, view: memoryview) -> None:
            if note is not None:
                note.came()
            partial.write(start + offset, view)

        began = time.monotonic()
        try:
            digest = await self._pieces.fetch(
                command.address,
                command.blob,
                command.piece,
                length,
                sink,
                turn=command.turn,
                wait_s=WAIT_S if command.wait else 0.0,
                timeout_s=PIECE_TIMEOUT_S,
            )
        except PasselError as error:
            failed = _piece_failed(command, error)
            self._recording.piece(note, command, failed.trouble.value)
            self._step(failed)
            return
        log.debug(
            "piece_fetched blob=%s piece=%d parent=%s took_s=%.4f",
            command.blob,
            command.piece,
            command.parent,
            time.monotonic() - began,
        )
        self._recording.piece(note, command, "ok")
        self.bytes_from[command.source] += length
        self.flows.add(command.parent, length, time.monotonic())
        if command.cross_zone:
            self.cross_zone_bytes += length
        self._step(PieceArrived(command.attempt, digest))

    # --- from the origin ------------------------------------------------------------------------

    async def _fetch_span(self, command: FetchSpan) -> None:
        self.n_origin_requests += 1
        try:
            await self._stream(command, None)
        except OriginRefused as refused:
            if command.sponsor is None or refused.status not in (401, 403):
                self.n_origin_errors += 1
                self._step(SpanEnded(command.attempt, refusal_of(refused)))
                return
            await self._with_credentials(command, command.sponsor)
        except PasselError as error:
            self.n_origin_errors += 1
            self._step(SpanEnded(command.attempt, refusal_of(error)))

    async def _with_credentials(self, command: FetchSpan, sponsor: str) -> None:
        """Not public: ask the peer whose client waits for what that client sent."""
        try:
            authorization = await self._pieces.credentials(
                sponsor, command.ref.id, CREDENTIALS_TIMEOUT_S
            )
            await self._stream(command, authorization)
        except PasselError as error:
            self.n_origin_errors += 1
            self._step(SpanEnded(command.attempt, refusal_of(error)))

    async def _stream(self, command: FetchSpan, authorization: str | None) -> None:
        client = self._origins.of(command.ref.upstream)
        async with client.fetch_blob(
            command.ref, command.start, command.stop, authorization=authorization
        ) as stream:
            self._step(SpanOpened(command.attempt, stream.size, stream.anonymous))
            await asyncio.sleep(0)  # the word on the size goes out before the body comes in
            partial = self._store.partial(command.ref.id)
            if partial is None:
                raise NoSpace("there is no file for the blob")
            await self._take(command, stream, partial)
        self._step(SpanEnded(command.attempt, None))

    async def _take(self, command: FetchSpan, stream: BlobStream, partial: PartialBlob) -> None:
        """Write, hash and report the bytes of one span as they come."""
        loop = asyncio.get_running_loop()
        cutter = Cutter(partial, command.start, min(command.stop, stream.size))
        began_at = time.time()
        batch = bytearray()
        async for chunk in stream.chunks():
            batch += chunk
            # The first batch is small: a client may wait for the piece that it completes.
            if len(batch) >= BATCH_BYTES or cutter.at + len(batch) >= cutter.next_edge:
                done = await loop.run_in_executor(None, cutter.take, batch)
                began_at = self._report(command, done, len(batch), began_at)
                batch = bytearray()
        if batch:
            done = await loop.run_in_executor(None, cutter.take, batch)
            self._report(command, done, len(batch), began_at)

    def _report(self, command: FetchSpan, done: list[Cut], n_bytes: int, began_at: float) -> float:
        self.bytes_from["origin"] += n_bytes
        blob = command.ref.id
        for cut in done:
            began_at = self._recording.origin(blob, cut.piece, cut.stop - cut.start, began_at)
            if cut.digest is not None:
                self._step(SpanPiece(command.attempt, cut.piece, cut.digest))
            else:
                self._step(SpanPart(command.attempt, cut.start, cut.stop))
        return began_at


class Cut:
    """The end of a piece in a span: all of the piece (with its digest), or a part of it."""

    __slots__ = ("digest", "piece", "start", "stop")

    def __init__(self, piece: int, start: int, stop: int, digest: bytes | None) -> None:
        self.piece = piece
        self.start = start
        self.stop = stop
        self.digest = digest


class Cutter:
    """Cuts a run of origin bytes (start, stop) into pieces, writing and hashing them.

    `take` runs on a thread; the calls for one span follow each other.
    """

    def __init__(self, partial: PartialBlob, start: int, stop: int) -> None:
        self._partial = partial
        self._stop = stop
        self.at = start
        self._begin(start)

    def _begin(self, at: int) -> None:
        self._piece = at // self._partial.piece_size
        self._from = at
        self._hasher = hashlib.sha256()
        if at < self._partial.size:
            self.next_edge = min(self._partial.span(self._piece)[1], self._stop)
        else:
            self.next_edge = self._stop

    def take(self, data: bytearray) -> list[Cut]:
        """Write what came; the pieces (or parts, at the ends of the span) that it finished."""
        done: list[Cut] = []
        view = memoryview(data)
        while view:
            head = view[: self.next_edge - self.at]
            if not head:
                raise ContentError("the origin sent more than was asked for")
            self._partial.write(self.at, head)
            self._hasher.update(head)
            self.at += len(head)
            view = view[len(head) :]
            if self.at == self.next_edge:
                is_whole = (self._from, self.at) == self._partial.span(self._piece)
                digest = self._hasher.digest() if is_whole else None
                done.append(Cut(self._piece, self._from, self.at, digest))
                self._begin(self.at)
        return done


def _piece_failed(command: FetchPiece, error: PasselError) -> PieceFailed:
    match error:
        case PeerBusy():
            return PieceFailed(command.attempt, Trouble.BUSY, error.retry_after_s)
        case PieceNotHeld():
            return PieceFailed(command.attempt, Trouble.MISSING)
        case ContentError():
            return PieceFailed(command.attempt, Trouble.CORRUPT)
        case PeerSilent():
            log.info("piece_stalled piece=%d parent=%s", command.piece, command.parent)
            return PieceFailed(command.attempt, Trouble.STALLED)
        case PeerUnavailable():
            log.info("piece_failed piece=%d parent=%s why=%s", command.piece, command.parent, error)
            return PieceFailed(command.attempt, Trouble.DEAD)
        case TransientError():
            # Too much to do on this side: no parent is to blame.
            return PieceFailed(command.attempt, Trouble.BUSY, 0.1)
        case _:
            log.warning("piece_not_written blob=%s why=%s", command.blob, error)
            return PieceFailed(command.attempt, Trouble.BUSY, 1.0)


def refusal_of(error: PasselError) -> Refusal:
    """An error of the origin, or of the disk, as what readers are told."""
    match error:
        case OriginRefused():
            headers = tuple(sorted(error.headers.items()))
            return Refusal(error.status, "", str(error), headers, error.body)
        case OriginTimeout():
            return Refusal(504, "UNKNOWN", str(error))
        case OriginNonsense() | ContentError():
            return Refusal(502, "UNKNOWN", str(error))
        case NoSpace():
            return Refusal(503, "UNKNOWN", "no space left on the disk of the fetching node")
        case _:
            return Refusal(503, "UNKNOWN", str(error))


def read_piece(partial: PartialBlob, piece: int) -> bytes:
    """SHA-256 of a piece as it lies in the data file; runs on a thread."""
    start, stop = partial.span(piece)
    hasher = hashlib.sha256()
    while start < stop:
        data = os.pread(partial.fileno(), min(BATCH_BYTES, stop - start), start)
        if not data:
            raise ContentError("the data file is shorter than its blob")
        hasher.update(data)
        start += len(data)
    return hasher.digest()
