"""The piece client: fetches pieces from other peers, hashing and writing them as they arrive.

Bytes move on a bounded pool of threads with blocking sockets. Receiving, hashing and writing
release the GIL, so threads use the cores that the event loop leaves, and no byte passes through the
loop. A thread owns one buffer for life; the memory of a client is threads x buffer.

What a peer answers is not believed: the digest that `PieceClient.fetch` returns is computed from
the bytes that came.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from passel.errors import LengthMismatch, PeerUnavailable, TransientError
from passel.ids import BlobId
from passel.transport.answer import AnswerHead
from passel.transport.auth import ClusterAuth
from passel.transport.connections import Cancelled, IdleConnections, Job, connect
from passel.transport.exchange import Exchange, Stale
from passel.transport.give_way import GiveWay
from passel.transport.wire import (
    HEAD_BYTES_MAX,
    PAUSE_S,
    WAIT_S_MAX,
    PieceNotHeld,
    credentials_path,
    piece_path,
)

__all__ = ["PieceClient", "PieceNotHeld", "Sink"]

Sink = Callable[[int, memoryview], None]
"""Takes (offset in the piece, bytes). Called on a thread; the view is good for the call only."""

_T = TypeVar("_T")

# Fits the L2 cache: what the kernel copied in is still there when it is hashed and written.
_BUFFER_BYTES: Final = 512 * 1024
_GRACE_S: Final = 0.1


class PieceClient:
    """Fetches pieces on at most `threads` threads. Close it: the interpreter waits for its threads.

    `fetch` and `credentials` belong to event loops (any number of them); the plain counters are
    for telemetry and are exact to within the races of ``+=`` between threads.
    """

    def __init__(
        self,
        auth: ClusterAuth,
        *,
        threads: int = 16,
        connections_per_peer: int = 4,
        outstanding_max: int = 1024,
        connect_timeout_s: float = 2.0,
        read_timeout_s: float = 7.0,
        stall_s: float = 3.0,
        idle_s: float = 15.0,
        buffer_bytes: int = _BUFFER_BYTES,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Bounds and deadlines.

        Parameters
        ----------
        threads : int
            Transfers at once; a fetch that long-polls holds a thread too.
        connections_per_peer : int
            Idle connections kept to each peer, for `idle_s` seconds.
        outstanding_max : int
            Fetches under way and queued; one more is refused at once with ``TransientError``.
        connect_timeout_s, read_timeout_s : float
            Deadline of the TCP handshake; of the head of an answer, beyond the `wait_s` that was
            asked for and with the server's line for a slot (5 s) in it.
        stall_s : float
            How long a body that has begun may be silent. There are other parents to be asked, and
            what a lost connection carried is not much: a piece.
        buffer_bytes : int
            Per thread.
        tls : SSLContext or None
            With it, only peers that show a certificate of the cluster's authority are talked to.
        """
        if buffer_bytes < 2 * HEAD_BYTES_MAX:
            raise ValueError("the buffer must hold the head of an answer")
        self._auth = auth
        self._tls = tls
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="passel-piece")
        self._idle = IdleConnections(connections_per_peer, idle_s)
        self._outstanding_max = outstanding_max
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._stall_s = stall_s
        self._buffer_bytes = buffer_bytes
        self._local = threading.local()
        self._give_way = GiveWay(PAUSE_S)
        self._jobs: set[Job] = set()
        self._closed = False
        self.bytes_received = 0
        self.n_fetched = 0
        self.n_connects = 0
        self.n_reused = 0

    async def fetch(
        self,
        address: str,
        blob: BlobId,
        piece: int,
        length: int,
        sink: Sink,
        *,
        turn: int,
        wait_s: float,
        timeout_s: float,
    ) -> bytes:
        """Fetch a piece, pass it to `sink` in order, return the SHA-256 of what came (raw).

        `turn` is the request's place in the parent's line, lowest first, 0 for a client that waits.
        `wait_s` is how long the parent may hold the answer back until it holds the piece;
        `timeout_s` bounds everything, `wait_s` and the queue for a thread included. `sink` is
        never called after this returned or raised, whatever happened, so that its file may be
        closed then. On an error `sink` may have got a beginning of the piece.

        Raises
        ------
        PieceNotHeld, PeerBusy, PeerUnavailable
            The parent's word; its silence is PeerSilent.
        LengthMismatch
            The parent's piece is not `length` bytes long.
        TransientError
            This client is closed or has too much to do; no peer is to blame.
        """
        job = Job(timeout_s)
        wait_s = min(wait_s, WAIT_S_MAX)
        path = piece_path(blob, piece, turn, wait_s)

        def work() -> bytes:
            hasher = hashlib.sha256()
            position = 0
            arrival = contextlib.ExitStack()

            def take(view: memoryview) -> None:
                nonlocal position
                job.check()
                hasher.update(view)
                sink(position, view)
                position += len(view)
                if turn:
                    self._give_way.wait(job.check)

            def accept(head: AnswerHead) -> None:
                if head.length != length:
                    raise LengthMismatch(
                        f"{address} announced {head.length} bytes for a piece of {length}"
                    )
                if not turn:
                    arrival.enter_context(self._give_way.first())

            exchange = Exchange(
                job, address, path, wait_s, self._read_timeout_s, self._stall_s, accept, take
            )
            with arrival:
                self._exchange(exchange)
            self.bytes_received += position
            self.n_fetched += 1
            return hasher.digest()

        return await self._run(job, timeout_s, work)

    async def credentials(self, address: str, blob: BlobId, timeout_s: float) -> str | None:
        """The ``Authorization`` value that the peer at `address` holds for `blob`, if it does.

        Raises as `fetch` does. The value is a secret of a client: keep it in memory only.
        """
        job = Job(timeout_s)

        def work() -> str | None:
            body = bytearray()

            def accept(head: AnswerHead) -> None:
                if head.length > 8 * HEAD_BYTES_MAX:
                    raise LengthMismatch(f"{address} announced credentials of {head.length} bytes")

            path = credentials_path(blob)
            self._exchange(
                Exchange(
                    job,
                    address,
                    path,
                    0.0,
                    self._read_timeout_s,
                    self._stall_s,
                    accept,
                    body.extend,
                )
            )
            try:
                value = json.loads(body)["authorization"]
            except (ValueError, KeyError, TypeError):
                # Not chained: the text of these errors may quote the secret.
                value = 0
            if value is not None and not isinstance(value, str):
                raise PeerUnavailable(f"{address} answered credentials that are none")
            return value

        return await self._run(job, timeout_s, work)

    async def close(self) -> None:
        """Cut what is under way and end the threads."""
        self._closed = True
        self._idle.close()
        while self._jobs:
            for job in tuple(self._jobs):
                job.cancel()
            await asyncio.sleep(0.01)
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def _run(self, job: Job, timeout_s: float, work: Callable[[], _T]) -> _T:
        if self._closed:
            raise TransientError("this piece client is closed")
        if len(self._jobs) >= self._outstanding_max:
            raise TransientError(f"{len(self._jobs)} fetches are under way on this node already")
        self._jobs.add(job)
        future = self._executor.submit(work)
        waiter = asyncio.wrap_future(future)
        try:
            # The thread keeps the deadline itself. This one is for jobs that never got a thread,
            # and for a sink that hangs.
            await asyncio.wait((waiter,), timeout=timeout_s + _GRACE_S)
            if not waiter.done() and future.cancel():
                raise TransientError(f"no thread of this piece client was free for {timeout_s} s")
            await _settle(job, waiter)
            return waiter.result()
        except asyncio.CancelledError:
            if not future.cancel():
                await _settle(job, waiter)
            raise
        except Cancelled as error:
            if self._closed:
                raise TransientError("this piece client was closed") from error
            raise PeerUnavailable("the deadline for the whole answer has passed") from error
        finally:
            self._jobs.discard(job)

    def _exchange(self, exchange: Exchange) -> None:
        """Ask on a pooled connection, or on a fresh one if there is none that still lives."""
        job, address = exchange.job, exchange.address
        job.check()
        sock = self._idle.take(address)
        if sock is not None:
            self.n_reused += 1
            with contextlib.suppress(Stale):
                self._converse(exchange, sock, reused=True)
                return
        self.n_connects += 1
        sock = connect(address, job, self._connect_timeout_s, self._tls)
        self._converse(exchange, sock, reused=False)

    def _converse(self, exchange: Exchange, sock: socket.socket, *, reused: bool) -> None:
        """Run the exchange; the socket goes to the pool or is closed, whatever happens."""
        try:
            exchange.job.attach(sock)
            # Signed here: a second try with the same nonce would be taken for a replay.
            signature = self._auth.sign("GET", exchange.path, time.time())
            exchange.run(sock, signature, self._buffer(), reused=reused)
        finally:
            exchange.job.detach()
            if exchange.is_over:
                self._idle.give(exchange.address, sock)
            else:
                sock.close()

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(self._buffer_bytes))
        return buffer


async def _settle(job: Job, waiter: asyncio.Future[_T]) -> None:
    """Cut the job, if it is not done, and wait until its thread has let go of it.

    Takes as long as one write of the sink. A further cancellation does not end this: the caller of
    `fetch` may close the file as soon as it is back in control.
    """
    while not waiter.done():
        # Again and again: a socket that is just about to connect is not woken by a shutdown.
        job.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((waiter,), timeout=0.02)
    if not waiter.cancelled():
        waiter.exception()
