"""How fast do pieces get from one peer to another, verified and written, and what does it cost?

Two processes on one machine, over loopback: a `PieceServer` on a file that is in the page cache,
and a `PieceClient` that hashes every piece, writes it into a partial blob of a `Store`, compares
the digest and confirms the piece. The server's process sends; the client's process receives, hashes
and writes on its threads. Every run starts with a new, empty partial blob.

Comparators run in the same run, with the same bytes between the same two processes:

``bound``           one ``sendfile`` to one ``recv_into`` per connection: no HTTP, no hash, no write
``pieces_tls``      what `peer.tls` costs: the server copies and encrypts instead of ``sendfile``
``plain_verified``  the same with SHA-256 and ``pwrite`` to a new sparse file: what our own code
                    adds is the difference to this

Sketch: SHA-256 does 1.8 GB/s on one core of the machine at hand, ``recv_into`` over loopback 3-4,
``pwrite`` into a new file 2-3. One after the other: 1 / (1/1.8 + 1/3.5 + 1/2.5) = 0.8 GB/s on one
connection. Goal: 500 MB/s.

    python bench/node_to_node.py [--mib 1024] [--repetitions 5] > node_to_node.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import filecmp
import hashlib
import multiprocessing
import os
import secrets
import socket
import ssl
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import report

from passel.ids import BlobId, BlobKey, Digest
from passel.store import PartialBlob, Store
from passel.transport.auth import ClusterAuth
from passel.transport.certificates import Authority, NodeCertificate
from passel.transport.piece_client import PieceClient
from passel.transport.piece_server import PieceLocation, PieceServer

MIB = 1 << 20
PIECES = (1 * MIB, 4 * MIB, 16 * MIB)
TLS_PIECE = 4 * MIB
CONNECTIONS = (1, 4)
GOAL_MB_PER_S = 500.0
BUFFER_BYTES = 512 * 1024


@dataclass(frozen=True)
class FileSource:
    """A piece source for one complete file, in pieces of any size that the server is told."""

    fd: int
    size: int
    piece_size: list[int]

    def locate(self, blob: BlobId, piece: int) -> PieceLocation | None:
        start = piece * self.piece_size[0]
        length = min(self.piece_size[0], self.size - start)
        return PieceLocation(self.fd, start, length, bytes(32)) if length > 0 else None

    async def wait(self, blob: BlobId, piece: int, timeout_s: float) -> bool:
        return False

    def credentials(self, blob: BlobId) -> str | None:
        return None


def serve(
    path: str, size: int, secret: bytes, certificate: NodeCertificate, pem: Path, pipe: Connection
) -> None:
    """The sending process: a piece server, one with TLS, a plain sendfile server, and answers."""
    fd = os.open(path, os.O_RDONLY)
    plain = socket.create_server(("127.0.0.1", 0), backlog=16)
    threading.Thread(target=serve_plain, args=(plain, fd), daemon=True).start()

    async def run() -> None:
        piece_size = [MIB]
        source = FileSource(fd, size, piece_size)
        server = PieceServer(source, ClusterAuth(secret), slots=16)
        tls = certificate.server_context(pem)
        tls_server = PieceServer(source, ClusterAuth(secret), slots=16, tls=tls)
        ports = [await each.start("127.0.0.1", 0) for each in (server, tls_server)]
        pipe.send((*ports, plain.getsockname()[1]))
        while (order := await asyncio.to_thread(pipe.recv)) is not None:
            if order:
                piece_size[0] = order
            pipe.send((report.cpu_s(), report.rss_peak_bytes()))
        await server.stop(1.0)
        await tls_server.stop(1.0)

    asyncio.run(run())


def serve_plain(listener: socket.socket, fd: int) -> None:
    """Each connection says which bytes it wants in 16 bytes, and gets them by sendfile."""

    def send(sock: socket.socket) -> None:
        with sock:
            order = sock.recv(16, socket.MSG_WAITALL)
            offset, left = int.from_bytes(order[:8], "big"), int.from_bytes(order[8:], "big")
            while left:
                n = os.sendfile(sock.fileno(), fd, offset, left)
                offset, left = offset + n, left - n

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=send, args=(sock,), daemon=True).start()


def receive_plain(port: int, size: int, n_connections: int, target: Target | None) -> None:
    """Receive `size` bytes over plain connections; hash and write them if there is a target."""

    def receive(start: int, stop: int) -> None:
        view = memoryview(bytearray(BUFFER_BYTES))
        hasher = hashlib.sha256()
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(start.to_bytes(8, "big") + (stop - start).to_bytes(8, "big"))
            while start < stop:
                n = sock.recv_into(view[: min(len(view), stop - start)])
                if n == 0:
                    raise ConnectionError("the plain server stopped")
                if target is not None:
                    hasher.update(view[:n])
                    os.pwrite(target.fd, view[:n], start)
                start += n

    share = size // n_connections
    threads = [
        threading.Thread(target=receive, args=(i * share, (i + 1) * share))
        for i in range(n_connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def fetch_all(
    address: str,
    secret: bytes,
    n_connections: int,
    expected: list[bytes],
    target: Target,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Fetch every piece, `n_connections` at a time; compare its digest and confirm it."""
    assert target.blob is not None
    blob = target.blob

    async def run() -> None:
        client = PieceClient(ClusterAuth(secret), threads=n_connections, tls=tls)
        pieces = iter(range(len(expected)))

        async def work() -> None:
            for piece in pieces:
                start, stop = blob.span(piece)
                digest = await client.fetch(
                    address,
                    blob.key.id,
                    piece,
                    stop - start,
                    lambda offset, view, start=start: blob.write(start + offset, view),  # type: ignore[misc]
                    turn=0,
                    wait_s=0.0,
                    timeout_s=60.0,
                )
                if digest != expected[piece]:
                    raise AssertionError(f"piece {piece} differs")
                blob.confirm(piece, digest)

        await asyncio.gather(*(work() for _ in range(n_connections)))
        await client.close()

    asyncio.run(run())


