"""The client of an upstream, against an origin that misbehaves as told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from passel.config.load import parse
from passel.errors import (
    OriginNonsense,
    OriginRefused,
    OriginTimeout,
    OriginUnavailable,
    PasselError,
)
from passel.ids import BlobRef, Digest
from passel.transport import origin as origin_module
from passel.transport.origin import OriginClient
from passel.transport.origin_net import is_allowed

DATA = os.urandom(300_000)
REF = BlobRef("lab", "org/app", Digest("sha256", hashlib.sha256(DATA).hexdigest()))
SECRET = "s3cr3t-of-a-client"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    server = web.Server(handler, access_log=None)  # type: ignore[arg-type]
    runner = web.ServerRunner(server, shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@asynccontextmanager
async def client_of(api: str, backoff_s: float = 0.001, **more: Any) -> AsyncIterator[OriginClient]:
    lab = {"api": api, "networks": ["127.0.0.0/8"], **more}
    config = parse(str({"upstreams": {"lab": lab}}))
    upstream = config.upstreams["lab"]
    rng = random.Random(1)
    client = OriginClient("lab", upstream, cluster="test", rng=rng, backoff_s=backoff_s)
    try:
        yield client
    finally:
        await client.close()


def ranged(request: web.Request, data: bytes = DATA) -> web.Response:
    text = request.headers.get("Range")
    if text is None:
        return web.Response(body=data)
    first, _, last = text.removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
    headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    return web.Response(status=206, body=data[start:stop], headers=headers)


async def read(
    client: OriginClient, start: int, stop: int | None, auth: str | None = None
) -> bytes:
    async with client.fetch_blob(REF, start, stop, authorization=auth) as stream:
        assert stream.size == len(DATA)
        return b"".join([chunk async for chunk in stream.chunks()])


@pytest.mark.parametrize(("start", "stop"), [(0, None), (5, 10), (100_000, 999_999), (0, 1)])
async def test_ranges_are_exactly_what_was_asked_for(start: int, stop: int | None) -> None:
    async def origin(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        assert request.headers["Via"] == "1.1 test"
        return ranged(request)

    async with serving(origin) as api, client_of(api) as client:
        assert await read(client, start, stop) == DATA[start:stop]
        assert (await client.stat_blob(REF, authorization=None)).size == len(DATA)


async def test_an_origin_that_ignores_ranges_is_sliced() -> None:
    async def origin(request: web.Request) -> web.StreamResponse:
        return web.Response(body=DATA)

    async with serving(origin) as api, client_of(api) as client:
        assert await read(client, 70_000, 200_000) == DATA[70_000:200_000]
        assert client.ignores_ranges()


@pytest.mark.parametrize(
    "lie",
    [
        {"Content-Range": "bytes 0-9/300000"},
        {"Content-Range": "bytes 5-20/300000"},
        {"Content-Range": "bytes 5-9/*"},
        {"Content-Range": "garbage"},
        {"Content-Range": "bytes 5-9/300000", "Content-Encoding": "gzip"},
    ],
)
async def test_a_wrong_range_is_nonsense(lie: dict[str, str]) -> None:
    async def origin(request: web.Request) -> web.StreamResponse:
        return web.Response(status=206, body=DATA[5:10], headers=lie)

    async with serving(origin) as api, client_of(api) as client:
        with pytest.raises(OriginNonsense):
            await read(client, 5, 10)


async def test_a_cut_stream_is_resumed_without_a_gap_or_a_repetition() -> None:
    asked: list[str] = []

    async def origin(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["Range"])
        whole = ranged(request)
        answer = web.StreamResponse(status=206, headers=whole.headers)
        await answer.prepare(request)
        assert isinstance(whole.body, bytes)
        await answer.write(whole.body[:90_000])
        if len(whole.body) > 90_000:
            await asyncio.sleep(0.02)
            assert request.transport is not None
            request.transport.abort()
        return answer

    async with serving(origin) as api, client_of(api) as client:
        assert await read(client, 0, None) == DATA
    assert len(asked) == 4


async def test_what_came_before_the_break_is_kept() -> None:
    """aiohttp reports a broken body before what it has of it, which was fetched again each time."""
    asked: list[str] = []

    async def origin(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["Range"])
        whole = ranged(request)
        answer = web.StreamResponse(status=206, headers=whole.headers)
        assert isinstance(whole.body, bytes)
        answer.content_length = len(whole.body)
        await answer.prepare(request)
        await answer.write(whole.body[:90_000])
        assert request.transport is not None
        request.transport.close()
        return answer

    async with serving(origin) as api, client_of(api) as client:
        assert await read(client, 0, None) == DATA
    assert asked == [f"bytes={start}-" for start in (0, 90_000, 180_000, 270_000)]


def stalling(asked: list[str], n_stalls: int) -> Handler:
    """An origin whose first answers stop after 90 000 bytes, and leave the connection open."""

    async def origin(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["Range"])
        whole = ranged(request)
        if len(asked) > n_stalls:
            return whole
        answer = web.StreamResponse(status=206, headers=whole.headers)
        assert isinstance(whole.body, bytes)
        answer.content_length = len(whole.body)
        await answer.prepare(request)
        start = len(DATA) - len(whole.body)
        await answer.write(whole.body[: max(0, 90_000 - start)])
        await asyncio.sleep(30)
        return answer

    return origin


async def test_a_body_that_falls_silent_goes_on_from_the_very_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origin_module, "STALLS_S", (0.05, 0.1))
    asked: list[str] = []
    async with serving(stalling(asked, 1)) as api, client_of(api) as client:
        assert await read(client, 0, None) == DATA
    assert asked == ["bytes=0-", "bytes=90000-"]


async def test_answers_that_bring_nothing_are_not_asked_for_in_one_breath() -> None:
    """An origin that was ill for a moment had used up all tries of all peers within it."""
    loop = asyncio.get_running_loop()
    ill_until = 0.0

    async def origin(request: web.Request) -> web.StreamResponse:
        nonlocal ill_until
        whole = ranged(request)
        if request.headers["Range"] == "bytes=0-":
            ill_until = loop.time() + 0.2
        elif loop.time() >= ill_until:
            return whole
        answer = web.StreamResponse(status=206, headers=whole.headers)
        assert isinstance(whole.body, bytes)
        answer.content_length = len(whole.body)
        await answer.prepare(request)
        await answer.write(whole.body[: max(0, len(whole.body) - len(DATA) + 90_000)])
        await asyncio.sleep(0.02)
        assert request.transport is not None
        request.transport.close()
        return answer

    async with serving(origin) as api, client_of(api, 0.1) as client:
        assert await read(client, 0, None) == DATA


async def test_a_body_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After few tries, or when its time is over: whoever reads it is not left hanging."""
    monkeypatch.setattr(origin_module, "STALLS_S", (0.05, 0.05, 0.1))
    asked: list[str] = []
    async with serving(stalling(asked, 99)) as api, client_of(api) as client:
        with pytest.raises(OriginTimeout):
            await asyncio.wait_for(read(client, 0, None), 10)
        assert asked == ["bytes=0-"] + ["bytes=90000-"] * origin_module.RESUMES_MAX
        asked.clear()
        async with client.fetch_blob(REF, 0, None, authorization=None) as stream:
            stream.still_s = 0.07
            with pytest.raises(OriginTimeout):
                await asyncio.wait_for(drain(stream), 10)
        assert len(asked) == 2


