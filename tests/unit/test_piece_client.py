"""The piece client against the real server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from unit.piece_fakes import BLOB, SECRET, FakeSource, serving, until

from passel.errors import LengthMismatch, NoSpace, PeerBusy, PeerUnavailable, TransientError
from passel.transport.auth import ClusterAuth
from passel.transport.give_way import GiveWay
from passel.transport.piece_client import PieceClient, PieceNotHeld
from passel.transport.piece_server import PieceServer
from passel.transport.wire import PeerSilent

PIECE = 64 * 1024
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[FakeSource]:
    source = FakeSource(tmp_path, 10 * PIECE + 777, PIECE)
    yield source
    source.close()


@asynccontextmanager
async def fetching(**options: float) -> AsyncIterator[PieceClient]:
    client = PieceClient(ClusterAuth(SECRET), **options)  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """A server that reads one request head per connection and then does what `script` says."""
    writers: list[asyncio.StreamWriter] = []
    n_ended = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal n_ended
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await script(reader, writer)
        n_ended += 1

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await until(lambda: n_ended == len(writers))


def answering(raw: bytes, *, close: bool = True) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        if close:
            writer.close()

    return script


class Sink:
    """Collects what comes; complains about gaps."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.closed = False

    def __call__(self, offset: int, view: memoryview) -> None:
        assert not self.closed, "called after the fetch was over"
        assert offset == len(self.got)
        self.got += view


async def fetch(
    client: PieceClient,
    address: str,
    piece: int = 0,
    length: int = PIECE,
    sink: Callable[[int, memoryview], None] | None = None,
    wait_s: float = 0.0,
    timeout_s: float = 5.0,
    turn: int = 0,
) -> bytes:
    sink = sink if sink is not None else Sink()
    return await client.fetch(
        address, BLOB, piece, length, sink, turn=turn, wait_s=wait_s, timeout_s=timeout_s
    )


async def test_bytes_and_digests(source: FakeSource) -> None:
    async with serving(source) as at, fetching(threads=2) as client:
        for piece in (0, 5, 10):
            sink = Sink()
            length = len(source.piece(piece))
            assert await fetch(client, at.address, piece, length, sink) == source.digest(piece)
            assert sink.got == source.piece(piece)
        assert client.bytes_received == 2 * PIECE + 777
        assert client.n_fetched == 3


async def test_piece_larger_than_the_buffer(tmp_path: Path) -> None:
    source = FakeSource(tmp_path, 3 * 2**20 + 1, 3 * 2**20 + 1)
    async with serving(source) as at, fetching(buffer_bytes=20_000) as client:
        sink = Sink()
        assert await fetch(client, at.address, 0, 3 * 2**20 + 1, sink) == source.digest(0)
        assert sink.got == source.content
    source.close()


async def test_bulk_gives_way_while_a_clients_piece_arrives(source: FakeSource) -> None:
    """The body that a client waits for hangs in its middle: the link is its alone, for a while."""
    came, rest = asyncio.Event(), asyncio.Event()

    async def in_two_halves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {PIECE}\r\n\r\n"
        writer.write(head.encode() + source.piece(0)[:100])
        came.set()
        await rest.wait()
        writer.write(source.piece(0)[100:])

    async with serving(source) as at, scripted(in_two_halves) as address, fetching() as client:
        client._give_way = GiveWay(pause_s=60.0)
        urgent = asyncio.create_task(fetch(client, address))
        await came.wait()
        await until(lambda: client._give_way.n_clients == 1)
        sink = Sink()
        bulk = asyncio.create_task(fetch(client, at.address, 1, sink=sink, turn=5))
        await until(lambda: bool(sink.got))
        other_client = await fetch(client, at.address, 2)
        assert other_client == source.digest(2)
        assert not bulk.done()
        rest.set()
        assert await urgent == source.digest(0)
        assert await bulk == source.digest(1)


async def test_bulk_does_not_give_way_for_good(source: FakeSource) -> None:
    way = GiveWay(pause_s=0.02)
    with way.first():
        await asyncio.to_thread(way.wait, lambda: None)
        with way.first():  # another client, before the first is done: no new pause
            await asyncio.to_thread(way.wait, lambda: None)


