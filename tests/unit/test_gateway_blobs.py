from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from unit.gateway_fakes import PIECE, digest_of, noise, world

from passel.gateway import reading
from passel.ids import BlobKey
from passel.telemetry.trace import read_trace

SIZE = 10 * PIECE + 123
DATA = noise(SIZE)


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=5-9", (5, 10)),
        (f"bytes={PIECE - 1}-{PIECE}", (PIECE - 1, PIECE + 1)),
        (f"bytes=0-{4 * PIECE}", (0, 4 * PIECE + 1)),
        (f"bytes={SIZE - 3}-", (SIZE - 3, SIZE)),
        ("bytes=-10", (SIZE - 10, SIZE)),
        (f"bytes=-{SIZE * 2}", (0, SIZE)),
        (f"bytes=7-{SIZE + 1000}", (7, SIZE)),
    ],
)
@pytest.mark.parametrize("cached", [True, False])
async def test_ranges(tmp_path: Path, header: str, span: tuple[int, int], cached: bool) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        if cached:
            w.door.put(DATA)
        start, stop = span
        for _ in range(3):
            status, headers, body = await w.get(f"/v2/app/blobs/{digest}", Range=header)
            assert status == 206
            assert body == DATA[start:stop]
            assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
            assert headers["Docker-Content-Digest"] == str(digest)
            assert headers["ETag"] == f'"{digest}"'
            assert headers["Accept-Ranges"] == "bytes"
            assert headers["Content-Type"] == "application/octet-stream"
            assert headers["OCI-Namespace"] == "lab"
            assert headers["Via"] == "1.1 passel"
            assert len(headers["X-Dragonfly-Task-ID"]) == 64


