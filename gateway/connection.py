"""One client connection: aiohttp's HTTP parser, and a way past its request machinery for repeats.

aiohttp parses every request that it has not seen before; nothing here parses HTTP. A request that
was served whole from the store leaves a `Template`: the exact bytes of its head, cut where the
digits
of its range stand. A later head that is equal to the byte, digits aside, would be accepted by the
same
parser and answered by the same rules as a moment ago, and is answered in ``data_received``: no
task,
no request object, one system call for the answer. Templates live for seconds, so that grants,
configuration and eviction are looked at again by the ordinary path.

A connection has at most one sender at a time: the way past is taken only while no handler runs and
the next byte is known to begin a request (`_clean`), and reading pauses while it sends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from passel.gateway.hotpath import LONGEST_REPEAT, SMALL, Answer, PinnedFile, Template, Transfer
from passel.gateway.replies import failure_bytes

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest
    from aiohttp.web_response import StreamResponse

    from passel.telemetry.recording import Repeats

log = logging.getLogger(__name__)

#: Far beyond any clock of ours: `Server.sweep` closes idle connections, aiohttp's own timer would
#: not see the requests that bypass it.
NEVER_S = 30 * 24 * 3600.0
#: Per listener; a template is about 1.5 kB and one open file.
MAX_TEMPLATES = 512
REQUESTS_MAX = 100_000
#: A head with more than this (a huge token) is not worth its memory.
LONGEST_HEAD = 16 * 1024
_RANGE_LINE = re.compile(rb"\r\nrange[ \t]*:", re.IGNORECASE)
_RANGE_DIGITS = re.compile(rb"\r\nrange: ?bytes=([0-9]{1,19}-[0-9]{1,19})\r\n", re.IGNORECASE)


class _Sent(web.StreamResponse):
    """What a handler returns when the answer is already on the wire."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self._keep = keep

    @property
    def keep_alive(self) -> bool:
        return self._keep

    async def prepare(self, request: BaseRequest) -> None:
        """Nothing is left to write."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


class Connection(RequestHandler):
    """One connection of one client. Runs on the loop's thread only."""

    __slots__ = (
        "_clean",
        "_head",
        "_head_bytes",
        "_head_is_whole",
        "_head_since",
        "_raw",
        "busy",
        "last_active",
        "loop",
        "n_requests",
        "server",
        "started",
        "transfer",
    )

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(server, loop=loop, **options)
        self.server = server
        self.loop = loop
        self.last_active = loop.time()
        self.transfer: Transfer | None = None
        self.n_requests = 0
        #: A handler is at work on this connection.
        self.busy = False
        #: Bytes of the current answer went out: from here on only an abort tells the truth.
        self.started = False
        # True: everything received so far were whole requests without bodies, all of them answered.
        # Only then the next byte is known to begin a request.
        self._clean = True
        self._head: bytes | None = None
        self._head_since: float | None = None
        self._head_bytes = 0
        #: The parser has it, and its handler is about to start.
        self._head_is_whole = False
        self._raw: socket.socket | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        # Zero: drain() then means that asyncio's own buffer is empty, the condition for sendfile.
        transport.set_write_buffer_limits(high=0)
        if self.server.is_full():
            transport.write(
                failure_bytes(503, "UNAVAILABLE", "too many connections", retry_after_s=1)
            )
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.transfer is not None:
            self.transfer.end(exc or ConnectionResetError("the client hung up"))
        if self._raw is not None:
            # The duplicate keeps the connection open in the kernel as long as it lives.
            self._raw.close()
            self._raw = None
        self._head = None
        super().connection_lost(exc)

    def raw_socket(self) -> socket.socket:
        """A duplicate of the socket, for sendfile; closed with the connection."""
        if self._raw is None:
            if self.transport is None:
                raise ConnectionResetError("the client hung up")
            self._raw = self.transport.get_extra_info("socket").dup()
            self._raw.setblocking(False)
        return self._raw

    # Receiving.

    def data_received(self, data: bytes) -> None:
        if self._clean and data:
            template = self.server.templates.get(data[: data.find(b"\r\n")])
            if template is not None and self._repeat(template, data):
                return
            self._head = data if data.find(b"\r\n\r\n") == len(data) - 4 else None
        else:
            self._head = None
        self._clean = False
        self._note_head(data)
        super().data_received(data)
        self._head_is_whole = bool(self._messages) or self._head_is_whole

    def _note_head(self, data: bytes) -> None:
        # Limits for heads that come in slices: the parser has one per line, and no clock.
        # What follows a whole head is its body, or the next request.
        if self._head is not None or self.busy or self._head_is_whole:
            return
        if self._head_since is None:
            self._head_since = self.loop.time()
        end = data.find(b"\r\n\r\n")
        self._head_bytes += len(data) if end < 0 else end
        if self._head_bytes > self.server.header_bytes and self.transport is not None:
            self.transport.write(
                failure_bytes(431, "UNSUPPORTED", "the request's head is too long")
            )
            self.force_close()

    def _repeat(self, template: Template | Answer, data: bytes) -> bool:
        """Answer a head that a template matches; False leaves it to the ordinary path."""
        transport = self.transport
        if transport is None or self._close or self._force_close:
            return False
        if self.n_requests + 1 >= self.server.requests_max:
            # The ordinary path says goodbye.
            return False
        now = self.loop.time()
        if isinstance(template, Answer):
            return self._repeat_answer(template, data, now)
        span = template.match(data)
        if span is None or now > template.expires or transport.get_write_buffer_size():
            return False
        start, stop = span
        count = stop - start
        server = self.server
        is_sent = template.repeats.begin(start, stop)
        if count <= SMALL:
            body = os.pread(template.file.fd, count, start)
            if len(body) != count:
                return False
            transport.write(template.header(start, stop) + body)
            if is_sent is not None:
                is_sent()
        elif count <= LONGEST_REPEAT:
            header = template.header(start, stop)
            transfer = Transfer(self, header, template.file, start, count)
            transfer.sent = is_sent
            try:
                if self._start(transfer) and is_sent is not None:
                    is_sent()
            except OSError:
                self.abort()
        else:
            return False
        self.n_requests += 1
        server.repeats += 1
        server.repeat_bytes += count
        self.last_active = now
        return True

    def _repeat_answer(self, template: Answer, data: bytes, now: float) -> bool:
        transport = self.transport
        if transport is None or data != template.raw or now > template.expires:
            return False
        if transport.get_write_buffer_size():
            return False
        transport.write(template.answer)
        self.n_requests += 1
        self.server.answer_repeats += 1
        self.last_active = now
        return True

    # Sending. Handlers use these; one at a time per connection.

    def _start(self, transfer: Transfer) -> bool:
        if transfer.step():
            return True
        self.transfer = transfer
        if self.transport is not None:
            self.transport.pause_reading()
        self.loop.add_writer(transfer.sock.fileno(), transfer.on_writable)
        return False

    async def write(self, data: bytes) -> None:
        """Send bytes and wait until asyncio's buffer is empty.

        Raises ConnectionResetError when the client is gone.
        """
        if self.transport is None:
            raise ConnectionResetError("the client hung up")
        self.started = True
        self.transport.write(data)
        self.last_active = self.loop.time()
        await self._drain_helper()

    def go_on(self) -> None:
        """The client may send the body that it has announced. Source: RFC 9110 10.1.1."""
        if self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def send_file(self, header: bytes, file: PinnedFile, offset: int, count: int) -> None:
        """Send header bytes, then part of a file; returns when the kernel has all of it."""
        await self._drain_helper()
        transfer = Transfer(self, header, file, offset, count)
        self.started = True
        try:
            if self._start(transfer):
                return
        except OSError as error:
            self.abort()
            raise ConnectionResetError(str(error)) from error
        transfer.done = self.loop.create_future()
        try:
            await transfer.done
        finally:
            transfer.end(None)

    def abort(self) -> None:
        """Reset the connection, so that no client takes what it got for a whole answer."""
        if self.transport is not None:
            self.transport.abort()

    def retire(self) -> None:
        """Close the connection, now or after the answer that is under way."""
        if self.busy:
            self.close()
        elif self.transfer is None and self.transport is not None:
            self._clean = False
            self.transport.close()

    def remember(
        self, file: PinnedFile, size: int, head: bytes, expires: float, repeats: Repeats
    ) -> None:
        """Answer repeats of the request at hand without its handler until `expires`."""
        raw = self._head
        if raw is None or len(raw) > LONGEST_HEAD:
            return
        lines = _RANGE_LINE.findall(raw)
        digits = _RANGE_DIGITS.search(raw)
        if not lines or (len(lines) == 1 and digits is not None):
            span = None if digits is None else digits.span(1)
            template = Template(raw, span, file, size, head, expires, repeats)
            self.server.keep_template(raw[: raw.find(b"\r\n")], template)

    def remember_answer(self, answer: bytes, expires: float) -> None:
        """Give the same bytes to the same head, without its handler, until `expires`."""
        raw = self._head
        if raw is not None and len(raw) <= LONGEST_HEAD and len(answer) <= SMALL:
            self.server.keep_template(raw[: raw.find(b"\r\n")], Answer(raw, answer, expires))

    @property
    def is_used_up(self) -> bool:
        """The request at hand is the last one that this connection may have."""
        return self.n_requests >= self.server.requests_max

    def begin(self) -> None:
        """A handler starts: the head is complete."""
        self.n_requests += 1
        self.busy = True
        self.started = False
        self._head_since = None
        self._head_bytes = 0
        self._head_is_whole = False

    def finish(self, request: BaseRequest, keep: bool) -> StreamResponse:
        """A handler has written its whole answer; `keep`: another request may follow."""
        self.busy = False
        self.started = False
        self.last_active = self.loop.time()
        if self._head is not None and not request.body_exists and keep:
            self._clean = True
        return _Sent(keep)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """Answer what the parser refused, or a handler's bug, without a word of the request."""
        del message
        self.busy = False
        if isinstance(exc, ConnectionError):
            raise exc
        if isinstance(exc, Exception) and status >= 500:
            log.error("handler_failed error=%s", type(exc).__name__, exc_info=exc)
        else:
            log.debug("request_refused status=%d reason=%s", status, type(exc).__name__)
        if self.started or self.transport is None:
            self.abort()
            raise ConnectionResetError("an answer was under way")
        text = "this is not HTTP/1.1 as RFC 9112 has it" if status < 500 else "internal error"
        code = "UNSUPPORTED" if status < 500 else "UNKNOWN"
        self.transport.write(failure_bytes(status, code, text))
        return _Sent(keep=False)

    def overdue(self, now: float, idle_s: float, header_s: float, stall_s: float) -> bool:
        """Whether the client has been silent for longer than the state of things allows."""
        if self.transfer is not None or (self.transport and self.transport.get_write_buffer_size()):
            return now - self.last_active > stall_s
        if self.busy:
            return False
        if self._head_since is not None:
            return now - self._head_since > header_s
        return now - self.last_active > idle_s


