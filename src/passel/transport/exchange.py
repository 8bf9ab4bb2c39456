"""One request to a piece server and its answer, on one blocking socket.

Runs on a piece client's thread. Every call that can block has a deadline; whoever waits can cut it
through the `Job`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from passel.errors import LengthMismatch, PeerBusy, PeerUnavailable, TransientError
from passel.transport.answer import AnswerHead, BadAnswer, parse_head
from passel.transport.connections import Job
from passel.transport.wire import (
    HEAD_BYTES_MAX,
    RETRY_AFTER_MS_HEADER,
    PeerSilent,
    PieceNotHeld,
)

_BUSY_MS_MAX: Final = 60_000
#: A thread is woken for so many bytes, or for the rest of the body. On a slow link it would be
#: woken for every few packets, and that was most of what a transfer cost.
_WAKE_BYTES: Final = 256 * 1024


class Stale(Exception):
    """A reused connection turned out to be closed before a byte of the answer had come."""


@dataclass(slots=True)
class Exchange:
    """What is asked, how long it may take, and who takes the body.

    `accept` sees the head of a 200 and raises if its length is not what was expected; `take` gets
    the body in order. What they raise goes through unchanged, and the socket is of no more use.
    """

    job: Job
    address: str
    path: str
    wait_s: float
    read_timeout_s: float
    stall_s: float
    accept: Callable[[AnswerHead], None]
    take: Callable[[memoryview], None]
    is_over: bool = False
    """The answer was received to its end, and the socket can carry another exchange."""

    def run(
        self, sock: socket.socket, authorization: str, buffer: memoryview, *, reused: bool
    ) -> None:
        """Ask and receive. `is_over` may be true after an error too: a refusal is an answer.

        Raises
        ------
        Stale
            Only if `reused`: nothing of an answer came, ask again on a fresh connection.
        PieceNotHeld, PeerBusy, PeerUnavailable, LengthMismatch
            The peer's word; its silence is PeerSilent.
        """
        got = self._ask(sock, authorization, buffer, reused)
        head_stop, got = self._receive_head(sock, buffer, got)
        try:
            head = parse_head(bytes(buffer[:head_stop]))
        except BadAnswer as error:
            raise PeerUnavailable(f"{self.address} does not speak our protocol: {error}") from error
        body = buffer[head_stop + 4 : got]
        if len(body) > head.length:
            raise LengthMismatch(f"{self.address} sent more than the {head.length} bytes announced")
        if head.status != 200:
            # A refusal that came in one piece, as they do, leaves the connection usable. More of
            # it is not worth waiting for.
            self.is_over = head.keep_alive and len(body) == head.length
            raise self._refusal(head)
        self.accept(head)
        if len(body):
            self.take(body)
        left = head.length - len(body)
        try:
            self._receive_body(sock, buffer, left)
        finally:
            _wake_at(sock, 1)
        self.is_over = head.keep_alive

    def _receive_body(self, sock: socket.socket, buffer: memoryview, left: int) -> None:
        if isinstance(sock, ssl.SSLSocket):
            self._receive_records(sock, buffer, left)
            return
        wake_at = 1
        while left:
            if wake_at != min(left, _WAKE_BYTES):
                wake_at = min(left, _WAKE_BYTES)
                _wake_at(sock, wake_at)
            n = self._receive(sock, buffer[: min(left, len(buffer))], self.stall_s)
            if n == 0:
                raise PeerUnavailable(f"{self.address} closed with {left} bytes still to come")
            self.take(buffer[:n])
            left -= n

    def _receive_records(self, sock: ssl.SSLSocket, buffer: memoryview, left: int) -> None:
        """The same through TLS, where a read gives one record of at most 16 KiB.

        The socket cannot be told to wait for more: what is left of a record may already be in the
        library. So they are gathered here, and hashed and written together.
        """
        while left:
            wanted, got = min(left, _WAKE_BYTES), 0
            while got < wanted:
                n = self._receive(sock, buffer[got:wanted], self.stall_s)
                if n == 0:
                    raise PeerUnavailable(
                        f"{self.address} closed with {left - got} bytes still to come"
                    )
                got += n
            self.take(buffer[:got])
            left -= got

    def _ask(
        self, sock: socket.socket, authorization: str, buffer: memoryview, reused: bool
    ) -> int:
        """Send the request and receive the first bytes of the answer."""
        request = (
            f"GET {self.path} HTTP/1.1\r\nHost: {self.address}\r\n"
            f"Authorization: {authorization}\r\n\r\n"
        )
        try:
            sock.settimeout(self.job.step_s(self.read_timeout_s))
            sock.sendall(request.encode("ascii"))
            sock.settimeout(self.job.step_s(self.wait_s + self.read_timeout_s))
            got = sock.recv_into(buffer)
        except TimeoutError as error:
            raise self._late("did not answer in time") from error
        except OSError as error:
            self.job.check()
            if reused:
                raise Stale from error
            raise PeerUnavailable(f"{self.address} broke the connection: {error}") from error
        self.job.check()
        if got == 0:
            if reused:
                raise Stale
            raise PeerUnavailable(f"{self.address} closed the connection without an answer")
        return got

    def _receive_head(self, sock: socket.socket, buffer: memoryview, got: int) -> tuple[int, int]:
        """Receive until the blank line; returns where it is, and how much is in `buffer`."""
        while True:
            stop = bytes(buffer[: min(got, HEAD_BYTES_MAX)]).find(b"\r\n\r\n")
            if stop >= 0:
                return stop, got
            if got >= HEAD_BYTES_MAX:
                raise PeerUnavailable(f"{self.address} sent a head of more than {HEAD_BYTES_MAX}")
            n = self._receive(sock, buffer[got:], self.read_timeout_s)
            if n == 0:
                raise PeerUnavailable(f"{self.address} closed within the head of its answer")
            got += n

    def _receive(self, sock: socket.socket, into: memoryview, limit_s: float) -> int:
        try:
            sock.settimeout(self.job.step_s(limit_s))
            n = sock.recv_into(into)
        except TimeoutError as error:
            late = self._late("stopped sending")
            n = _left_over(sock, into)
            if not n:
                raise late from error
        except OSError as error:
            self.job.check()
            raise PeerUnavailable(f"{self.address} broke the connection: {error}") from error
        self.job.check()
        return n

    def _late(self, what: str) -> PeerSilent:
        self.job.check()
        # The step was cut short by the deadline of the whole, if that is what has passed.
        self.job.step_s(0.0)
        return PeerSilent(f"{self.address} {what}")

    def _refusal(self, head: AnswerHead) -> TransientError:
        if head.status == 404:
            return PieceNotHeld(f"{self.address} does not hold this piece")
        if head.status == 503:
            text = head.fields.get(RETRY_AFTER_MS_HEADER.lower(), "")
            retry_ms = min(int(text), _BUSY_MS_MAX) if text.isdecimal() and len(text) < 9 else 50
            return PeerBusy(f"{self.address} has no free upload slot", retry_ms / 1000)
        if head.status == 401:
            return PeerUnavailable(
                f"{self.address} refused our signature: the cluster secrets of the two nodes "
                "differ, or their clocks are more than a minute apart"
            )
        return PeerUnavailable(f"{self.address} answered {head.status}")


def _left_over(sock: socket.socket, into: memoryview) -> int:
    """What came on a slow link without being enough to wake us: it was no silence then."""
    try:
        sock.settimeout(0)
        return sock.recv_into(into)
    except OSError:
        return 0


def _wake_at(sock: socket.socket, n_bytes: int) -> None:
    """Have reads of this socket wait until so many bytes, an end or an error are there."""
    with contextlib.suppress(OSError):  # a socket that was cut tells so at the next read
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, n_bytes)