async def test_connection_is_used_again(source: FakeSource) -> None:
    source.held.remove(3)
    async with serving(source) as at, fetching(threads=2) as client:
        for piece in range(3):
            await fetch(client, at.address, piece)
        # A refusal is an answer like any other.
        with pytest.raises(PieceNotHeld):
            await fetch(client, at.address, 3)
        await fetch(client, at.address, 4)
        assert (client.n_connects, client.n_reused) == (1, 4)


async def test_idle_connections_are_bounded_and_expire(source: FakeSource) -> None:
    async with (
        serving(source) as at,
        fetching(threads=6, connections_per_peer=2, idle_s=0.15) as client,
    ):
        await asyncio.gather(*(fetch(client, at.address, piece) for piece in range(6)))
        assert 1 <= len(client._idle) <= 2
        await asyncio.sleep(0.2)
        before = client.n_connects
        await fetch(client, at.address, 0)
        assert client.n_connects == before + 1
        assert len(client._idle) == 1


async def test_hundred_fetches_on_four_threads(source: FakeSource) -> None:
    threads: set[str] = set()

    def sink(offset: int, view: memoryview) -> None:
        threads.add(threading.current_thread().name)

    async with serving(source) as at, fetching(threads=4) as client:
        digests = await asyncio.gather(
            *(fetch(client, at.address, i % 10, PIECE, sink) for i in range(100))
        )
        assert digests == [source.digest(i % 10) for i in range(100)]
        assert 1 <= len(threads) <= 4
        assert client.n_connects <= 4
        assert at.server.n_uploads == 0


async def test_too_much_to_do_is_refused_at_once(source: FakeSource) -> None:
    source.held.remove(0)
    async with serving(source) as at, fetching(threads=1, outstanding_max=2) as client:
        tasks = [asyncio.create_task(fetch(client, at.address, 0, wait_s=5.0)) for _ in range(2)]
        await until(lambda: at.server.n_waiting == 1)
        with pytest.raises(TransientError, match="under way"):
            await fetch(client, at.address, 1)
        await source.arrive(0)
        assert await asyncio.gather(*tasks) == [source.digest(0)] * 2


async def test_no_thread_in_time_blames_no_peer(source: FakeSource) -> None:
    source.held.remove(0)
    async with serving(source) as at, fetching(threads=1) as client:
        task = asyncio.create_task(fetch(client, at.address, 0, wait_s=5.0))
        await until(lambda: at.server.n_waiting == 1)
        with pytest.raises(TransientError, match="no thread") as caught:
            await fetch(client, at.address, 1, timeout_s=0.1)
        assert not isinstance(caught.value, PeerUnavailable)
        await source.arrive(0)
        assert await task == source.digest(0)


async def test_wait_for_a_piece(source: FakeSource) -> None:
    source.held.remove(2)
    async with serving(source) as at, fetching() as client:
        with pytest.raises(PieceNotHeld):
            await fetch(client, at.address, 2, wait_s=0.05)
        task = asyncio.create_task(fetch(client, at.address, 2, wait_s=5.0))
        await until(lambda: at.server.n_waiting == 1)
        await source.arrive(2)
        assert await task == source.digest(2)


async def test_busy_parent(source: FakeSource) -> None:
    async with serving(source, slots=1, slot_wait_s=0.0) as at, fetching() as client:
        slot = await at.server._slots.acquire(0, 0)
        assert slot is not None
        with pytest.raises(PeerBusy) as caught:
            await fetch(client, at.address)
        assert 0.02 <= caught.value.retry_after_s <= 1.0
        at.server._slots.release(slot)
        assert await fetch(client, at.address) == source.digest(0)


async def test_other_cluster(source: FakeSource) -> None:
    client = PieceClient(ClusterAuth(b"the secret of others"))
    async with serving(source) as at:
        with pytest.raises(PeerUnavailable, match="secrets of the two nodes differ"):
            await fetch(client, at.address)
    await client.close()