@contextmanager
def sending_process(
    path: Path, size: int, secret: bytes, certificate: NodeCertificate, pem: Path
) -> Iterator[Connection]:
    """The server's process, ended whatever happens."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (str(path), size, secret, certificate, pem, theirs)
    process = context.Process(target=serve, args=arguments, daemon=True)
    process.start()
    try:
        yield ours
        ours.send(None)
        process.join(5)
    finally:
        process.kill()
        process.join()


class Target:
    """Where bytes go: new and empty for every run, since pages that exist flatter the writer."""

    def __init__(self, folder: Path, size: int) -> None:
        self._store = Store.open(folder / "store", capacity_bytes=2 * size)
        # Never promoted, so the name need not be true.
        self._key = BlobKey("bench", Digest("sha256", "00" * 32))
        self._size = size
        self._path = folder / "plain"
        self.fd = -1
        self.blob: PartialBlob | None = None

    def renew(self, piece_size: int) -> None:
        """A partial blob with that piece size, or a plain file if it is 0."""
        self.clear()
        if piece_size:
            self.blob = self._store.create(self._key, self._size, piece_size)
        else:
            self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT)
            os.ftruncate(self.fd, self._size)

    def clear(self) -> None:
        if self.blob is not None:
            self._store.discard(self._key.id)
            self.blob = None
        if self.fd >= 0:
            os.close(self.fd)
            self._path.unlink()
            self.fd = -1

    def close(self) -> None:
        self.clear()
        self._store.close()

    def check(self, source: Path) -> None:
        """Every piece is verified, and the file has the bytes of the source."""
        assert self.blob is not None
        assert self.blob.is_full
        if not filecmp.cmp(source, f"/proc/self/fd/{self.blob.fileno()}", shallow=False):
            raise AssertionError("the file that was written differs")


@dataclass
class Meter:
    """Runs the cases: MB/s and the CPU seconds of both sides, scaled to one GiB."""

    pipe: Connection
    target: Target
    size: int
    repetitions: int

    def run(
        self, work: Callable[[], None], piece_size: int = 0
    ) -> tuple[list[float], dict[str, list[float]]]:
        cpu: dict[str, list[float]] = {"server": [], "client": []}

        def once() -> float:
            self.target.renew(piece_size)
            server, client = self.server(piece_size)[0], report.cpu_s()
            started = time.perf_counter()
            work()
            elapsed = time.perf_counter() - started
            cpu["client"].append((report.cpu_s() - client) * 2**30 / self.size)
            cpu["server"].append((self.server()[0] - server) * 2**30 / self.size)
            return self.size / elapsed / 1e6

        values = report.samples(once, self.repetitions)
        return values, {side: each[1:] for side, each in cpu.items()}

    def server(self, piece_size: int = 0) -> tuple[float, int]:
        """CPU seconds and peak memory of the server; tells it the piece size, unless 0."""
        self.pipe.send(piece_size)
        answer: tuple[float, int] = self.pipe.recv()
        return answer


def fill(path: Path, size: int) -> None:
    """Bytes that differ from piece to piece; written just now, so they are in the page cache."""
    with path.open("wb") as file:
        for _ in range(size // max(PIECES)):
            file.write(secrets.token_bytes(max(PIECES)))


def digests(path: Path, piece_size: int) -> list[bytes]:
    with path.open("rb") as file:
        pieces = iter(lambda: file.read(piece_size), b"")
        return [hashlib.sha256(piece).digest() for piece in pieces]


def measure(folder: Path, size: int, repetitions: int) -> None:
    """Run every case and print its line."""
    rows = report.Report("How fast do pieces get from one peer to another, verified and written?")
    source = folder / "source"
    fill(source, size)
    expected = {piece_size: digests(source, piece_size) for piece_size in PIECES}
    secret = secrets.token_bytes(32)
    target = Target(folder, size)
    # Buffered writes: the disk's own speed is not the question, and fsync comes at promotion.
    facts = {"size_bytes": size, "file_system": report.file_system(folder), "fsync": False}
    certificate, pem = Authority.make("bench").issue("node"), folder / "node.pem"
    certificate.keep(pem)
    tls = certificate.client_context(pem)
    with sending_process(source, size, secret, certificate, pem) as pipe:
        port, tls_port, plain_port = pipe.recv()
        address = f"127.0.0.1:{port}"
        meter = Meter(pipe, target, size, repetitions)
        for n in CONNECTIONS:
            parameters = {**facts, "connections": n}
            values, cpu = meter.run(partial(receive_plain, plain_port, size, n, None))
            rows.row("bound", "MB/s", values, parameters=parameters, cpu_s=cpu)
            bound = statistics.median(values)
            values, cpu = meter.run(partial(receive_plain, plain_port, size, n, target))
            rows.row(
                "plain_verified", "MB/s", values, parameters=parameters, bound=bound, cpu_s=cpu
            )
            plain = statistics.median(values)
            untls: dict[int, float] = {}
            for piece_size in PIECES:
                values, cpu = meter.run(
                    partial(fetch_all, address, secret, n, expected[piece_size], target), piece_size
                )
                target.check(source)
                untls[piece_size] = statistics.median(values)
                rows.row(
                    "pieces",
                    "MB/s",
                    values,
                    parameters={**parameters, "piece_bytes": piece_size},
                    bound=bound,
                    goal=GOAL_MB_PER_S,
                    cpu_s=cpu,
                    ratio_to_plain_verified=round(statistics.median(values) / plain, 3),
                    rss_peak_bytes={
                        "server": meter.server()[1],
                        "client": report.rss_peak_bytes(),
                    },
                )
            piece_size = TLS_PIECE
            work = partial(
                fetch_all,
                f"127.0.0.1:{tls_port}",
                secret,
                n,
                expected[piece_size],
                target,
                tls,
            )
            values, cpu = meter.run(work, piece_size)
            target.check(source)
            rows.row(
                "pieces_tls",
                "MB/s",
                values,
                parameters={**parameters, "piece_bytes": piece_size},
                bound=bound,
                cpu_s=cpu,
                ratio_to_pieces=round(statistics.median(values) / untls[piece_size], 3),
            )
    target.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="bytes to move per run, in MiB")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the two files go (default: temporary)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(Path(folder), arguments.mib * MIB, arguments.repetitions)


if __name__ == "__main__":
    main()