async def test_a_question_that_is_never_answered_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A router forgot the connection: whoever waited for half a minute lost a crowd as much."""
    monkeypatch.setattr(origin_module, "ANSWERS_S", (0.1, 0.2, 5.0))
    n_asked = 0

    async def origin(request: web.Request) -> web.StreamResponse:
        nonlocal n_asked
        n_asked += 1
        if n_asked < 3:
            await asyncio.sleep(30)
        return ranged(request)

    async with serving(origin) as api, client_of(api) as client:
        assert await asyncio.wait_for(read(client, 0, 10), 10) == DATA[:10]
    assert n_asked == 3


async def drain(stream: origin_module.BlobStream) -> None:
    async for _ in stream.chunks():
        pass


async def test_a_reader_that_takes_its_time_is_no_silence_of_the_origin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origin_module, "STALLS_S", (0.05,))
    asked: list[str] = []

    async def origin(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["Range"])
        return ranged(request)

    got = b""
    async with (
        serving(origin) as api,
        client_of(api) as client,
        client.fetch_blob(REF, 0, None, authorization=None) as stream,
    ):
        async for chunk in stream.chunks():
            got += chunk
            await asyncio.sleep(0.2)
    assert got == DATA
    assert len(asked) == 1


async def test_a_blob_that_changes_its_size_is_nonsense() -> None:
    async def origin(request: web.Request) -> web.StreamResponse:
        start = int(request.headers["Range"].removeprefix("bytes=").partition("-")[0])
        if start == 0:
            headers = {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}
            answer = web.StreamResponse(status=206, headers=headers)
            answer.content_length = len(DATA)
            await answer.prepare(request)
            await answer.write(DATA[:50_000])
            await asyncio.sleep(0.02)
            assert request.transport is not None
            request.transport.abort()
            return answer
        return ranged(request, DATA + b"more")

    async with serving(origin) as api, client_of(api) as client:
        with pytest.raises(OriginNonsense):
            await read(client, 0, None)


@pytest.mark.parametrize(("fails", "status"), [(1, 503), (2, 500), (2, 408)])
async def test_passing_trouble_is_retried(fails: int, status: int) -> None:
    left = fails

    async def origin(request: web.Request) -> web.StreamResponse:
        nonlocal left
        left -= 1
        return web.Response(status=status) if left >= 0 else ranged(request)

    async with serving(origin) as api, client_of(api) as client:
        assert await read(client, 0, 10) == DATA[:10]


async def test_lasting_trouble_is_unavailable_and_silence_a_timeout() -> None:
    async def down(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    async def mute(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    async with serving(down) as api, client_of(api) as client:
        with pytest.raises(OriginUnavailable):
            await read(client, 0, 10)
    async with serving(mute) as api, client_of(api) as client:
        with pytest.raises(OriginTimeout):
            await client.stat_blob(REF, authorization=None, deadline_s=0.1)
    async with client_of("http://127.0.0.1:1") as client:
        with pytest.raises(OriginUnavailable, match="cannot be reached"):
            await read(client, 0, 10)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_the_origins_no_is_passed_on(status: int) -> None:
    async def origin(request: web.Request) -> web.StreamResponse:
        headers = {"WWW-Authenticate": 'Basic realm="r"', "Set-Cookie": "a=b"}
        return web.Response(status=status, headers=headers, body=b'{"errors":[]}')

    async with serving(origin) as api, client_of(api) as client:
        with pytest.raises(OriginRefused) as caught:
            await read(client, 0, 10)
    assert caught.value.status == status
    assert caught.value.body == b'{"errors":[]}'
    assert caught.value.headers["WWW-Authenticate"] == 'Basic realm="r"'
    assert "Set-Cookie" not in caught.value.headers


async def test_429_is_remembered_until_its_time_is_over() -> None:
    count = 0

    async def origin(request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        return web.Response(status=429, headers={"Retry-After": "60"})

    async with serving(origin) as api, client_of(api) as client:
        for _ in range(5):
            with pytest.raises(OriginRefused) as caught:
                await read(client, 0, 10)
            assert caught.value.status == 429
    assert count == 1


async def test_credentials_stay_with_their_host(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen: dict[str, str | None] = {}

    async def storage(request: web.Request) -> web.StreamResponse:
        seen["storage"] = request.headers.get("Authorization")
        assert request.rel_url.raw_query_string == "sig=a%2Fb%7E"
        return ranged(request)

    async with serving(storage) as target:

        async def origin(request: web.Request) -> web.StreamResponse:
            seen["api"] = request.headers.get("Authorization")
            return web.Response(status=307, headers={"Location": f"{target}/x?sig=a%2Fb%7E"})

        async with serving(origin) as api, client_of(api) as client:
            assert await read(client, 0, 10, f"Bearer {SECRET}") == DATA[:10]
    assert seen == {"api": f"Bearer {SECRET}", "storage": None}
    assert SECRET not in caplog.text
    assert "sig=" not in caplog.text


async def test_redirects_to_forbidden_places_end_before_a_byte_is_sent() -> None:
    touched = False

    async def victim(request: web.Request) -> web.StreamResponse:
        nonlocal touched
        touched = True
        return web.Response()

    async with serving(victim) as target:
        port = target.rpartition(":")[2]
        for location in (
            "http://169.254.169.254/latest/meta-data",
            f"http://10.1.2.3:{port}/",
            "file:///etc/passwd",
            "",
        ):

            async def origin(request: web.Request, to: str = location) -> web.StreamResponse:
                return web.Response(status=302, headers={"Location": to})

            async with serving(origin) as api, client_of(api) as client:
                with pytest.raises(OriginNonsense):
                    await read(client, 0, 10)
    assert not touched


async def test_endless_redirects_end() -> None:
    async def origin(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/again"})

    async with serving(origin) as api, client_of(api) as client:
        with pytest.raises(OriginNonsense, match="more than 5"):
            await read(client, 0, 10)


def bearer_origin(log: list[tuple[str, str | None]]) -> Handler:
    async def origin(request: web.Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization")
        log.append((request.path, authorization))
        if request.path == "/token":
            assert request.query["scope"] == "repository:org/app:pull"
            wanted = "Basic " + base64.b64encode(f"u:{SECRET}".encode()).decode()
            name = "private" if authorization == wanted else "public"
            return web.json_response({"token": f"tok-{name}", "expires_in": 300})
        if authorization not in ("Bearer tok-public", "Bearer tok-private"):
            realm = f'Bearer realm="http://{request.host}/token",service="s"'
            return web.Response(status=401, headers={"WWW-Authenticate": realm})
        return ranged(request)

    return origin


async def test_an_anonymous_token_is_fetched_once_and_counts_as_public() -> None:
    log: list[tuple[str, str | None]] = []
    async with serving(bearer_origin(log)) as api, client_of(api) as client:
        for _ in range(3):
            async with client.fetch_blob(REF, 0, 10, authorization=None) as stream:
                assert stream.anonymous
    assert [path for path, _ in log].count("/token") == 1


@pytest.mark.parametrize("status", [404, 405])
async def test_a_token_server_that_knows_no_get_is_sent_the_form(status: int) -> None:
    forms: list[dict[str, str]] = []

    async def origin(request: web.Request) -> web.StreamResponse:
        if request.path == "/token" and request.method == "GET":
            return web.Response(status=status)
        if request.path == "/token":
            assert not request.query, "a password's companions do not belong into a URL"
            forms.append({key: str(value) for key, value in (await request.post()).items()})
            return web.json_response({"access_token": "tok", "expires_in": 300})
        if request.headers.get("Authorization") != "Bearer tok":
            realm = f'Bearer realm="http://{request.host}/token",service="s"'
            return web.Response(status=401, headers={"WWW-Authenticate": realm})
        return ranged(request)

    basic = "Basic " + base64.b64encode(f"u:{SECRET}".encode()).decode()
    async with serving(origin) as api, client_of(api) as client:
        async with client.fetch_blob(REF, 0, 10, authorization=basic) as stream:
            assert not stream.anonymous
        with pytest.raises(OriginRefused):
            async with client.fetch_blob(REF, 0, 10, authorization=None):
                pass
    assert forms == [
        {
            "scope": "repository:org/app:pull",
            "service": "s",
            "grant_type": "password",
            "client_id": "passel",
            "username": "u",
            "password": SECRET,
        }
    ]


async def test_a_token_is_renewed_before_it_ends() -> None:
    """A request that takes a while must not find its token gone on the way."""
    issued: list[float] = []
    used: list[tuple[str, float]] = []

    async def origin(request: web.Request) -> web.StreamResponse:
        now = asyncio.get_running_loop().time()
        if request.path == "/token":
            issued.append(now)
            return web.json_response({"token": f"tok-{len(issued)}", "expires_in": 1})
        authorization = request.headers.get("Authorization", "")
        if not authorization.startswith("Bearer tok-"):
            realm = f'Bearer realm="http://{request.host}/token",service="s"'
            return web.Response(status=401, headers={"WWW-Authenticate": realm})
        used.append((authorization, now))
        return ranged(request)

    async with serving(origin) as api, client_of(api) as client:
        for _ in range(12):
            async with client.fetch_blob(REF, 0, 10, authorization=None) as stream:
                assert stream.size
            await asyncio.sleep(0.1)
    assert len(issued) >= 2
    for authorization, at in used:
        age_s = at - issued[int(authorization.rpartition("-")[2]) - 1]
        assert age_s < 0.9, "it had less than a tenth of its life left"


async def test_static_credentials_go_to_the_token_server_only(tmp_path: Any) -> None:
    log: list[tuple[str, str | None]] = []
    (tmp_path / "password").write_text(SECRET + "\n")
    more = {
        "auth": "static",
        "username": "u",
        "password_file": str(tmp_path / "password"),
    }
    async with (
        serving(bearer_origin(log)) as api,
        client_of(api, **more) as client,
        client.fetch_blob(REF, 0, 10, authorization="Bearer ignored") as stream,
    ):
        assert not stream.anonymous
    assert log[-1][1] == "Bearer tok-private"


async def test_a_realm_elsewhere_gets_no_credentials() -> None:
    asked = False

    async def thief(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked = True
        return web.json_response({"token": "x"})

    async with serving(thief) as elsewhere:
        port = elsewhere.rpartition(":")[2]

        async def origin(request: web.Request) -> web.StreamResponse:
            realm = f'Bearer realm="http://127.0.0.2:{port}/token",service="s"'
            return web.Response(status=401, headers={"WWW-Authenticate": realm})

        async with serving(origin) as api, client_of(api) as client:
            with pytest.raises(PasselError):
                await read(client, 0, 10, "Basic " + base64.b64encode(b"u:p").decode())
    assert not asked


def test_what_may_be_dialled() -> None:
    import ipaddress

    nets = [ipaddress.ip_network("10.0.0.0/8")]
    assert is_allowed("8.8.8.8", [])
    assert is_allowed("10.1.2.3", nets)
    for bad in ("10.1.2.3", "127.0.0.1", "::1", "169.254.169.254", "fd00:ec2::254", "0.0.0.0"):
        assert not is_allowed(bad, [])
    for wrapped in ("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"):
        assert not is_allowed(wrapped, [ipaddress.ip_network("::/0"), *nets])
    assert origin_module.REDIRECTS_MAX == 5
