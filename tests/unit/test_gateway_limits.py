"""What one client can take from the others is bounded."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from unit.gateway_fakes import PIECE, config_for, noise, world

from passel.config import Config

DATA = noise(4 * PIECE)


def limited(folder: Path, **limits: object) -> Config:
    config = config_for(folder)
    gateway = config.gateway
    more = gateway.model_copy(update={"limits": gateway.limits.model_copy(update=limits)})
    return config.model_copy(update={"gateway": more})


async def test_misses_of_one_client(tmp_path: Path) -> None:
    async with world(tmp_path, limited(tmp_path, client_misses=3)) as w:
        blobs = [noise(4 * PIECE, i) for i in range(6)]
        digests = [w.add(data) for data in blobs]
        w.door.piece_s = 0.2
        answers = await asyncio.gather(*(w.get(f"/v2/app/blobs/{each}") for each in digests))
        statuses = sorted(status for status, _, _ in answers)
        assert statuses == [200, 200, 200, 503, 503, 503]
        assert all("Retry-After" in headers for status, headers, _ in answers if status == 503)
        # Nothing is left over, and what is here is no miss.
        w.door.piece_s = 0.0
        for digest, data in zip(digests, blobs, strict=True):
            status, _, body = await w.get(f"/v2/app/blobs/{digest}")
            assert (status, body) == (200, data)
        assert not w.context._misses


async def test_number_of_header_lines(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for count, status in ((100, b"200"), (200, b"400"), (20_000, b"431")):
            lines = b"".join(b"X-%d: y\r\n" % i for i in range(count))
            got = await w.raw(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n", wait_s=1)
            assert got.split(b" ")[1] == status, count


async def test_requests_of_one_connection(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.context.servers[0].requests_max = 4
        digest = w.add(DATA)
        w.door.put(DATA)
        head = f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        connections = []
        for _ in range(4):
            writer.write(head.encode())
            answer = await asyncio.wait_for(reader.readuntil(DATA[:10]), 2)
            connections.append(b"Connection: close" in answer)
        assert connections == [False, False, False, True]
        assert await asyncio.wait_for(reader.read(), 2) == b""
        # All but the first and the last took the short way.
        assert w.context.servers[0].repeats == 2
        writer.close()


async def test_a_client_that_does_not_read(tmp_path: Path) -> None:
    """Its answer is held for a minute without progress, then the connection is reset."""
    async with world(tmp_path) as w:
        data = noise(24 * 1024 * 1024)
        digest = w.add(data)
        w.door.put(data)
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port, limit=1024)
        writer.write(f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asyncio.sleep(0.3)
        server = w.context.servers[0]
        server.sweep(idle_s=0.01, header_s=0.01, stall_s=100)
        assert server.n_connections == 1
        server.sweep(idle_s=100, header_s=100, stall_s=0.1)
        await asyncio.sleep(0.05)
        assert server.n_connections == 0
        got = b""
        with contextlib.suppress(ConnectionError):
            while chunk := await asyncio.wait_for(reader.read(1 << 20), 2):
                got += chunk
        assert len(got) < len(data)
        writer.close()
