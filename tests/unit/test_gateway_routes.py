from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pickle
from pathlib import Path

import pytest
from unit.gateway_fakes import PIECE, digest_of, noise, world

from passel import errors
from passel.gateway.replies import SPEAK_FOR_THEMSELVES, TABLE, failure_of, head

DATA = noise(2 * PIECE)
SECRET = "c2VjcmV0LWNyZWRlbnRpYWw"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v2/app/blobs/{d}", {"X-Passel-Registry": "other"}),
        ("/v2/app/blobs/{d}", {"X-Dragonfly-Registry": "http://other"}),
        ("/v2/app/blobs/{d}", {"X-Dragonfly-Registry": "http://127.0.0.1:5056"}),
        ("/v2/app/blobs/{d}", {"OCI-Namespace": "other"}),
        ("/v2/app/blobs/{d}?ns=other", {}),
        ("/v2/app/blobs/{d}?ns=OTHER.", {}),
        ("/v2/other/app/blobs/{d}", {}),
        ("/v2/other/app/blobs/{d}?ns=other", {}),
        ("/other/v2/app/blobs/{d}", {}),
        ("/v2/app/blobs/{d}", {"Host": "other"}),
    ],
)
async def test_every_way_to_name_an_upstream(
    tmp_path: Path, path: str, headers: dict[str, str]
) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA, upstream="other")
        status, seen, body = await w.get(path.format(d=digest), **headers)
        assert (status, body) == (200, DATA)
        assert seen["OCI-Namespace"] == "other"
        assert w.door.asked[0]["upstream"] == "other"
        assert w.door.asked[0]["repository"] == "app"


