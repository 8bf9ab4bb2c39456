"""A piece source over a temporary file, and a piece server on loopback, for the tests beside it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from passel.ids import BlobId
from passel.transport.auth import ClusterAuth
from passel.transport.piece_server import PieceLocation, PieceServer

SECRET = b"a cluster secret of 32 bytes...."
BLOB = BlobId("0f" * 32)
OTHER_BLOB = BlobId("1e" * 32)


class FakeSource:
    """Pieces 0, 1, ... of one blob, `piece_size` bytes each, the last one shorter."""

    def __init__(self, folder: Path, size: int, piece_size: int) -> None:
        self.content = random.Random(7).randbytes(size)
        self.piece_size = piece_size
        self.n_pieces = -(-size // piece_size)
        self.held = set(range(self.n_pieces))
        self.arrived = asyncio.Condition()
        self.authorization: str | None = None
        path = folder / "source"
        path.write_bytes(self.content)
        self.fd = os.open(path, os.O_RDWR)

    def piece(self, piece: int) -> bytes:
        return self.content[piece * self.piece_size : (piece + 1) * self.piece_size]

    def digest(self, piece: int) -> bytes:
        return hashlib.sha256(self.piece(piece)).digest()

    def locate(self, blob: BlobId, piece: int) -> PieceLocation | None:
        if blob != BLOB or piece not in self.held:
            return None
        length = len(self.piece(piece))
        return PieceLocation(self.fd, piece * self.piece_size, length, self.digest(piece))

    async def wait(self, blob: BlobId, piece: int, timeout_s: float) -> bool:
        async def arrives() -> None:
            async with self.arrived:
                await self.arrived.wait_for(lambda: piece in self.held)

        try:
            await asyncio.wait_for(arrives(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def arrive(self, piece: int) -> None:
        async with self.arrived:
            self.held.add(piece)
            self.arrived.notify_all()

    def credentials(self, blob: BlobId) -> str | None:
        return self.authorization if blob == BLOB else None

    def close(self) -> None:
        os.close(self.fd)


@asynccontextmanager
async def serving(source: FakeSource, slots: int = 8, **more: float) -> AsyncIterator[Serving]:
    server = PieceServer(source, ClusterAuth(SECRET), slots, **more)  # type: ignore[arg-type]
    port = await server.start("127.0.0.1", 0)
    try:
        yield Serving(server, f"127.0.0.1:{port}")
    finally:
        await server.stop(0.2)


class Serving:
    def __init__(self, server: PieceServer, address: str) -> None:
        self.server = server
        self.address = address
        host, _, port = address.rpartition(":")
        self.host, self.port = host, int(port)


async def until(claim: Callable[[], bool], timeout_s: float = 2.0) -> None:
    """Return as soon as `claim` holds; fail if it does not in time."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not claim():
        assert asyncio.get_running_loop().time() < deadline, "it never became true"
        await asyncio.sleep(0.005)
