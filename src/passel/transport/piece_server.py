"""The piece server: how a peer's pieces, and nothing else, get to other peers.

An HTTP/1.1 server inside the peer's event loop. Bytes go from page cache to socket by sendfile;
Python sees heads only, as long as there is no TLS. Decisions (what is held, when to wait) belong to
the `PieceSource`, which is the peer.

Order of checks: certificate, if there is TLS, MAC, target, method, then the source. Somebody
without the secret learns only that.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from aiohttp import web

from passel.errors import InputError
from passel.ids import BlobId
from passel.oci.ranges import content_range, parse_range
from passel.transport.auth import AUTH_HEADER, ClusterAuth
from passel.transport.sending import Gate, send_copied, send_file
from passel.transport.slots import UploadSlots
from passel.transport.wire import (
    HEAD_BYTES_MAX,
    PAUSE_S,
    PIECE_DIGEST_HEADER,
    RETRY_AFTER_MS_HEADER,
    CredentialsTarget,
    PieceTarget,
    parse_target,
)

log = logging.getLogger(__name__)

# Standing in line costs nothing but a connection, and the shard has seen to it that the line is
# short. A child that is sent away has to ask again, and the uplink may be idle meanwhile.
_SLOT_WAIT_S: Final = 5.0
_LINE_MAX: Final = 128
_STALL_S: Final = 30.0
_HANDSHAKE_S: Final = 5.0
_WAITS_MAX: Final = 1024
_CONNECTIONS_MAX: Final = 4096
_RETRY_AFTER_S: Final = (0.02, 1.0)


@dataclass(frozen=True, slots=True)
class PieceLocation:
    """Where a verified piece lies: `length` bytes of `fd` from `offset`, SHA-256 `digest` (raw).

    The server duplicates `fd` before it gives the event loop away, so that the source may close
    its own at any time after `PieceSource.locate` returned.
    """

    fd: int
    offset: int
    length: int
    digest: bytes


class PieceSource(Protocol):
    """What the piece server asks the peer; all calls come from the server's event loop."""

    def locate(self, blob: BlobId, piece: int) -> PieceLocation | None:
        """Where the piece is, if it is held here and verified; any `piece` number may come."""
        ...

    async def wait(self, blob: BlobId, piece: int, timeout_s: float) -> bool:
        """Return True as soon as the piece is held, False after `timeout_s` or when hopeless."""
        ...

    def credentials(self, blob: BlobId) -> str | None:
        """The ``Authorization`` value of a client that waits for this blob, if there is one."""
        ...


