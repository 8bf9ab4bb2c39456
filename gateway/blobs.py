"""``/v2/<name>/blobs/<digest>``: from the store at once, else as the bytes come.

The order is: may this client read it, which bytes does it want, are they here. The status line goes
out only with the first verified bytes behind it, because no client falls back after that.
Source: reference oci.md §1.3 and §1.4; DESIGN §5.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from typing import TYPE_CHECKING

from passel.errors import InputError, OriginNonsense, OriginRefused
from passel.gateway.hotpath import SMALL, PinnedFile
from passel.gateway.outages import WARNING
from passel.gateway.reading import Reading
from passel.gateway.replies import Failure, Refusal, blob_headers
from passel.oci.ranges import (
    Multipart,
    Span,
    content_range,
    content_range_unsatisfied,
    etag,
    none_match,
    parse_range,
    range_applies,
)

if TYPE_CHECKING:
    from passel.gateway.context import Context
    from passel.gateway.exchange import Exchange
    from passel.gateway.grants import Grant
    from passel.gateway.replies import Header
    from passel.ids import BlobRef
    from passel.store import BlobView
    from passel.telemetry.recording import ReadNote

#: For how long repeats of a request are answered without looking at grants and store again.
REPEAT_S = 5.0
#: The blob's size is worth this much time at the peer before the origin is asked.
STAT_S = 0.3
_SIMPLE = re.compile(r"[ \t]*bytes[ \t]*=[ \t]*([0-9]{1,19})-([0-9]{0,19})[ \t]*", re.IGNORECASE)


class Blobs:
    """Answers requests for blobs."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def serve(self, exchange: Exchange, ref: BlobRef) -> None:
        """Answer a GET or a HEAD. Raises the tree's errors and Refusal before anything was sent."""
        if none_match(exchange.lines("If-None-Match"), etag(ref.digest)):
            grant = await self._context.grants.require(ref, exchange.authorization)
            await exchange.connection.write(self._unchanged(exchange, ref, grant))
        elif exchange.is_head:
            await self._head(exchange, ref)
        else:
            await self._get(exchange, ref)

    async def _head(self, exchange: Exchange, ref: BlobRef) -> None:
        grant = await self._context.grants.require(ref, exchange.authorization)
        size = await self._size(ref, grant, exchange.authorization)
        fields = self._fields(ref, "local" if self._has(ref) else "origin", grant)
        fields.append(("Content-Length", str(size)))
        await exchange.connection.write(exchange.head(200, fields))

    async def _get(self, exchange: Exchange, ref: BlobRef) -> None:
        with self._context.recording.read(ref, self._context.node) as note:
            view = self._context.reader.view(ref.key)
            if view is not None:
                with view:
                    if await self._hit(exchange, ref, view, note):
                        return
            with self._context.miss_slot(exchange.client):
                await self._miss(exchange, ref, note)

    # What is here.

    async def _hit(self, exchange: Exchange, ref: BlobRef, view: BlobView, note: ReadNote) -> bool:
        """Answer from the store; False when not all of it is there."""
        spans = parse_range(_range_of(exchange, ref), view.size)
        wanted = [(0, view.size)] if spans is None else spans
        if spans is None and not view.is_whole:
            return False  # who gets all of it can be told whether it is what its name says
        if not all(view.covers(start, stop) for start, stop in wanted):
            return False
        grants = self._context.grants
        grant = grants.local(ref, exchange.authorization)
        if grant is None:
            grant = await grants.require(ref, exchange.authorization)
            if not all(view.covers(start, stop) for start, stop in wanted):
                return False
        if len(wanted) != 1:
            if not wanted:
                raise Refusal(_beyond(view.size))
            note.ready("local", wanted[0][0], wanted[-1][1])
            await self._parts(exchange, ref, grant, wanted, view.size, None)
            return True
        fields = self._fields(ref, "local", grant)
        start, stop = wanted[0]
        file = PinnedFile(view.fd)
        note.ready("local", start, stop)
        lead = exchange.head(*_framed(fields, None if spans is None else (start, stop), view.size))
        if stop - start <= SMALL:
            body = os.pread(file.fd, stop - start, start)
            if len(body) != stop - start or not view.covers(start, stop):
                return False
            await exchange.connection.write(lead + body)
        else:
            await exchange.connection.send_file(lead, file, start, stop - start)
        self._context.metrics.bytes.labels("local").inc(stop - start)
        if view.complete and exchange.keep and self._may_repeat(ref):
            self._remember(exchange, ref, fields, file, view.size, grant, ranged=spans is not None)
        return True

    def _may_repeat(self, ref: BlobRef) -> bool:
        return self._context.config.upstreams[ref.upstream].read_policy != "always"

    def _remember(
        self,
        exchange: Exchange,
        ref: BlobRef,
        fields: list[Header],
        file: PinnedFile,
        size: int,
        grant: Grant,
        *,
        ranged: bool,
    ) -> None:
        """Let repeats of this request be answered by the connection itself, for a short while."""
        lead = exchange.head(*_framed(fields, (0, size) if ranged else None, size))
        lead = lead.replace(b"%", b"%%")
        if ranged:
            old = f"Content-Range: {content_range(0, size, size)}\r\n".encode()
            lead = lead.replace(old, b"Content-Range: bytes %d-%d/" + b"%d\r\n" % size)
        lead = lead.replace(b"Content-Length: %d\r\n" % size, b"Content-Length: %d\r\n")
        expires = min(asyncio.get_running_loop().time() + REPEAT_S, grant.ends)
        repeats = self._context.recording.repeats(ref, self._context.node)
        exchange.connection.remember(file, size, lead, expires, repeats)

    # What is not.

    async def _miss(self, exchange: Exchange, ref: BlobRef, note: ReadNote) -> None:
        began = asyncio.get_running_loop().time()
        header = _range_of(exchange, ref)
        first = _first_span(header)
        size = self._known_size(ref)
        if first is None or (size is not None and first[0] >= size):
            # Which bytes are meant, or that there are none, depends on the size.
            grant = await self._context.grants.require(ref, exchange.authorization)
            size = await self._size(ref, grant, exchange.authorization)
            spans = parse_range(header, size)
            if spans is not None and not spans:
                raise Refusal(_beyond(size))
            first = (0, size) if spans is None else spans[0]
        reading = Reading(self._context, ref, exchange.authorization)
        _preferences(exchange, reading)
        try:
            await self._open(exchange, ref, reading, first)
            grant = await self._grant(exchange, ref, reading)
            took_s = asyncio.get_running_loop().time() - began
            self._context.metrics.first_byte_s.labels(reading.source).observe(took_s)
            stop = first[1] if first[1] is not None else reading.size or 0
            note.ready(reading.source, first[0], stop)
            await self._send(exchange, ref, reading, grant, header)
        finally:
            await reading.close()

    async def _open(
        self, exchange: Exchange, ref: BlobRef, reading: Reading, first: tuple[int, int | None]
    ) -> None:
        try:
            await reading.open(*first)
        except (InputError, OriginRefused, OriginNonsense) as error:
            if not isinstance(error, OriginNonsense) and error.status != 416:
                raise
            # The range may begin beyond the end, which only the size tells.
            grant = await self._context.grants.require(ref, exchange.authorization)
            size = await self._size(ref, grant, exchange.authorization)
            if size == 0:
                reading.size, reading.source = 0, "origin"
            elif first[0] >= size:
                raise Refusal(_beyond(size)) from error
            else:
                raise

    async def _grant(self, exchange: Exchange, ref: BlobRef, reading: Reading) -> Grant:
        """Whether this client may have what was opened; it may have been fetched for another."""
        grants = self._context.grants
        assert reading.size is not None
        if reading.proven:
            return grants.won(
                ref, exchange.authorization, anonymous=reading.public, size=reading.size
            )
        if reading.public and self._may_repeat(ref):
            return grants.found_public(ref, None, reading.size)
        return await grants.require(ref, exchange.authorization)

    async def _send(
        self, exchange: Exchange, ref: BlobRef, reading: Reading, grant: Grant, header: str | None
    ) -> None:
        size = reading.size
        assert size is not None
        spans = parse_range(header, size)
        if spans is not None and not spans:
            raise Refusal(_beyond(size))
        if spans is not None and len(spans) > 1:
            await self._parts(exchange, ref, grant, spans, size, reading)
            return
        start, stop = (0, size) if spans is None else spans[0]
        fields = self._fields(ref, reading.source, grant)
        lead = exchange.head(*_framed(fields, None if spans is None else (start, stop), size))
        reading.is_whole = spans is None
        await reading.send(exchange.connection, lead, start, stop)

    async def _parts(
        self,
        exchange: Exchange,
        ref: BlobRef,
        grant: Grant,
        spans: list[Span],
        size: int,
        reading: Reading | None,
    ) -> None:
        """A ``multipart/byteranges`` answer, one part per span in the order of the request."""
        frame = Multipart.of(spans, size, secrets.token_hex(16))
        source = "local" if reading is None else reading.source
        fields = [each for each in self._fields(ref, source, grant) if each[0] != "Content-Type"]
        fields += [
            ("Content-Type", frame.content_type),
            ("Content-Length", str(frame.content_length)),
        ]
        lead = exchange.head(206, fields)
        own = reading is None
        reading = reading or Reading(self._context, ref, exchange.authorization)
        reading.size = size
        try:
            for part_head, (start, stop) in zip(frame.heads, spans, strict=True):
                await reading.send(exchange.connection, lead + part_head, start, stop)
                lead = b""
            await exchange.connection.write(frame.tail)
        finally:
            if own:
                await reading.close()

    # Sizes and headers.

    def _known_size(self, ref: BlobRef) -> int | None:
        view = self._context.reader.view(ref.key)
        if view is not None:
            with view:
                return view.size
        return None

    def _has(self, ref: BlobRef) -> bool:
        return self._known_size(ref) is not None

    async def _size(self, ref: BlobRef, grant: Grant, authorization: str | None) -> int:
        """The blob's size, from the nearest place that knows it; the origin is the last."""
        for size in (self._known_size(ref), grant.size, self._context.learned.size(ref)):
            if size is not None:
                return size
        known = await self._context.door.stat(ref, STAT_S)
        if known is not None and known.size is not None:
            return known.size
        credential = self._context.grants.credential(ref.upstream, authorization)
        found = await self._context.origin(ref.upstream).stat_blob(ref, authorization=credential)
        return found.size

    def _fields(self, ref: BlobRef, source: str, grant: Grant) -> list[Header]:
        fields = blob_headers(
            ref.upstream, ref.id, str(ref.digest), source, private=not grant.public
        )
        if grant.is_stale:
            self._context.metrics.stale.labels("blob").inc()
            fields.append(("Warning", WARNING))
        return fields

    def _unchanged(self, exchange: Exchange, ref: BlobRef, grant: Grant) -> bytes:
        # A 304 has no body and, so that nobody waits for one, no length.
        skip = ("Content-Type", "Accept-Ranges")
        fields = [each for each in self._fields(ref, "local", grant) if each[0] not in skip]
        return exchange.head(304, fields)


