"""The readers of a crowd: plain HTTP/1.1 GETs from inside the hosts of a lab, and plain streams.

One thread per reader, all in the bench's process. Bodies that nobody looks at are dropped by the
kernel (``MSG_TRUNC``), so that a reader costs next to nothing: the bytes are checked afterwards, in
the nodes' stores.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from netlab import Host, LabError, NetLab

READ_TIMEOUT_S = 120.0
_HEAD_MAX = 64 * 1024
_BUFFER_BYTES = 1 << 20

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read to its end."""

    status: int
    n_bytes: int
    source: str
    first_byte_s: float
    elapsed_s: float


class Reader:
    """One keep-alive connection from a host to an HTTP server."""

    def __init__(self, lab: NetLab, host: Host, address: tuple[str, int]) -> None:
        self._sock = lab.connect(host, address, READ_TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(_BUFFER_BYTES)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self._sock.close()

    def get(self, path: str, span: tuple[int, int] | None = None) -> Answer:
        """GET the path, or the bytes (start, stop) of it. Raises LabError if not all comes."""
        request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n"
        if span is not None:
            request += f"Range: bytes={span[0]}-{span[1] - 1}\r\n"
        began = time.monotonic()
        self._sock.sendall(f"{request}\r\n".encode())
        head, got = self._head()
        first = time.monotonic()
        status = int(head.split(" ", 2)[1])
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
        }
        expected = int(fields.get("content-length", -1))
        if status not in (200, 206) or expected < 0:
            raise LabError(f"GET {path} was answered {head.splitlines()[0]}")
        while got < expected:
            n = self._sock.recv_into(
                self._buffer, min(_BUFFER_BYTES, expected - got), socket.MSG_TRUNC
            )
            if n == 0:
                raise LabError(f"GET {path} ended after {got} of {expected} bytes")
            got += n
        source = fields.get("x-passel-source", "")
        return Answer(status, got, source, first - began, time.monotonic() - began)

    def _head(self) -> tuple[str, int]:
        """The head, and how many bytes of the body came with it."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = self._sock.recv(_HEAD_MAX)
            if not more or len(data) > _HEAD_MAX:
                raise LabError("an answer without a proper head")
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        return head.decode("latin-1"), len(rest)


def all_at_once(work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """`work` on every item, a thread each, from the same moment on; results in order."""
    barrier = threading.Barrier(len(items))

    def run(item: _T) -> _R:
        barrier.wait(30)
        return work(item)

    with ThreadPoolExecutor(max_workers=len(items)) as pool:
        return list(pool.map(run, items))


def stream(
    lab: NetLab, pairs: Sequence[tuple[Host, Host]], port: int, source: Path, n_bytes: int
) -> list[float]:
    """`n_bytes` by sendfile from the first to the second of each pair, all together; seconds each.

    The plainest thing that could use these links: no HTTP, no hash, no disk on the receiving side.
    """
    listeners = [lab.listen(sender, port) for sender, _ in pairs]

    def send(listener: socket.socket) -> None:
        with listener, listener.accept()[0] as sock, source.open("rb") as file:
            size, left = source.stat().st_size, n_bytes
            while left:
                at = (n_bytes - left) % size
                left -= os.sendfile(sock.fileno(), file.fileno(), at, min(left, size - at))

    def receive(pair: tuple[Host, Host]) -> float:
        sender, receiver = pair
        buffer, left = bytearray(_BUFFER_BYTES), n_bytes
        began = time.monotonic()
        with lab.connect(receiver, (sender.address, port), READ_TIMEOUT_S) as sock:
            while left:
                n = sock.recv_into(buffer, min(_BUFFER_BYTES, left), socket.MSG_TRUNC)
                if n == 0:
                    raise LabError("a plain stream broke off")
                left -= n
        return time.monotonic() - began

    threads = [threading.Thread(target=send, args=(each,), daemon=True) for each in listeners]
    for thread in threads:
        thread.start()
    return all_at_once(receive, pairs)