class _Refusal(asyncio.Protocol):
    """One connection too many: there is not even an answer, which would have to be buffered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class _Server(web.Server):
    """Knows of connections from the first packet on: a TLS handshake comes before aiohttp's part.

    A handshake that fails tells nobody, so it is counted until its deadline has passed; one that
    went well counts as what it is from then on.
    """

    def __init__(self, *given: Any, handshake_s: float, **options: Any) -> None:
        super().__init__(*given, **options)
        self._handshake_s = handshake_s
        #: Handshakes that were begun, in order -> when.
        self._begun: dict[web.RequestHandler, float] = {}

    def begin(self) -> web.RequestHandler:
        """The protocol of a connection that was just accepted."""
        protocol = self()
        if self._handshake_s:
            self._begun[protocol] = time.monotonic()
        return protocol

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        self._begun.pop(handler, None)
        super().connection_made(handler, transport)

    @property
    def n_open(self) -> int:
        late = time.monotonic() - self._handshake_s
        while self._begun:
            protocol = next(iter(self._begun))
            if self._begun[protocol] > late:
                break
            del self._begun[protocol]
        return len(self.connections) + len(self._begun)


class PieceServer:
    """Serves pieces to authenticated peers, `slots` bodies at once (see `core.uploads`).

    Belongs to one event loop. The plain counters are for telemetry and only ever grow;
    `n_uploads` and `n_waiting` are levels.
    """

    def __init__(
        self,
        source: PieceSource,
        auth: ClusterAuth,
        slots: int,
        *,
        stall_s: float = _STALL_S,
        slot_wait_s: float = _SLOT_WAIT_S,
        handshake_s: float = _HANDSHAKE_S,
        connections_max: int = _CONNECTIONS_MAX,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._source = source
        self._auth = auth
        self._tls = tls
        self._slots = UploadSlots(slots, n_waiting_max=_LINE_MAX)
        self._gate = Gate(PAUSE_S)
        self._stall_s = stall_s
        self._slot_wait_s = slot_wait_s
        self._handshake_s = None if tls is None else handshake_s
        self._connections_max = connections_max
        self._server: _Server | None = None
        self._listener: asyncio.Server | None = None
        self._waits: set[asyncio.Task[bool]] = set()
        self._stopping = False
        self.bytes_sent = 0
        self.n_requests = 0
        self.n_pieces_sent = 0
        self.n_refused_auth = 0
        self.n_refused_busy = 0
        self.n_not_held = 0
        self.n_cut = 0

    @property
    def n_uploads(self) -> int:
        """Upload slots that are taken now; `core.uploads` says who sends without one."""
        return self._slots.n_taken

    @property
    def n_waiting(self) -> int:
        """Requests that wait for a piece to arrive here; they take no slot."""
        return len(self._waits)

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port, which the kernel chose when `port` is 0."""
        loop = asyncio.get_running_loop()
        server = _Server(
            self._handle,
            handshake_s=self._handshake_s or 0.0,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=60.0,
            max_line_size=HEAD_BYTES_MAX,
            max_field_size=HEAD_BYTES_MAX,
            lingering_time=0.0,
        )

        def connection() -> asyncio.BaseProtocol:
            if server.n_open >= self._connections_max:
                self.n_refused_busy += 1
                return _Refusal()
            return server.begin()

        # A whole wave of children connects in the same moment: the default of 100 drops SYNs.
        self._listener = await loop.create_server(
            connection,
            host,
            port,
            backlog=1024,
            ssl=self._tls,
            ssl_handshake_timeout=self._handshake_s,
        )
        self._server = server
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def stop(self, deadline_s: float) -> None:
        """Stop: listen no more, answer waiters with 503, let bodies end until the deadline."""
        self._stopping = True
        if self._listener is None or self._server is None:
            return
        self._listener.close()
        for task in self._waits:
            task.cancel()
        self._server.pre_shutdown()
        # aiohttp uses the timeout twice: for the handlers to end, and to end them.
        await self._server.shutdown(timeout=max(deadline_s / 2, 0.01))
        self._listener = None
        self._server = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.n_requests += 1
        headers = request.headers.getall(AUTH_HEADER, [])
        # The raw target: what was signed, before anyone decodes or normalises it.
        raw = request.raw_path
        header = headers[0] if len(headers) == 1 else None
        if not self._auth.verify(request.method, raw, header, time.time()):
            self.n_refused_auth += 1
            return _refusal(401, "this request was not signed with this cluster's secret", True)
        target = parse_target(raw)
        if target is None:
            return _refusal(404, "no such target")
        if request.method != "GET":
            return _refusal(405, "GET only", True)
        if self._stopping:
            return self._busy(True)
        if isinstance(target, CredentialsTarget):
            return self._answer_credentials(target)
        return await self._answer_piece(request, target)

    def _answer_credentials(self, target: CredentialsTarget) -> web.Response:
        body = json.dumps({"authorization": self._source.credentials(target.blob)})
        return web.Response(
            text=body, content_type="application/json", headers={"Cache-Control": "no-store"}
        )

    async def _answer_piece(
        self, request: web.BaseRequest, target: PieceTarget
    ) -> web.StreamResponse:
        held = self._source.locate(target.blob, target.piece) is not None
        if not held and target.wait_s > 0:
            held = await self._wait(target)
            if self._stopping:
                return self._busy(True)
        if not held:
            return self._not_held()
        slot = await self._slots.acquire(target.turn, self._slot_wait_s)
        if slot is None:
            return self._busy()
        try:
            # Located again: it may have been evicted while the request stood in line.
            location = self._source.locate(target.blob, target.piece)
            if location is None:
                return self._not_held()
            if target.turn:
                return await self._send(request, location, self._gate)
            self._gate.enter()
            try:
                return await self._send(request, location, None)
            finally:
                self._gate.leave()
        finally:
            self._slots.release(slot)

    async def _wait(self, target: PieceTarget) -> bool:
        if len(self._waits) >= _WAITS_MAX:
            return False
        task = asyncio.get_running_loop().create_task(
            self._source.wait(target.blob, target.piece, target.wait_s)
        )
        self._waits.add(task)
        try:
            # The source keeps its own deadline; this one is for a source with a bug.
            await asyncio.wait((task,), timeout=target.wait_s + 1.0)
            return task.done() and not task.cancelled() and task.result()
        finally:
            self._waits.discard(task)
            task.cancel()

    async def _send(
        self, request: web.BaseRequest, location: PieceLocation, gate: Gate | None
    ) -> web.StreamResponse:
        start, stop, status = 0, location.length, 200
        headers = {
            PIECE_DIGEST_HEADER: location.digest.hex(),
            "Content-Type": "application/octet-stream",
        }
        try:
            ranges = parse_range(request.headers.get("Range"), location.length)
        except InputError as error:
            return _refusal(error.status, error.message)
        if ranges is not None and not ranges:
            return _refusal(416, "no byte of this range is in the piece")
        if ranges is not None and len(ranges) == 1:
            # RFC 9110 §14.2: a server may ignore Range. Several at once are, here.
            start, stop = ranges[0]
            status = 206
            headers["Content-Range"] = content_range(start, stop, location.length)
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = stop - start
        fd = os.dup(location.fd)
        try:
            await response.prepare(request)
            transport = request.transport
            if transport is None:
                raise ConnectionResetError("the connection is closed")
            try:
                send = send_file if self._tls is None else partial(send_copied, response.write)
                await send(
                    transport,
                    fd,
                    location.offset + start,
                    stop - start,
                    stall_s=self._stall_s,
                    progress=self._count,
                    gate=gate,
                )
            except (OSError, asyncio.CancelledError) as error:
                # Part of the body may be out. Only the end of the connection tells the child that
                # the rest will not come: another answer on it would be taken for body.
                self.n_cut += 1
                transport.abort()
                if isinstance(error, asyncio.CancelledError):
                    raise
                log.debug("piece_cut reason=%s", error)
                return response
            await response.write_eof()
        finally:
            os.close(fd)
        self.n_pieces_sent += 1
        return response

    def _count(self, n_bytes: int) -> None:
        self.bytes_sent += n_bytes

    def _not_held(self) -> web.Response:
        self.n_not_held += 1
        return _refusal(404, "this piece is not held here")

    def _busy(self, close: bool = False) -> web.Response:
        self.n_refused_busy += 1
        lowest, highest = _RETRY_AFTER_S
        retry_after_s = min(max(self._slots.usual_s, lowest), highest)
        response = _refusal(503, "no upload slot is free", close)
        response.headers["Retry-After"] = "1"
        response.headers[RETRY_AFTER_MS_HEADER] = str(int(retry_after_s * 1000))
        return response


def _refusal(status: int, message: str, close: bool = False) -> web.Response:
    """A refusal never repeats anything of the request."""
    response = web.json_response({"error": message}, status=status)
    if close:
        response.force_close()
    return response
