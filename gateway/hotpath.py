"""Sending verified bytes of a file with as few system calls and copies as there can be.

Bytes go out by ``sendfile`` on a duplicate of the connection's socket, because asyncio reserves the
original for its transport. A `Template` answers a request like one that was answered a moment ago;
what makes that safe is told in `passel.gateway.connection`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passel.gateway.connection import Connection
    from passel.telemetry.recording import Repeats

#: Up to here one read and one write of header and body together is cheaper than sendfile.
SMALL = 64 * 1024
#: One sendfile call; the loop turns to other connections after it.
CHUNK = 1024 * 1024
#: Longest range that is answered in ``data_received``; longer ones hold a handler, where a slow
#: client costs a task instead of the connection's keep-alive clock.
LONGEST_REPEAT = 8 * 1024 * 1024


class PinnedFile:
    """A duplicate of an open file that lives as long as somebody refers to it.

    The store may close its descriptor at any time (eviction, its own LRU), and the number would be
    given to another file: bytes of the wrong blob. Whoever sends holds one of these.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = os.dup(fd)

    def __del__(self) -> None:
        os.close(self.fd)


class Template:
    """A head that was answered with verified bytes, and all it takes to answer its like."""

    __slots__ = ("expires", "file", "head", "prefix", "repeats", "size", "suffix")

    def __init__(
        self,
        raw: bytes,
        digits: tuple[int, int] | None,
        file: PinnedFile,
        size: int,
        head: bytes,
        expires: float,
        repeats: Repeats,
    ) -> None:
        #: The head up to the digits of the range and from there; suffix None: the whole head.
        self.prefix = raw if digits is None else raw[: digits[0]]
        self.suffix = None if digits is None else raw[digits[1] :]
        self.file = file
        self.size = size
        #: Format with (length) for a whole blob, (length, first, last) for a range.
        self.head = head
        self.expires = expires
        self.repeats = repeats

    def match(self, data: bytes) -> tuple[int, int] | None:
        """The half-open range that this head asks for; None when it is not a repeat."""
        if self.suffix is None:
            return (0, self.size) if data == self.prefix else None
        if not (data.startswith(self.prefix) and data.endswith(self.suffix)):
            return None
        first, dash, last = data[len(self.prefix) : len(data) - len(self.suffix)].partition(b"-")
        if not (dash and first.isdigit() and last.isdigit() and len(first) < 20 and len(last) < 20):
            return None
        start, stop = int(first), min(int(last) + 1, self.size)
        return (start, stop) if start < stop else None

    def header(self, start: int, stop: int) -> bytes:
        if self.suffix is None:
            return self.head % (stop - start)
        return self.head % (stop - start, start, stop - 1)


class Answer:
    """A head that was answered with bytes in memory: the same head gets the same bytes."""

    __slots__ = ("answer", "expires", "raw")

    def __init__(self, raw: bytes, answer: bytes, expires: float) -> None:
        self.raw = raw
        self.answer = answer
        self.expires = expires


class Transfer:
    """A sendfile that did not fit into the socket buffer at once; goes on as the client reads."""

    __slots__ = ("connection", "count", "done", "file", "header", "offset", "sent", "sock")

    def __init__(
        self, connection: Connection, header: bytes, file: PinnedFile, offset: int, count: int
    ) -> None:
        self.connection = connection
        self.sock = connection.raw_socket()
        self.header = header
        self.file = file
        self.offset = offset
        self.count = count
        self.done: asyncio.Future[None] | None = None
        #: Called when a transfer that nobody awaits has been sent to its end.
        self.sent: Callable[[], None] | None = None

    def step(self) -> bool:
        """Send until the socket is full or one chunk is out; True when nothing is left."""
        try:
            if self.header:
                more = socket.MSG_MORE if self.count else 0
                sent = self.sock.send(self.header, more)
                self.header = self.header[sent:]
                if self.header:
                    return False
            while self.count:
                sent = os.sendfile(
                    self.sock.fileno(), self.file.fd, self.offset, min(self.count, CHUNK)
                )
                if sent == 0:
                    # The file is shorter than the store said. Never end such an answer cleanly.
                    raise ConnectionAbortedError("the blob's file is shorter than its map")
                self.offset += sent
                self.count -= sent
                if sent >= CHUNK:
                    break
        except BlockingIOError:
            pass
        return not self.count

    def on_writable(self) -> None:
        """Called by the loop when the client has read something."""
        try:
            finished = self.step()
        except OSError as error:
            self.end(error)
            self.connection.abort()
            return
        self.connection.last_active = self.connection.loop.time()
        if finished:
            self.end(None)
            if self.sent is not None:
                self.sent()

    def end(self, error: BaseException | None) -> None:
        """Stop watching the socket and give the connection back to the parser. Idempotent."""
        connection = self.connection
        if connection.transfer is not self:
            return
        connection.transfer = None
        connection.loop.remove_writer(self.sock.fileno())
        if connection.transport is not None:
            connection.transport.resume_reading()
        if self.done is not None and not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(ConnectionResetError(str(error)))
                # A handler that was cancelled with the connection does not come to fetch it.
                self.done.exception()