async def test_length_that_was_not_expected(source: FakeSource) -> None:
    async with serving(source) as at, fetching() as client:
        sink = Sink()
        with pytest.raises(LengthMismatch):
            await fetch(client, at.address, 0, PIECE - 1, sink)
        assert not sink.got


async def test_server_that_dies_in_mid_body() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n" + bytes(1000)
    sink = Sink()
    async with scripted(answering(raw)) as address, fetching() as client:
        with pytest.raises(PeerUnavailable, match="64536 bytes still to come"):
            await fetch(client, address, sink=sink)
        assert len(sink.got) == 1000
        assert len(client._idle) == 0


async def test_server_that_resets() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with scripted(script) as address, fetching() as client:
        with pytest.raises(PeerUnavailable):
            await fetch(client, address)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Go\r\nContent-Length: 0\r\nLocation: http://x/\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 9000 + b"\r\nContent-Length: 65536\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\0" * 20_000,
    ],
)
async def test_server_that_speaks_otherwise(raw: bytes) -> None:
    async with scripted(answering(raw)) as address, fetching() as client:
        with pytest.raises(PeerUnavailable):
            await fetch(client, address)


async def test_more_bytes_than_announced() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcdE"
    async with scripted(answering(raw)) as address, fetching() as client:
        with pytest.raises(LengthMismatch):
            await fetch(client, address, length=4)


async def test_bytes_after_the_answer_are_never_taken_for_the_next_one() -> None:
    """An answer followed, a little later, by one that nobody asked for."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer + b"good")
        await asyncio.sleep(0.05)
        writer.write(answer + b"evil")

    async with scripted(script) as address, fetching() as client:
        for _ in range(2):
            assert await fetch(client, address, length=4) == hashlib.sha256(b"good").digest()
            await asyncio.sleep(0.1)
        assert client.n_connects == 2


async def test_stale_connection_is_replaced_once() -> None:
    """The second request on a connection is read and then met with a close: ask again, freshly."""
    asked = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd")
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.close()

    async with scripted(script) as address, fetching() as client:
        expected = hashlib.sha256(b"abcd").digest()
        assert await fetch(client, address, length=4) == expected
        assert await fetch(client, address, length=4) == expected
        assert asked == 3
        assert (client.n_connects, client.n_reused) == (2, 1)


async def test_cut_answer_on_a_reused_connection_is_not_repeated() -> None:
    asked = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd")
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.write(b"H")
        writer.close()

    async with scripted(script) as address, fetching() as client:
        await fetch(client, address, length=4)
        with pytest.raises(PeerUnavailable):
            await fetch(client, address, length=4)
        assert asked == 2


async def test_replaced_connection_signs_anew(source: FakeSource) -> None:
    """A replayed nonce would be refused by the very server that is asked again."""
    async with fetching() as client:
        async with serving(source) as at:
            await fetch(client, at.address)
        server = PieceServer(source, ClusterAuth(SECRET), 4)
        await server.start("127.0.0.1", at.port)
        assert await fetch(client, at.address, 1) == source.digest(1)
        await server.stop(0.2)


async def test_silent_server_meets_the_read_deadline() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with scripted(script) as address, fetching(read_timeout_s=0.1) as client:
        started = time.monotonic()
        with pytest.raises(PeerUnavailable, match="did not answer in time"):
            await fetch(client, address)
        assert time.monotonic() - started < 1.0


async def test_server_that_stalls_in_mid_body() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n" + bytes(1000)
    stalling = scripted(answering(raw, close=False))
    async with stalling as address, fetching(read_timeout_s=9.0, stall_s=0.1) as client:
        with pytest.raises(PeerSilent, match="stopped sending"):
            await fetch(client, address)


async def test_a_slow_link_is_no_stall() -> None:
    """Reads wake for a quarter of a mebibyte; what came in the meantime is no silence."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n")
        for _ in range(16):
            await asyncio.sleep(0.05)
            writer.write(bytes(4096))
        await reader.read()

    async with scripted(script) as address, fetching(stall_s=0.3) as client:
        assert await fetch(client, address) == hashlib.sha256(bytes(65536)).digest()


