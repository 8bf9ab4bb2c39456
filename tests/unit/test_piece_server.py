"""The piece server as seen over a socket: who gets what, and what happens to those who stall."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from unit.piece_fakes import BLOB, OTHER_BLOB, SECRET, FakeSource, Serving, serving, until

from passel.core import uploads
from passel.ids import BlobId
from passel.transport.auth import AUTH_HEADER, ClusterAuth
from passel.transport.sending import Gate
from passel.transport.wire import PIECE_DIGEST_HEADER, RETRY_AFTER_MS_HEADER, piece_path

PIECE = 64 * 1024


@pytest.fixture
def source(tmp_path: Path) -> Iterator[FakeSource]:
    source = FakeSource(tmp_path, 10 * PIECE + 777, PIECE)
    yield source
    source.close()


@asynccontextmanager
async def asking(
    at: Serving, path: str, method: str = "GET", secret: bytes = SECRET, **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    headers.setdefault(AUTH_HEADER, ClusterAuth(secret).sign(method, path, time.time()))
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{at.address}{path}", headers=headers) as response,
    ):
        yield response


async def connect_and_ask(at: Serving, path: str, limit: int) -> asyncio.StreamWriter:
    """Ask for a piece and read nothing of the answer."""
    reader, writer = await asyncio.open_connection(at.host, at.port, limit=limit)
    signature = ClusterAuth(SECRET).sign("GET", path, time.time())
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{AUTH_HEADER}: {signature}\r\n\r\n".encode())
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    return writer


async def test_piece_with_its_digest(source: FakeSource) -> None:
    async with serving(source) as at:
        for piece in (0, 10):
            async with asking(at, piece_path(BLOB, piece)) as response:
                assert response.status == 200
                assert response.headers[PIECE_DIGEST_HEADER] == source.digest(piece).hex()
                assert await response.read() == source.piece(piece)
        assert at.server.bytes_sent == PIECE + 777
        assert at.server.n_pieces_sent == 2
        assert at.server.n_uploads == 0


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [("bytes=10-19", 10, 20), ("bytes=777-", 777, PIECE), ("bytes=-5", PIECE - 5, PIECE)],
)
async def test_range(source: FakeSource, header: str, start: int, stop: int) -> None:
    async with (
        serving(source) as at,
        asking(at, piece_path(BLOB, 2), Range=header) as response,
    ):
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{PIECE}"
        assert await response.read() == source.piece(2)[start:stop]


async def test_range_outside(source: FakeSource) -> None:
    async with (
        serving(source) as at,
        asking(at, piece_path(BLOB, 2), Range=f"bytes={PIECE}-") as response,
    ):
        assert response.status == 416


async def test_nothing_without_the_secret(source: FakeSource) -> None:
    source.authorization = "Bearer of a client"
    async with serving(source) as at:
        for path in (piece_path(BLOB, 0), piece_path(BLOB, 999), "/", f"/v1/blobs/{BLOB}/x"):
            async with asking(at, path, secret=b"another cluster.") as response:
                assert response.status == 401
            async with asking(at, path, **{AUTH_HEADER: "Bearer x"}) as response:
                assert response.status == 401
        assert at.server.n_refused_auth == 8
        assert at.server.bytes_sent == 0


async def test_replay_is_refused(source: FakeSource) -> None:
    path = piece_path(BLOB, 0)
    header = {AUTH_HEADER: ClusterAuth(SECRET).sign("GET", path, time.time())}
    async with serving(source) as at:
        for status in (200, 401):
            async with asking(at, path, **header) as response:
                assert response.status == status


async def test_what_is_not_there(source: FakeSource) -> None:
    source.held.remove(3)
    async with serving(source) as at:
        for path in (piece_path(BLOB, 3), piece_path(OTHER_BLOB, 0), "/v1/blobs/x/pieces/0"):
            async with asking(at, path) as response:
                assert response.status == 404
                assert "error" in await response.json()
        async with asking(at, piece_path(BLOB, 0), method="POST") as response:
            assert response.status == 405


async def test_piece_evicted_while_in_line(source: FakeSource) -> None:
    """Held when the request came, gone when a slot was free: a 404, not a broken body."""
    async with serving(source, slots=1, slot_wait_s=2.0) as at:
        slot = await at.server._slots.acquire(0, 0)
        assert slot is not None
        asked = asyncio.create_task(_status(at, piece_path(BLOB, 1)))
        await until(lambda: len(at.server._slots._line) == 1)
        source.held.remove(1)
        at.server._slots.release(slot)
        assert await asked == 404
        assert at.server.n_uploads == 0


async def test_the_line_is_in_the_order_of_turns(source: FakeSource) -> None:
    async with serving(source, slots=1) as at:
        slots = at.server._slots
        first = await slots.acquire(0, 0)
        assert first is not None
        served: list[int] = []

        async def stand(turn: int) -> None:
            slot = await slots.acquire(turn, 5.0)
            assert slot is not None
            served.append(turn)
            slots.release(slot)

        tasks = [asyncio.create_task(stand(turn)) for turn in (9, 3, 0, 5)]
        await until(lambda: len(slots._line) == 4)
        slots.release(first)
        await asyncio.gather(*tasks)
        assert served == [0, 3, 5, 9]
        assert at.server.n_uploads == 0


async def test_a_slot_that_is_taken_back_goes_to_the_first_in_line(
    source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(source, slots=1) as at:
        slots = at.server._slots
        assert await slots.acquire(5, 0) is not None
        first = asyncio.create_task(slots.acquire(5, 5.0))
        await until(lambda: len(slots._line) == 1)
        assert await slots.acquire(9, 0) is None
        monkeypatch.setattr(uploads, "OVERDUE_TIMES", 0.0)
        monkeypatch.setattr(uploads, "OVERDUE_S_MIN", 0.0)
        second = asyncio.create_task(slots.acquire(9, 5.0))
        assert await first is not None
        assert not second.done()
        second.cancel()


async def test_a_slot_is_kept_for_clients_and_bulk_pauses_for_them(tmp_path: Path) -> None:
    size = 16 * 2**20
    source = FakeSource(tmp_path, size, size)
    async with serving(source, slots=2, slot_wait_s=0.05) as at:
        bulk = await connect_and_ask(at, piece_path(BLOB, 0, turn=1), 1024)
        await until(lambda: at.server.n_uploads == 1)
        assert await _status(at, piece_path(BLOB, 0, turn=2)) == 503
        client = await connect_and_ask(at, piece_path(BLOB, 0, turn=0), 1024)
        await until(lambda: at.server.n_uploads == 2)
        assert at.server._gate.is_closed
        client.close()
        await until(lambda: at.server.n_uploads == 1)
        assert not at.server._gate.is_closed
        bulk.close()


async def test_clients_that_follow_each_other_do_not_stop_bulk_for_good() -> None:
    gate = Gate(0.01)
    resumed = asyncio.Event()
    gate.enter()
    gate.wait(resumed.set)
    assert gate.is_closed
    gate.enter()
    gate.leave()
    await asyncio.wait_for(resumed.wait(), 5)
    assert not gate.is_closed
    gate.leave()
    gate.enter()
    assert gate.is_closed, "a new client, after a moment without any"
    gate.leave()


async def _status(at: Serving, path: str) -> int:
    async with asking(at, path) as response:
        await response.read()
        return response.status


async def test_slots_used_up(tmp_path: Path) -> None:
    size = 16 * 2**20
    source = FakeSource(tmp_path, size, size)
    async with serving(source, slots=2, slot_wait_s=0.05) as at:
        stalled = [await connect_and_ask(at, piece_path(BLOB, 0), 1024) for _ in range(2)]
        await until(lambda: at.server.n_uploads == 2)
        started = time.monotonic()
        async with asking(at, piece_path(BLOB, 0)) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            assert 20 <= int(response.headers[RETRY_AFTER_MS_HEADER]) <= 1000
        assert 0.04 < time.monotonic() - started < 1.0
        # A client that goes away frees its slot.
        stalled[0].transport.abort()
        await until(lambda: at.server.n_uploads == 1)
        async with asking(at, piece_path(BLOB, 0)) as response:
            assert await response.read() == source.content
        stalled[1].transport.abort()
        await until(lambda: at.server.n_uploads == 0)
        assert at.server.n_cut == 2
    source.close()


async def test_client_that_stops_reading_is_cut(tmp_path: Path) -> None:
    size = 32 * 2**20
    source = FakeSource(tmp_path, size, size)
    async with serving(source, slots=1, stall_s=0.2) as at:
        writer = await connect_and_ask(at, piece_path(BLOB, 0), 1024)
        await until(lambda: at.server.n_uploads == 1)
        await until(lambda: at.server.n_uploads == 0)
        assert at.server.n_cut == 1
        assert 0 < at.server.bytes_sent < size
        writer.transport.abort()
    source.close()


async def test_file_shorter_than_said(source: FakeSource) -> None:
    """Never a short body that ends cleanly."""
    os.ftruncate(source.fd, 5 * PIECE + 100)
    async with serving(source) as at, asking(at, piece_path(BLOB, 5)) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await response.read()


async def test_wait_ends_when_the_piece_arrives(source: FakeSource) -> None:
    source.held.remove(4)
    async with serving(source, slots=1) as at:
        asked = [
            asyncio.create_task(_status(at, piece_path(BLOB, 4, wait_s=10.0))) for _ in range(5)
        ]
        await until(lambda: at.server.n_waiting == 5)
        # Waiting takes no slot.
        assert at.server.n_uploads == 0
        assert await _status(at, piece_path(BLOB, 5)) == 200
        await source.arrive(4)
        assert await asyncio.gather(*asked) == [200] * 5
        assert at.server.n_waiting == 0


async def test_wait_ends_in_vain(source: FakeSource) -> None:
    source.held.remove(4)
    async with serving(source) as at:
        started = time.monotonic()
        assert await _status(at, piece_path(BLOB, 4, wait_s=0.1)) == 404
        assert 0.09 < time.monotonic() - started < 1.0


async def test_waiter_that_goes_away_is_forgotten(source: FakeSource) -> None:
    source.held.remove(4)
    async with serving(source) as at:
        writer = await connect_and_ask(at, piece_path(BLOB, 4, wait_s=20.0), 1024)
        await until(lambda: at.server.n_waiting == 1)
        writer.transport.abort()
        await until(lambda: at.server.n_waiting == 0)


async def test_stop_answers_waiters_and_lets_bodies_end(tmp_path: Path) -> None:
    size = 16 * 2**20
    source = FakeSource(tmp_path, size, size)
    source.held.add(1)
    async with serving(source) as at:
        body = asyncio.Event()

        async def slowly() -> bytes:
            async with asking(at, piece_path(BLOB, 0)) as response:
                first = await response.content.readexactly(1)
                body.set()
                await asyncio.sleep(0.1)
                return first + await response.read()

        source.held.discard(1)
        reading = asyncio.create_task(slowly())
        waiting = asyncio.create_task(_status(at, piece_path(BLOB, 1, wait_s=20.0)))
        await body.wait()
        await until(lambda: at.server.n_waiting == 1)
        await asyncio.wait_for(at.server.stop(4.0), 4.0)
        assert await waiting == 503
        assert await reading == source.content
        with pytest.raises(aiohttp.ClientConnectionError):
            await _status(at, piece_path(BLOB, 0))
    source.close()


async def test_connections_are_bounded(source: FakeSource) -> None:
    """Strangers who only connect take no more than the bound, and free it when they leave."""
    async with serving(source, connections_max=2) as at:
        streams = [await asyncio.open_connection(at.host, at.port) for _ in range(3)]
        assert await streams[2][0].read(1) == b""
        assert at.server.n_refused_busy == 1
        for _, writer in streams:
            writer.transport.abort()
        assert at.server._server is not None
        await until(lambda: not at.server._server.connections)  # type: ignore[union-attr]
        assert await _status(at, piece_path(BLOB, 0)) == 200


async def test_stop_has_a_deadline(tmp_path: Path) -> None:
    size = 32 * 2**20
    source = FakeSource(tmp_path, size, size)
    async with serving(source) as at:
        writer = await connect_and_ask(at, piece_path(BLOB, 0), 1024)
        await until(lambda: at.server.n_uploads == 1)
        started = time.monotonic()
        await at.server.stop(0.2)
        assert time.monotonic() - started < 1.0
        await until(lambda: at.server.n_uploads == 0)
        writer.transport.abort()
    source.close()


@pytest.mark.parametrize("value", [None, 'Bearer "quoted"'])
async def test_credentials(source: FakeSource, value: str | None) -> None:
    source.authorization = value
    async with serving(source) as at:
        async with asking(at, f"/v1/blobs/{BLOB}/credentials") as response:
            assert response.status == 200
            assert response.headers["Cache-Control"] == "no-store"
            assert json.loads(await response.read()) == {"authorization": value}
        async with asking(at, f"/v1/blobs/{BlobId('00' * 32)}/credentials") as response:
            assert json.loads(await response.read()) == {"authorization": None}
