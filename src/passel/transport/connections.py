"""Blocking connections to other peers: a bounded pool of idle ones, and a job that can be cut.

Everything here runs on the piece client's threads, `Job.cancel` on any.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections import OrderedDict
from typing import Final

from passel.errors import PeerUnavailable, TransientError
from passel.transport.wire import parse_address

_IDLE_TOTAL_MAX: Final = 256


class Cancelled(TransientError):
    """Nobody waits for this transfer any more. Never leaves the piece client."""


class Job:
    """One exchange: its deadline, and a handle to cut it from another thread."""

    __slots__ = ("_cancelled", "_lock", "_sock", "deadline")

    def __init__(self, timeout_s: float) -> None:
        self.deadline = time.monotonic() + timeout_s
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._cancelled = False

    def attach(self, sock: socket.socket) -> None:
        """From now on, `cancel` wakes whoever blocks on `sock`."""
        with self._lock:
            self._sock = sock
        self.check()

    def detach(self) -> None:
        """The socket goes back to the pool or is about to be closed: `cancel` must not touch it."""
        with self._lock:
            self._sock = None

    def cancel(self) -> None:
        """Shut the socket down. Repeat until the thread is done: it may be about to connect."""
        with self._lock:
            self._cancelled = True
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    # The plain one: that of a TLS socket would hand its reader undecrypted bytes.
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise `Cancelled` if nobody waits any more."""
        if self._cancelled:
            raise Cancelled("cancelled")

    def step_s(self, limit_s: float) -> float:
        """Seconds that the next step may take, at most `limit_s`.

        Raises
        ------
        PeerUnavailable
            The deadline of the whole exchange has passed.
        """
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise PeerUnavailable("the deadline for the whole answer has passed")
        return min(left_s, limit_s)


def connect(
    address: str, job: Job, timeout_s: float, tls: ssl.SSLContext | None = None
) -> socket.socket:
    """Open a connection, through TLS if wanted, and attach it to `job`; the caller closes it.

    Raises
    ------
    PeerUnavailable
        Nobody listens there, or not within `timeout_s`, or `address` is none, or whoever listens
        shows no certificate that `tls` knows.
    """
    try:
        family, host, port = parse_address(address)
    except ValueError as error:
        raise PeerUnavailable(str(error)) from error
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(job.step_s(timeout_s))
        job.attach(sock)
        sock.connect((host, port))
        job.check()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            sock.settimeout(job.step_s(timeout_s))
            sock = tls.wrap_socket(sock)
            job.attach(sock)
    except (OSError, TransientError) as error:
        job.detach()
        sock.close()
        if isinstance(error, OSError):
            raise PeerUnavailable(f"{address}: cannot connect: {error}") from error
        raise
    return sock


class IdleConnections:
    """Connections between two exchanges, newest first out, at most `per_address` to each peer.

    The server closes after a minute; `idle_s` is well below that, so that a reused connection is
    rarely a dead one. Thread-safe.
    """

    def __init__(self, per_address: int, idle_s: float) -> None:
        self._per_address = per_address
        self._idle_s = idle_s
        self._lock = threading.Lock()
        # Oldest first over all addresses, so that expiry looks at the front only.
        self._idle: OrderedDict[socket.socket, tuple[str, float]] = OrderedDict()
        self._closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, address: str) -> socket.socket | None:
        """The connection to `address` that was used last, if one is open and silent."""
        dead: list[socket.socket] = []
        found: socket.socket | None = None
        with self._lock:
            self._expire(dead)
            for sock in [s for s, (where, _) in self._idle.items() if where == address][::-1]:
                del self._idle[sock]
                if _is_silent(sock):
                    found = sock
                    break
                dead.append(sock)
        for sock in dead:
            sock.close()
        return found

    def give(self, address: str, sock: socket.socket) -> None:
        """Keep `sock` for later; the bounds decide whether it is closed instead."""
        dead: list[socket.socket] = []
        with self._lock:
            self._expire(dead)
            same = [s for s, (where, _) in self._idle.items() if where == address]
            if self._closed:
                dead.append(sock)
            else:
                self._idle[sock] = (address, time.monotonic())
                if len(same) >= self._per_address:
                    del self._idle[same[0]]
                    dead.append(same[0])
                elif len(self._idle) > _IDLE_TOTAL_MAX:
                    dead.append(self._idle.popitem(last=False)[0])
        for each in dead:
            each.close()

    def close(self) -> None:
        """Close all, and from now on whatever is given."""
        with self._lock:
            self._closed = True
            dead = list(self._idle)
            self._idle.clear()
        for sock in dead:
            sock.close()

    def _expire(self, dead: list[socket.socket]) -> None:
        before = time.monotonic() - self._idle_s
        while self._idle:
            sock, (_, since) = next(iter(self._idle.items()))
            if since > before:
                return
            del self._idle[sock]
            dead.append(sock)


def _is_silent(sock: socket.socket) -> bool:
    """An idle connection has nothing to read: neither an end nor bytes that nobody asked for."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)