async def test_absolute_form_names_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA, upstream="other")
        for authority in ("other", "127.0.0.1:5056"):
            got = await w.raw(
                f"GET http://{authority}/v2/app/blobs/{digest} HTTP/1.1\r\nHost: {authority}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            assert got.startswith(b"HTTP/1.1 200 ")
            assert got.endswith(DATA)
        for authority in ("evil.test", "169.254.169.254", "user@other", "other:99999"):
            got = await w.raw(
                f"GET http://{authority}/v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            assert got.split(b"\r\n")[0].split()[1] in (b"403", b"400")
        assert w.origin.calls == []


async def test_dedicated_listener(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA, upstream="other")
        status, headers, body = await w.get(f"{w.dedicated}/v2/app/blobs/{digest}")
        assert (status, headers["OCI-Namespace"], body) == (200, "other", DATA)
        status, _, body = await w.get(f"{w.dedicated}/v2/app/blobs/{digest}?ns=lab")
        assert status == 404
        assert b"other" in body
        assert (await w.get(f"{w.dedicated}/v2/"))[0] == 200
        w.origins["other"].private[""] = "x"
        w.origins["other"].calls.clear()


async def test_unknown_upstreams_are_404(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        for path, headers in [
            (f"/v2/app/blobs/{digest}?ns=nowhere.test", {}),
            (f"/v2/app/blobs/{digest}", {"X-Passel-Registry": "nowhere.test"}),
        ]:
            status, _, body = await w.get(path, **headers)
            assert status == 404
            assert json.loads(body)["errors"][0]["code"] == "NAME_UNKNOWN"
        assert (await w.get(f"/v2/app/blobs/{digest}?ns=lab&ns=other"))[0] == 400
        assert w.origin.calls == []


async def test_ping_and_health(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for base in (w.base, w.dedicated):
            for path in ("/v2/", "/v2"):
                for method in ("GET", "HEAD"):
                    status, headers, body = await w.get(base + path, method)
                    assert status == 200
                    assert headers["Docker-Distribution-Api-Version"] == "registry/2.0"
                    assert body == (b"{}" if method == "GET" else b"")
            for path in ("/server/ping", "/healthy"):
                assert (await w.get(base + path))[0] == 200
        status, _, body = await w.get("/metrics")
        assert status == 200
        assert b'passel_gateway_bytes_total{source="origin"} 0.0' in body
        assert w.origin.calls == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_pushes_are_refused(tmp_path: Path, method: str) -> None:
    async with world(tmp_path) as w:
        status, headers, body = await w.get("/v2/app/blobs/uploads/", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
        error = json.loads(body)["errors"][0]
        assert error["code"] == "UNSUPPORTED"
        assert "push" in error["message"]
        assert w.origin.calls == []


async def test_connect(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        got = await w.raw(b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n")
        head_, _, body = got.partition(b"\r\n\r\n")
        assert head_.startswith(b"HTTP/1.1 405 ")
        assert "use_http: true" in json.loads(body)["errors"][0]["message"]


async def test_loop(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        status, _, _ = await w.get(f"/v2/app/blobs/{digest}", Via="1.0 x, 1.1 here")
        assert status == 508
        assert (await w.get(f"/v2/app/blobs/{digest}", Via="1.1 passel"))[0] == 200


BAD_PATHS = [
    "/v2/app/blobs/sha256:xyz",
    "/v2/app/blobs/sha256:" + "A" * 64,
    "/v2/app/blobs/sha1:" + "a" * 40,
    "/v2/../etc/blobs/sha256:" + "a" * 64,
    "/v2/%2e%2e/x/blobs/sha256:" + "a" * 64,
    "/v2/App/blobs/sha256:" + "a" * 64,
    "/v2/app/manifests/-bad",
    "/v2/app/manifests/v1%0a",
    "/v2/a%00b/manifests/v1",
    "/v2/app%0d%0aX-Injected:1/manifests/v1",
    "/v2/%ff/manifests/v1",
    "/v2/_catalog",
    "/v2/app/unknown/x",
    "/etc/passwd",
    "/",
    "/token",
]


@pytest.mark.parametrize("path", BAD_PATHS)
async def test_bad_paths_reach_no_origin(tmp_path: Path, path: str) -> None:
    async with world(tmp_path) as w:
        status, headers, body = await w.get(path)
        assert status in (400, 404)
        assert headers["Content-Type"] == "application/json"
        assert headers["X-Dragonfly-Error-Type"] == "proxy"
        assert json.loads(body)["errors"][0]["code"]
        assert "X-Injected" not in headers
        assert w.origin.calls == []
        assert w.door.asked == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECRET.encode(),
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + SECRET.encode()
        + b"\x01\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + SECRET.encode() * 4000
        + b"\r\n\r\n",
        b"GET /v2/" + SECRET.encode() * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\n Authorization: " + SECRET.encode() + b"\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\nHost: x\r\nA: " + SECRET.encode() + b"\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n" + SECRET.encode(),
        b"ge t /" + SECRET.encode() + b"\r\n\r\n",
        b"GET " + SECRET.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=range(12),
)
async def test_malformed_requests(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with world(tmp_path) as w:
        got = await w.raw(data)
        top, _, body = got.partition(b"\r\n\r\n")
        assert top.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 ", b"HTTP/1.1 431 ")), got[:200]
        assert b"application/json" in top
        assert b"Connection: close" in top
        assert json.loads(body)["errors"][0]["message"]
        assert SECRET.encode()[:12] not in got
        assert SECRET[:12] not in caplog.text
        assert w.origin.calls == []


async def test_a_long_token_is_fine(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        status, _, body = await w.get(
            f"/v2/app/blobs/{digest}", Authorization="Bearer " + "x" * 20000
        )
        assert (status, body) == (200, DATA)


async def test_get_with_an_empty_body_is_fine(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        got = await w.raw(
            f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nrange: bytes=0-9\r\ncontent-length: 0\r\n"
            "accept: */*\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
        )
        assert got.startswith(b"HTTP/1.1 206 ")
        assert got.endswith(DATA[:10])


async def test_slow_heads_are_closed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost:")
        await asyncio.sleep(0.05)
        w.context.servers[0].sweep(idle_s=100, header_s=100, stall_s=100)
        assert not reader.at_eof()
        w.context.servers[0].sweep(idle_s=100, header_s=0.01, stall_s=100)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 1) == b""
        writer.close()


@pytest.mark.parametrize("asks_first", [False, True])
async def test_idle_connections_are_closed(tmp_path: Path, asks_first: bool) -> None:
    async with world(tmp_path) as w:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        if asks_first:
            writer.write(b"GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in await asyncio.wait_for(reader.readuntil(b"OK\n"), 2)
        await asyncio.sleep(0.05)
        w.context.servers[0].sweep(idle_s=100, header_s=0.01, stall_s=0.01)
        assert w.context.servers[0].n_connections == 1
        w.context.servers[0].sweep(idle_s=0.01, header_s=100, stall_s=100)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 1) == b""
        assert w.context.servers[0].n_connections == 0
        writer.close()


async def test_http_1_0(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        got = await w.raw(f"GET /v2/app/blobs/{digest} HTTP/1.0\r\n\r\n".encode())
        assert got.startswith(b"HTTP/1.1 200 ")
        assert b"Connection: close" in got
        assert got.endswith(DATA)


def leaves(kind: type[errors.PasselError]) -> set[type[errors.PasselError]]:
    below = [each for each in kind.__subclasses__() if each.__module__ == "passel.errors"]
    return set().union(*map(leaves, below)) if below else {kind}


def test_every_leaf_of_the_error_tree_has_a_row() -> None:
    for leaf in leaves(errors.PasselError):
        assert leaf in TABLE or leaf in SPEAK_FOR_THEMSELVES, leaf


def test_our_own_troubles_are_never_the_origins_word() -> None:
    for kind, row in TABLE.items():
        assert row.status >= 500, kind
    failure = failure_of(errors.PeerBusy("x", 3.2))
    assert failure.status == 503
    assert failure.headers == (("Retry-After", "3"),)
    assert pickle.loads(pickle.dumps(failure)) == failure


def test_a_refusal_passes_only_what_may_pass() -> None:
    error = errors.OriginRefused(401, {"WWW-Authenticate": "Basic", "Set-Cookie": "x=1"}, b"<html>")
    failure = failure_of(error)
    assert failure.headers == (("WWW-Authenticate", "Basic"),)
    assert failure.body is None
    assert b"UNAUTHORIZED" in failure.encode(head_only=False, keep=True)


def test_line_breaks_do_not_split_an_answer() -> None:
    assert b"X-Evil" not in head(200, [("A", "1\r\nX-Evil: 2")])


async def test_digest_of_a_learned_manifest_finds_its_upstream(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        blob = w.add(DATA, upstream="other")
        body = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"digest": str(blob), "size": len(DATA), "mediaType": "a/b"},
                "layers": [],
            }
        ).encode()
        kind = "application/vnd.oci.image.manifest.v1+json"
        w.origins["other"].manifests["app", "v1"] = (kind, body)
        assert (await w.get("/v2/app/manifests/v1?ns=other"))[0] == 200
        # No upstream named: the manifest that went by tells, not the default.
        status, headers, got = await w.get(f"/v2/app/blobs/{blob}")
        assert (status, headers["OCI-Namespace"], got) == (200, "other", DATA)
        assert digest_of(got) == blob