async def test_dripping_server_meets_the_total_deadline() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)

    async with scripted(script) as address, fetching(read_timeout_s=5.0) as client:
        started = time.monotonic()
        with pytest.raises(PeerUnavailable, match="deadline"):
            await fetch(client, address, timeout_s=0.3)
        assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "peer.example:80"])
async def test_nobody_there(address: str) -> None:
    async with fetching() as client:
        with pytest.raises(PeerUnavailable):
            await fetch(client, address)


async def test_cancelled_fetch_frees_its_thread(source: FakeSource) -> None:
    source.held.remove(0)
    async with serving(source) as at, fetching(threads=1) as client:
        sink = Sink()
        task = asyncio.create_task(fetch(client, at.address, 0, sink=sink, wait_s=20.0))
        await until(lambda: at.server.n_waiting == 1)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        sink.closed = True
        assert await fetch(client, at.address, 1) == source.digest(1)
        assert time.monotonic() - started < 1.0
        await source.arrive(0)
        await until(lambda: at.server.n_waiting == 0)


async def test_cancel_in_mid_body_waits_for_the_sink() -> None:
    """The caller may close its file when a cancelled fetch is over, cancelled twice or not."""
    entered, leave = threading.Event(), threading.Event()
    left = False

    def sink(offset: int, view: memoryview) -> None:
        nonlocal left
        entered.set()
        assert leave.wait(5)
        left = True

    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n" + bytes(1000)
    async with scripted(answering(raw, close=False)) as address, fetching() as client:
        task = asyncio.create_task(fetch(client, address, sink=sink))
        await until(entered.is_set)
        task.cancel()
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left


async def test_cancelled_in_the_queue(source: FakeSource) -> None:
    source.held.remove(0)
    async with serving(source) as at, fetching(threads=1) as client:
        first = asyncio.create_task(fetch(client, at.address, 0, wait_s=5.0))
        await until(lambda: at.server.n_waiting == 1)
        second = asyncio.create_task(fetch(client, at.address, 1))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await source.arrive(0)
        assert await first == source.digest(0)


async def test_close_ends_what_is_under_way(source: FakeSource) -> None:
    source.held.remove(0)
    async with serving(source) as at, fetching(threads=1) as client:
        tasks = [asyncio.create_task(fetch(client, at.address, 0, wait_s=20.0)) for _ in range(2)]
        await until(lambda: at.server.n_waiting == 1)
        await asyncio.wait_for(client.close(), 1.0)
        for task in tasks:
            with pytest.raises(TransientError, match="closed"):
                await task
        with pytest.raises(TransientError, match="closed"):
            await fetch(client, at.address, 1)


async def test_error_of_the_sink_goes_through(source: FakeSource) -> None:
    def sink(offset: int, view: memoryview) -> None:
        raise NoSpace("the disk is full")

    async with serving(source) as at, fetching() as client:
        with pytest.raises(NoSpace):
            await fetch(client, at.address, sink=sink)
        assert len(client._idle) == 0
        assert await fetch(client, at.address) == source.digest(0)


@pytest.mark.parametrize("value", [None, 'Bearer "quoted"'])
async def test_credentials(source: FakeSource, value: str | None) -> None:
    source.authorization = value
    async with serving(source) as at, fetching() as client:
        assert await client.credentials(at.address, BLOB, 2.0) == value


async def test_credentials_that_are_none_are_not_quoted() -> None:
    raw = b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n["Bearer secret"'
    async with scripted(answering(raw)) as address, fetching() as client:
        with pytest.raises(PeerUnavailable) as caught:
            await client.credentials(address, BLOB, 2.0)
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None


async def test_ipv6(source: FakeSource) -> None:
    server = PieceServer(source, ClusterAuth(SECRET), 4)
    try:
        port = await server.start("::1", 0)
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    async with fetching() as client:
        assert await fetch(client, f"[::1]:{port}") == source.digest(0)
    await server.stop(0.2)