class Server(web.Server):
    """The connections of one listener, and what they may repeat."""

    def __init__(
        self,
        handler: Callable[[BaseRequest], Awaitable[StreamResponse]],
        *,
        header_bytes: int,
        is_full: Callable[[], bool],
        requests_max: int = REQUESTS_MAX,
    ) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=NEVER_S,
            max_line_size=header_bytes,
            max_field_size=header_bytes,
            lingering_time=2.0,
            auto_decompress=False,
            logger=logging.getLogger("aiohttp.server"),
        )
        self.header_bytes = header_bytes
        self.is_full = is_full
        self.requests_max = requests_max
        #: By request line. A listener has its own: the same head means another upstream elsewhere.
        self.templates: dict[bytes, Template | Answer] = {}
        #: Requests answered by templates and their bytes, since they were last counted.
        self.repeats = 0
        self.repeat_bytes = 0
        #: The same for those answered from memory, which are manifests.
        self.answer_repeats = 0

    def __call__(self) -> Connection:
        return Connection(self, self._loop, **self._kwargs)

    @property
    def n_connections(self) -> int:
        """Clients connected now."""
        return len(self._connections)

    def take_counts(self) -> tuple[int, int, int]:
        """Blob requests, their bytes, and manifest requests answered by templates since lately."""
        counts = self.repeats, self.repeat_bytes, self.answer_repeats
        self.repeats = self.repeat_bytes = self.answer_repeats = 0
        return counts

    def retire(self) -> int:
        """Close what is idle, let running answers finish; how many connections are left.

        To be called again and again until then.
        """
        for connection in self.connections:
            assert isinstance(connection, Connection)
            connection.retire()
        return len(self._connections)

    def abort_all(self) -> None:
        """Reset every connection that is left."""
        for connection in self.connections:
            assert isinstance(connection, Connection)
            connection.abort()

    def keep_template(self, line: bytes, template: Template | Answer) -> None:
        """Remember a template; the table is bounded, and all in it is cheap to make again."""
        if len(self.templates) >= MAX_TEMPLATES and line not in self.templates:
            self.templates.clear()
        self.templates[line] = template

    def sweep(self, idle_s: float, header_s: float, stall_s: float) -> None:
        """Close what is idle, slow with its head or does not read; drop stale templates."""
        now = asyncio.get_running_loop().time()
        for connection in self.connections:
            assert isinstance(connection, Connection)
            if connection.overdue(now, idle_s, header_s, stall_s):
                connection.abort()
        for line in [line for line, it in self.templates.items() if it.expires < now]:
            del self.templates[line]