async def test_whole_blob_cold_then_warm(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        status, headers, body = await w.get(f"/v2/app/blobs/{digest}")
        assert (status, body) == (200, DATA)
        assert headers["X-Passel-Source"] == "seed"
        # A cold miss of public content: no request to the origin but the peer's own.
        assert w.origin.calls == []
        assert w.door.asked[0]["start"] == 0
        assert w.door.asked[0]["stop"] is None
        status, headers, body = await w.get(f"/v2/app/blobs/{digest}")
        assert (status, body) == (200, DATA)
        assert headers["X-Passel-Source"] == "local"
        assert len(w.door.asked) == 1


async def test_repeats_are_answered_by_the_connection(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.put(DATA)
        path = f"/v2/app/blobs/{digest}"
        for start, length in [(0, 10), (3, 5000), (PIECE, 200_000), (17, 70_000), (0, SIZE)]:
            header = f"bytes={start}-{start + length - 1}"
            status, headers, body = await w.get(path, Range=header)
            stop = min(start + length, SIZE)
            assert status == 206
            assert body == DATA[start:stop]
            assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert w.context.servers[0].repeats == 4
        # Another header, another method, a bad range: the ordinary path.
        assert (await w.get(path, Range=f"bytes={SIZE}-{SIZE + 1}"))[0] == 416
        assert (await w.get(path, Range="bytes=9-3"))[2] == DATA
        status, headers, body = await w.get(path, "HEAD", Range="bytes=0-9")
        assert (status, headers["Content-Length"], body) == (200, str(SIZE), b"")
        for _ in range(3):
            assert (await w.get(path))[2] == DATA


async def test_repeats_are_recorded_like_other_reads(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.put(DATA)
        path = f"/v2/app/blobs/{digest}"
        spans = [(0, 10), (5, 4000), (PIECE, PIECE + 300_000)]
        assert (await w.get(path, Range="bytes=0-9"))[0] == 206  # from the peer: not recorded
        recording = w.context.recording
        recording.is_on = True
        for start, stop in spans:
            assert (await w.get(path, Range=f"bytes={start}-{stop - 1}"))[0] == 206
        assert w.context.servers[0].repeats == 3
        recording.close()
        (file,) = tmp_path.rglob("trace/*.parquet")
        rows = read_trace(file).to_pylist()
        assert [(row["start"], row["stop"]) for row in rows] == spans
        assert {row["source"] for row in rows} == {"local"}
        assert all(row["transfer_s"] >= 0 for row in rows)


async def test_multi_range_keeps_order_and_number(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        header = "bytes=500-599, 0-9 ,-5,5-6"
        for _ in range(2):
            status, headers, body = await w.get(f"/v2/app/blobs/{digest}", Range=header)
            assert status == 206
            assert headers["Content-Type"].startswith("multipart/byteranges; boundary=")
            boundary = headers["Content-Type"].partition("=")[2].encode()
            parts = body.split(b"--" + boundary)[1:-1]
            bodies = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]
            assert bodies == [DATA[500:600], DATA[:10], DATA[-5:], DATA[5:7]]
            await w.get(f"/v2/app/blobs/{digest}")


async def test_conditions(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        path = f"/v2/app/blobs/{digest}"
        tag = f'"{digest}"'
        status, headers, body = await w.get(path, If_None_Match=f'W/"x", {tag}')
        assert (status, headers["ETag"], body) == (304, tag, b"")
        status, _, body = await w.get(path, Range="bytes=0-3", If_Range=tag)
        assert (status, body) == (206, DATA[:4])
        for other in ('"x"', f"W/{tag}", "Mon, 01 Jan 2024 00:00:00 GMT"):
            status, _, body = await w.get(path, Range="bytes=0-3", If_Range=other)
            assert (status, body) == (200, DATA)
        status, headers, body = await w.get(path, Range=f"bytes={SIZE}-")
        assert (status, headers["Content-Range"]) == (416, f"bytes */{SIZE}")
        assert json.loads(body)["errors"][0]["code"] == "SIZE_INVALID"
        status, _, body = await w.get(path, Range="pages=1-2")
        assert (status, body) == (200, DATA)


async def test_416_of_a_cold_blob(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.plan, w.door.error = "error", {"status": 416, "code": "", "message": ""}
        status, headers, _ = await w.get(f"/v2/app/blobs/{digest}", Range=f"bytes={SIZE}-")
        assert (status, headers["Content-Range"]) == (416, f"bytes */{SIZE}")


async def test_empty_blob(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(b"")
        w.door.put(b"")
        for header in ({}, {"Range": "bytes=0-"}):
            status, headers, body = await w.get(f"/v2/app/blobs/{digest}", **header)
            assert (status, headers["Content-Length"], body) == (200, "0", b"")


async def test_head(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        for _ in range(2):
            status, headers, body = await w.get(f"/v2/app/blobs/{digest}", "HEAD")
            assert (status, headers["Content-Length"], body) == (200, str(SIZE), b"")
            assert headers["Docker-Content-Digest"] == str(digest)
        missing = digest_of(b"missing")
        status, headers, body = await w.get(f"/v2/app/blobs/{missing}", "HEAD")
        assert (status, body) == (404, b"")
        assert headers["Content-Type"] == "application/json"


async def test_peer_dies_in_the_middle_and_comes_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.dies_after = 3
        status, _, body = await w.get(f"/v2/app/blobs/{digest}")
        assert (status, body) == (200, DATA)
        assert len(w.door.asked) == 2
        assert w.door.asked[1]["start"] == 3 * PIECE
        assert w.origin.bytes_sent == 0


async def test_peer_dies_for_good_and_the_origin_goes_on(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.piece_s = 0.05
        read = asyncio.create_task(w.get(f"/v2/app/blobs/{digest}"))
        await asyncio.sleep(0.2)
        await w.door.stop()
        status, _, body = await read
        assert (status, body) == (200, DATA)
        assert 0 < w.origin.bytes_sent < SIZE
        # Everything after that is direct at once, as nobody waits for a peer that is long gone.
        began = asyncio.get_running_loop().time()
        for start in (9 * PIECE, 8 * PIECE):
            status, _, body = await w.get(
                f"/v2/app/blobs/{digest}", Range=f"bytes={start}-{start + 99}"
            )
            assert (status, body) == (206, DATA[start : start + 100])
        assert asyncio.get_running_loop().time() - began < 0.3


@pytest.mark.parametrize("has_peer", [True, False])
async def test_a_429_in_the_middle_of_a_body_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_peer: bool
) -> None:
    """A client whose body was broken off asks again, is told 429 a few times, and gives up."""
    monkeypatch.setattr(reading, "LIMITED_PAUSE_S", 0.1)
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.dies_after, w.door.plan_after = 3, "error"
        w.door.error = {"status": 429, "code": "TOOMANYREQUESTS", "message": "slow down"}
        w.origin.limited = True
        read = asyncio.create_task(w.get(f"/v2/app/blobs/{digest}"))
        await asyncio.sleep(0.3)
        if not has_peer:
            await w.door.stop()
        await asyncio.sleep(0.3)
        assert not read.done()
        w.door.plan, w.origin.limited = "ready", False
        status, _, body = await read
        assert (status, body) == (200, DATA)
        assert len(w.door.asked) < 20


async def test_a_hole_that_the_origin_fills_is_no_wrong_byte(tmp_path: Path) -> None:
    """What is read from the origin on the way is not in the store, whose peer is gone."""
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        blob = w.door.store.create(BlobKey("lab", digest), SIZE, PIECE)
        for piece in set(range(blob.n_pieces)) - {4}:
            begin, end = blob.span(piece)
            blob.write(begin, DATA[begin:end])
            blob.confirm(piece, hashlib.sha256(DATA[begin:end]).digest())
        await w.door.stop()
        status, _, body = await w.get(f"/v2/app/blobs/{digest}")
        assert (status, body) == (200, DATA)
        assert w.origin.count("GET") == 1
        header = f"bytes={3 * PIECE}-{6 * PIECE}"
        status, _, body = await w.get(f"/v2/app/blobs/{digest}", Range=header)
        assert (status, body) == (206, DATA[3 * PIECE : 6 * PIECE + 1])


async def test_a_lazy_read_that_loses_its_peer_has_time_left_for_the_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "STILL_SHORT_S", 1.5)
    monkeypatch.setattr(reading, "FOR_ORIGIN_S", 1.0)
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.dies_after, w.door.plan_after = 3, "waiting"
        status, _, body = await w.get(f"/v2/app/blobs/{digest}", Range=f"bytes=0-{6 * PIECE}")
        assert (status, body) == (206, DATA[: 6 * PIECE + 1])
        assert w.origin.count("GET") == 1


async def test_no_peer_at_all(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.door.stop()
        digest = w.add(DATA)
        status, headers, body = await w.get(f"/v2/app/blobs/{digest}", Range="bytes=100-299")
        assert (status, body) == (206, DATA[100:300])
        assert headers["X-Passel-Source"] == "origin"


@pytest.mark.parametrize("plan", ["passthrough", "busy", "silent"])
async def test_peer_in_trouble(tmp_path: Path, plan: str) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.plan = plan
        for _ in range(2):
            status, headers, body = await w.get(f"/v2/app/blobs/{digest}")
            assert (status, body) == (200, DATA)
            assert headers["X-Passel-Source"] == "origin"
        if plan == "silent":
            # Found out once, not at each read.
            assert len(w.door.asked) == 1


async def test_nobody_can_answer(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        await w.door.stop()
        w.origin.is_down = True
        status, headers, body = await w.get(f"/v2/app/blobs/{digest}")
        assert status == 502
        assert headers["X-Dragonfly-Error-Type"] == "backend"
        assert json.loads(body)["errors"]


async def test_too_many_direct_reads_are_503(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        await w.door.stop()
        for _ in range(4):
            await w.context._direct.acquire()
        status, headers, _ = await w.get(f"/v2/app/blobs/{digest}")
        assert status == 503
        assert int(headers["Retry-After"]) >= 1


async def test_a_body_is_never_cut_cleanly(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        await w.door.stop()
        w.origin.breaks_at = 300_000
        answer = await w.raw(
            f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"Content-Length: {SIZE}".encode() in head
        assert len(body) < SIZE
        assert DATA.startswith(body)
        assert w.context.metrics.aborted._value.get() == 1


async def test_a_whole_blob_from_the_origin_alone_goes_on_where_it_broke_off(
    tmp_path: Path,
) -> None:
    """No peer, and so nothing in the store: what was sent before is in the running hash."""
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        await w.door.stop()
        w.origin.breaks_at, w.origin.heals = 300_000, True
        status, _, body = await w.get(f"/v2/app/blobs/{digest}")
        assert (status, body) == (200, DATA)
        assert w.origin.count("GET") == 2


@pytest.mark.parametrize("header", ["", f"Range: bytes={PIECE}-{4 * PIECE}\r\n"])
async def test_a_body_that_stands_still_is_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    """Neither peer nor origin brings more: the client is told in time, not left to wait."""
    monkeypatch.setattr(reading, "STILL_SHORT_S", 0.9)
    monkeypatch.setattr(reading, "STILL_LONG_S", 1.5)
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.stalls_after, w.origin.stalls_at = 3, 3 * PIECE
        head = f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode()
        answer = await w.raw(head, wait_s=10.0)
        _, _, body = answer.partition(b"\r\n\r\n")
        start = PIECE if header else 0
        assert body == DATA[start : 3 * PIECE]
        assert w.context.metrics.aborted._value.get() == 1
        # The origin got what was left of the time, and was not asked again and again.
        (still_s,) = w.origin.stalls
        assert 0 < still_s <= (0.5 if header else 1.1)


async def test_a_read_that_gets_no_byte_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a lazy read begins with its question, and an error can still be said."""
    monkeypatch.setattr(reading, "FIRST_BYTE_S", 0.5)
    monkeypatch.setattr(reading, "STILL_SHORT_S", 0.6)
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.plan, w.origin.stalls_at = "waiting", 0
        status, _, body = await w.get(f"/v2/app/blobs/{digest}", Range="bytes=5-9")
        assert status == 504
        assert "in time" in json.loads(body)["errors"][0]["message"]
        assert w.origin.stalls == [reading.STILL_LEAST_S]


async def test_wrong_bytes_from_the_origin_do_not_end_well(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        await w.door.stop()
        w.origin.blobs["app", str(digest)] = DATA[:-1] + b"?"
        answer = await w.raw(
            f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        assert len(answer.partition(b"\r\n\r\n")[2]) < SIZE


GET_WHOLE = "GET /v2/app/blobs/{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("promotes", [True, False])
async def test_a_whole_blob_of_wrong_bytes_never_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promotes: bool
) -> None:
    """Every piece is what the origin sent, and only the last of them tells that the whole is wrong.

    Who checks is the peer; where it does not get to it (it died), the gateway itself.
    """
    monkeypatch.setattr(reading, "OWN_HASH_S", 0.1)
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.content[str(digest)] = DATA[:-1] + b"?"
        w.door.promotes = promotes
        answer = await w.raw(GET_WHOLE.format(digest).encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"Content-Length: {SIZE}".encode() in head
        assert 0 < len(body) < SIZE
        assert DATA.startswith(body)
        assert w.context.metrics.aborted._value.get() == 1
        if not promotes:
            # It lies there with all its pieces, and is not handed out either.
            answer = await w.raw(GET_WHOLE.format(digest).encode())
            assert len(answer.partition(b"\r\n\r\n")[2]) < SIZE
            # Whoever reads a range of it is not held up by what nobody can know.
            _, _, body = await w.get(f"/v2/app/blobs/{digest}", Range=f"bytes={SIZE - 9}-")
            assert body == DATA[SIZE - 9 : -1] + b"?"


async def test_nobody_gets_the_beginning_of_one_copy_and_the_end_of_another(
    tmp_path: Path,
) -> None:
    """The first byte was wrong and is out; the copy was destroyed, and the next one is right."""
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.content[str(digest)] = b"?" + DATA[1:]
        w.door.better[str(digest)] = DATA
        answer = await w.raw(GET_WHOLE.format(digest).encode())
        body = answer.partition(b"\r\n\r\n")[2]
        assert body.startswith(b"?" if DATA[:1] != b"?" else b"")
        assert 0 < len(body) < SIZE
        assert (await w.get(f"/v2/app/blobs/{digest}"))[2] == DATA


async def test_a_small_blob_of_wrong_bytes_is_an_error_in_words(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA[:5000])
        wrong = DATA[:4999] + b"?"
        w.door.content[str(digest)] = w.origin.blobs["app", str(digest)] = wrong
        status, _, body = await w.get(f"/v2/app/blobs/{digest}")
        assert status == 502
        assert json.loads(body)["errors"]


async def test_who_vouches_for_a_blob_when_its_peer_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pieces came, and the peer died before it had hashed the whole."""
    monkeypatch.setattr(reading, "OWN_HASH_S", 0.1)
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.promotes = False
        assert (await w.get(f"/v2/app/blobs/{digest}"))[2] == DATA


async def test_the_origin_goes_on_and_the_whole_is_checked(tmp_path: Path) -> None:
    """Half of it came from the peer, which died; the other half is wrong."""
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.origin.blobs["app", str(digest)] = DATA[:-1] + b"?"
        w.door.stalls_after = 4
        read = asyncio.create_task(w.raw(GET_WHOLE.format(digest).encode(), wait_s=5.0))
        await asyncio.sleep(0.2)
        await w.door.stop()
        body = (await read).partition(b"\r\n\r\n")[2]
        assert 4 * PIECE <= len(body) < SIZE
        assert w.context.metrics.aborted._value.get() == 1


async def test_client_that_hangs_up_takes_its_question_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(noise(200 * PIECE))
        w.door.piece_s = 0.05
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        writer.write(f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.read(1000)
        assert w.door.open_reads == 1
        writer.close()
        for _ in range(50):
            await asyncio.sleep(0.02)
            if w.door.open_reads == 0:
                break
        assert w.door.open_reads == 0


async def test_the_origins_word_passes_through(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        for status, headers in [
            (401, {"WWW-Authenticate": 'Bearer realm="https://a/t",service="a"'}),
            (403, {}),
            (404, {}),
            (429, {"Retry-After": "9"}),
        ]:
            w.door.plan = "error"
            w.door.error = {"status": status, "code": "X", "message": "m", "headers": headers}
            got, seen, body = await w.get(f"/v2/app/blobs/{digest}")
            assert got == status
            assert seen["X-Dragonfly-Error-Type"] == "backend"
            assert json.loads(body)["errors"][0]["code"]
            for name, value in headers.items():
                assert seen[name] == value


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.put(DATA)

        def ask(start: int, stop: int, last: bool = False) -> bytes:
            close = "Connection: close\r\n" if last else ""
            return (
                f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n{close}"
                f"Range: bytes={start}-{stop - 1}\r\n\r\n"
            ).encode()

        spans = [(0, 300_000), (5, 6), (0, SIZE), (7, 70_000)]
        data = b"".join(ask(*span) for span in spans) + ask(1, 2, last=True)
        got = await w.raw(data)
        for start, stop in [*spans, (1, 2)]:
            head, _, got = got.partition(b"\r\n\r\n")
            assert f"Content-Range: bytes {start}-{stop - 1}/{SIZE}".encode() in head
            assert got[: stop - start] == DATA[start:stop]
            got = got[stop - start :]
        assert got == b""


async def test_two_heads_in_one_packet_are_two_requests_each_time(tmp_path: Path) -> None:
    """Only a head that came alone is answered without the parser when it comes again."""
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.put(DATA)
        ask = f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        for _ in range(3):
            writer.write(ask * 2)
            for _ in range(2):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2)
                assert head.startswith(b"HTTP/1.1 200 ")
                assert await asyncio.wait_for(reader.readexactly(SIZE), 2) == DATA
        writer.close()


async def test_a_head_hidden_in_another_head_is_not_answered(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.put(DATA)
        ask = f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        for _ in range(2):
            writer.write(ask)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 206")
            await reader.readexactly(10)
        assert w.context.servers[0].repeats == 1
        # The same bytes again, but inside a request that has begun before: part of its head.
        writer.write(b"GET /healthy HTTP/1.1\r\nHost: x\r\nX: ")
        await asyncio.sleep(0.05)
        writer.write(ask)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 206 " not in answer.split(b"\r\n")[0]
        assert w.context.servers[0].repeats == 1
        writer.close()


async def test_a_peer_that_waits_for_the_origin_is_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.plan = "waiting"
        read = asyncio.create_task(w.get(f"/v2/app/blobs/{digest}"))
        await asyncio.sleep(0.8)
        # Longer than `peer_wait`, and the origin was not burdened a second time.
        assert w.origin.calls == []
        w.door.waits_on = "nothing"
        assert (await read)[2] == DATA
        assert w.origin.calls == []


async def test_a_peer_without_its_shard_is_not(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.plan, w.door.waits_on = "waiting", "shard"
        began = asyncio.get_running_loop().time()
        status, headers, body = await w.get(f"/v2/app/blobs/{digest}")
        assert (status, body, headers["X-Passel-Source"]) == (200, DATA, "origin")
        assert asyncio.get_running_loop().time() - began < 1.5