def _framed(fields: list[Header], span: Span | None, size: int) -> tuple[int, list[Header]]:
    """Status and headers of an answer with all bytes (None) or one span of them."""
    if span is None:
        return 200, [*fields, ("Content-Length", str(size))]
    start, stop = span
    return 206, [
        *fields,
        ("Content-Length", str(stop - start)),
        ("Content-Range", content_range(start, stop, size)),
    ]


def _range_of(exchange: Exchange, ref: BlobRef) -> str | None:
    """The Range header, if it is to be honoured."""
    lines = exchange.lines("Range")
    if len(lines) != 1 or not range_applies(exchange.header("If-Range"), etag(ref.digest)):
        return None
    return lines[0]


def _first_span(header: str | None) -> tuple[int, int | None] | None:
    """What can be asked of the peer without knowing the size; None: it must be known first."""
    if header is None:
        return 0, None
    match = _SIMPLE.fullmatch(header)
    if match is None:
        return None
    start = int(match[1])
    if not match[2]:
        return start, None
    stop = int(match[2]) + 1
    return (start, stop) if stop > start else (0, None)


def _beyond(size: int) -> Failure:
    return Failure(
        416,
        "SIZE_INVALID",
        "the range begins beyond the end of the blob",
        headers=(("Content-Range", content_range_unsatisfied(size)), ("Accept-Ranges", "bytes")),
    )


def _preferences(exchange: Exchange, reading: Reading) -> None:
    """What nydusd >= 2.4.3 says about a read: 6 is on-demand, 3 prefetch."""
    priority = exchange.header("X-Dragonfly-Priority")
    if priority is not None and priority.strip() in ("0", "1", "2", "3"):
        reading.priority = "prefetch"
    if (exchange.header("X-Dragonfly-Use-P2P") or "").strip().lower() == "false":
        reading.through_peer = False
