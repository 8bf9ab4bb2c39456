"""A gateway on loopback with a peer and an origin that do what a test says. The store is real."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry

from passel.config import Config
from passel.core.versions import HEADER, SAID
from passel.errors import DigestMismatch, OriginRefused, OriginTimeout, OriginUnavailable
from passel.gateway.api import Api
from passel.gateway.connection import Server
from passel.gateway.context import Context
from passel.gateway.manifestcache import ManifestCache
from passel.gateway.page import Page
from passel.gateway.routes import Routes, Services
from passel.ids import BlobKey, BlobRef, Digest
from passel.store import Store

PIECE = 64 * 1024
CHALLENGE = 'Bearer realm="https://auth.test/token",service="auth.test",scope="repository:x:pull"'


def digest_of(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@dataclass
class Answer:
    status: int
    headers: CIMultiDict[str]
    body: bytes
    anonymous: bool = True

    async def iter_chunks(self) -> AsyncIterator[bytes]:
        yield self.body


@dataclass
class Stream:
    size: int
    start: int
    stop: int
    anonymous: bool
    origin: FakeOrigin
    data: bytes
    still_s: float = 10.0

    async def chunks(self) -> AsyncIterator[bytes]:
        at = self.start
        while at < self.stop:
            if self.origin.breaks_at is not None and at >= self.origin.breaks_at:
                if self.origin.heals:
                    self.origin.breaks_at = None
                raise OriginUnavailable("cut")
            if self.origin.stalls_at is not None and at >= self.origin.stalls_at:
                self.origin.stalls.append(self.still_s)
                await asyncio.sleep(self.still_s)
                raise OriginTimeout("silent")
            piece = self.data[at : min(at + 50_000, self.stop)]
            at += len(piece)
            self.origin.bytes_sent += len(piece)
            await asyncio.sleep(0)
            yield piece


@dataclass
class Stat:
    size: int
    anonymous: bool


@dataclass
class FakeOrigin:
    """One upstream. `calls` has (method, path, authorization) of all that reached it."""

    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    lists: dict[str, tuple[dict[str, str], bytes]] = field(default_factory=dict)
    #: Repository -> the only Authorization that is let in.
    private: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, str, str | None]] = field(default_factory=list)
    is_down: bool = False
    limited: bool = False
    breaks_at: int | None = None
    #: It breaks off once only.
    heals: bool = False
    #: From here on bodies are silent; for how long readers waited is in `stalls`.
    stalls_at: int | None = None
    stalls: list[float] = field(default_factory=list)
    bytes_sent: int = 0

    def _enter(self, method: str, path: str, authorization: str | None) -> None:
        self.calls.append((method, path, authorization))
        if self.is_down:
            raise OriginUnavailable("down")
        if self.limited:
            raise OriginRefused(429, {"Retry-After": "7"})
        repository = path.removeprefix("/v2/").rsplit("/", 2)[0]
        wanted = self.private.get(repository)
        if wanted is not None and authorization != wanted:
            raise OriginRefused(401, {"WWW-Authenticate": CHALLENGE})

    def _blob(self, ref: BlobRef) -> bytes:
        try:
            return self.blobs[ref.repository, str(ref.digest)]
        except KeyError:
            raise OriginRefused(404, {}) from None

    async def stat_blob(self, ref: BlobRef, *, authorization: str | None) -> Stat:
        self._enter("HEAD", f"/v2/{ref.repository}/blobs/{ref.digest}", authorization)
        return Stat(len(self._blob(ref)), ref.repository not in self.private)

    @asynccontextmanager
    async def fetch_blob(
        self, ref: BlobRef, start: int, stop: int | None, *, authorization: str | None
    ) -> AsyncIterator[Stream]:
        self._enter("GET", f"/v2/{ref.repository}/blobs/{ref.digest}", authorization)
        data = self._blob(ref)
        end = len(data) if stop is None else min(stop, len(data))
        yield Stream(len(data), start, end, ref.repository not in self.private, self, data)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        authorization: str | None,
        deadline_s: float,
    ) -> AsyncIterator[Answer]:
        self._enter(method, path.partition("?")[0], authorization)
        bare = path.removeprefix("/v2/")
        if path in self.lists:
            extra, body = self.lists[path]
            yield Answer(200, CIMultiDict(extra), body)
            return
        if path == "/v2/":
            yield Answer(200, CIMultiDict(), b"{}")
            return
        repository, is_blob, reference = bare.rpartition("/blobs/")
        if is_blob and (repository, reference) in self.blobs:
            yield Answer(200, CIMultiDict(), b"", repository not in self.private)
            return
        repository, _, reference = bare.rpartition("/manifests/")
        if (repository, reference) not in self.manifests:
            raise OriginRefused(404, {})
        media_type, body = self.manifests[repository, reference]
        fields = {
            "Content-Type": media_type,
            "Docker-Content-Digest": str(digest_of(body)),
            "Content-Length": str(len(body)),
            "Set-Cookie": "secret=1",
        }
        is_public = repository not in self.private
        yield Answer(200, CIMultiDict(fields), b"" if method == "HEAD" else body, is_public)

    async def ping(self, authorization: str | None, deadline_s: float) -> None:
        self._enter("GET", "/v2/", authorization)

    async def close(self) -> None:
        """Nothing to close."""

    def count(self, method: str, part: str = "") -> int:
        return sum(1 for each, path, _ in self.calls if each == method and part in path)


class FakeDoor:
    """The peer: writes what `content` has into the store, as `plan` says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store.open(path, 1 << 30)
        self.content: dict[str, bytes] = {}
        self.public: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.told_public: list[dict[str, Any]] = []
        #: ready, silent, passthrough, busy, error (with `error`); after how many pieces it dies, or
        #: brings nothing more.
        self.plan = "ready"
        self.error: dict[str, Any] = {}
        self.waits_on = "origin"
        self.dies_after: int | None = None
        #: What it is in its next life.
        self.plan_after = "ready"
        self.stalls_after: int | None = None
        self.piece_s = 0.0
        self.promotes = True
        self.better: dict[str, bytes] = {}
        self.open_reads = 0
        #: What the controller says to who watches; None: it does not answer.
        self.view: dict[str, Any] | None = None
        #: What the controller says to each verb, and what it was asked.
        self.admin: dict[str, tuple[int, dict[str, Any]]] = {}
        self.admin_asked: list[tuple[str, dict[str, Any]]] = []
        self.says_version: str | None = SAID
        self._runner: web.AppRunner | None = None

    async def _say_version(self, request: web.Request, response: web.StreamResponse) -> None:
        if self.says_version is not None:
            response.headers[HEADER] = self.says_version

    async def start(self) -> None:
        app = web.Application()
        app.on_response_prepare.append(self._say_version)
        app.router.add_post("/v1/ensure", self._ensure)
        app.router.add_get("/v1/stat", self._stat)
        app.router.add_post("/v1/public", self._public)
        app.router.add_get("/v1/health", self._health)
        app.router.add_get("/v1/watch", self._watch)
        app.router.add_get("/v1/status", self._status)
        app.router.add_post("/v1/admin/{verb}", self._admin)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.path / "peer.sock")).start()

    async def stop(self) -> None:
        """Die: connections break, the socket is gone."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            (self.path / "peer.sock").unlink(missing_ok=True)

    async def _health(self, request: web.Request) -> web.Response:
        if self.plan == "silent":
            await asyncio.sleep(60)
        return web.json_response({"pid": 1})

    async def _watch(self, request: web.Request) -> web.Response:
        if self.view is None:
            return web.json_response({"message": "away"}, status=503)
        packed = zlib.compress(json.dumps(self.view).encode())
        headers = {"Content-Encoding": "deflate"}
        return web.Response(body=packed, content_type="application/json", headers=headers)

    async def _status(self, request: web.Request) -> web.Response:
        facts = {"nodes": [], "shards": [], "controller": {"node": "n1", "pid": 1}, "blobs": 0}
        return web.json_response(facts)

    async def _admin(self, request: web.Request) -> web.Response:
        verb = request.match_info["verb"]
        self.admin_asked.append((verb, await request.json()))
        status, facts = self.admin.get(verb, (503, {"message": "the controller is away"}))
        return web.json_response(facts, status=status)

    async def _stat(self, request: web.Request) -> web.Response:
        digest = request.query["digest"]
        data = self.content.get(digest)
        size = None if data is None else len(data)
        return web.json_response({"size": size, "public": digest in self.public, "ttl": 60})

    async def _public(self, request: web.Request) -> web.Response:
        self.told_public.append(await request.json())
        return web.json_response({})

    async def _ensure(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.asked.append(asked)
        if self.plan == "silent":
            await asyncio.sleep(60)
        if self.plan == "busy":
            return web.Response(status=503)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        self.open_reads += 1
        try:
            await response.prepare(request)
            await self._play(response, asked)
        except ConnectionError:
            # The gateway has hung up.
            pass
        finally:
            self.open_reads -= 1
        return response

    async def _play(self, response: web.StreamResponse, asked: dict[str, Any]) -> None:
        async def say(**event: object) -> None:
            await response.write(json.dumps(event).encode() + b"\n")

        data = self.content.get(asked["digest"])
        if self.plan == "passthrough":
            await say(event="passthrough", reason="disk full")
            return
        if self.plan == "waiting":
            for _ in range(100):
                await say(event="waiting", on=self.waits_on)
                await asyncio.sleep(0.1)
                if self.waits_on == "nothing":
                    break
        if self.plan == "error" or data is None:
            await say(event="error", **(self.error or {"status": 503, "code": "", "message": ""}))
            return
        key = BlobKey(asked["upstream"], Digest.parse(asked["digest"]))
        stop = len(data) if asked["stop"] is None else min(asked["stop"], len(data))
        first = True
        blob = self.store.create(key, len(data), PIECE)
        # A real peer goes on to bring the rest of the blob too; here only if it matters.
        from_piece = 0 if self.better else asked["start"] // PIECE
        for piece in range(from_piece, -(-stop // PIECE)):
            if self.stalls_after is not None and piece >= self.stalls_after:
                await asyncio.sleep(60)
            if self.dies_after is not None and self.dies_after == 0:
                self.dies_after, self.plan = None, self.plan_after
                assert response._req is not None
                transport = response._req.transport
                assert transport is not None
                transport.abort()
                return
            if self.dies_after is not None:
                self.dies_after -= 1
            begin, end = piece * PIECE, min((piece + 1) * PIECE, len(data))
            if not blob.have >> piece & 1:
                blob.write(begin, data[begin:end])
                blob.confirm(piece, hashlib.sha256(data[begin:end]).digest())
            if first:
                public = asked["digest"] in self.public
                await say(
                    event="ready",
                    size=len(data),
                    piece_size=PIECE,
                    source="seed",
                    public=public,
                    upto=end,
                )
            else:
                await say(event="progress", upto=end)
            first = False
            await asyncio.sleep(self.piece_s)
        if blob.is_full and self.promotes:
            try:
                blob.promote()
            except DigestMismatch:
                # Destroyed; whoever asks again may get better bytes.
                self.content.update(self.better)
        await say(event="done")

    def put(self, data: bytes, upstream: str = "lab") -> Digest:
        """Put a whole blob into the store, as if it had been read before."""
        digest = digest_of(data)
        blob = self.store.create(BlobKey(upstream, digest), len(data), PIECE)
        for piece in range(blob.n_pieces):
            begin, end = blob.span(piece)
            blob.write(begin, data[begin:end])
            blob.confirm(piece, hashlib.sha256(data[begin:end]).digest())
        blob.promote()
        return digest


@dataclass
class World:
    """Everything that a test needs to look at."""

    base: str
    dedicated: str
    door: FakeDoor
    origins: dict[str, FakeOrigin]
    context: Context
    session: aiohttp.ClientSession
    folder: Path
    page: Page
    #: A listener with the API.
    health: str = ""

    @property
    def origin(self) -> FakeOrigin:
        return self.origins["lab"]

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    async def get(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, CIMultiDict[str], bytes]:
        """Status, headers, body. Header names have _ for -."""
        clean = {name.replace("_", "-"): value for name, value in headers.items()}
        url = path if path.startswith("http") else self.base + path
        from yarl import URL

        async with self.session.request(method, URL(url, encoded=True), headers=clean) as answer:
            return answer.status, CIMultiDict(answer.headers), await answer.read()

    async def raw(self, data: bytes, *, wait_s: float = 2.0) -> bytes:
        """What comes back for these bytes until the gateway closes, or for `wait_s`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            got = b""
            try:
                while chunk := await asyncio.wait_for(reader.read(65536), wait_s):
                    got += chunk
            except (asyncio.TimeoutError, ConnectionError):
                pass
            return got
        finally:
            writer.close()

    def add(self, data: bytes, repository: str = "app", upstream: str = "lab") -> Digest:
        """A blob that the origin has and the peer can bring."""
        digest = digest_of(data)
        self.origins[upstream].blobs[repository, str(digest)] = data
        self.door.content[str(digest)] = data
        self.door.public.add(str(digest))
        return digest


def config_for(folder: Path, **lab: object) -> Config:
    api = {"api": "http://127.0.0.1:5055", **lab}
    return Config.model_validate(
        {
            "upstreams": {
                "lab": {**api, "aliases": ["lab.test"]},
                "other": {"api": "http://127.0.0.1:5056"},
                "docker.io": {},
            },
            "default_upstream": "lab",
            "cluster": "here",
            "store": {"path": str(folder / "store")},
            "gateway": {"limits": {"peer_wait": "400 ms", "header_timeout": "1 s", "direct": 4}},
        }
    )


@asynccontextmanager
async def world(folder: Path, config: Config | None = None) -> AsyncIterator[World]:
    config = config or config_for(folder)
    door = FakeDoor(config.store.path)
    await door.start()
    origins = {key: FakeOrigin() for key in config.upstreams}
    context = Context(
        config,
        CollectorRegistry(),
        lambda key: origins[key],  # type: ignore[arg-type, return-value]
        cluster="here",
    )
    services = Services(context, ManifestCache(folder / "manifests"))
    listeners = []
    for upstream, api in ((None, None), ("other", None), (None, Api(context))):
        routes = Routes(
            services, upstream, api=api, shows_page=config.gateway.ui and upstream is None
        )
        server = Server(routes, header_bytes=65536, is_full=lambda: False)
        context.servers.append(server)
        loop = asyncio.get_running_loop()
        listeners.append(await loop.create_server(server, "127.0.0.1", 0))
    bases = [f"127.0.0.1:{each.sockets[0].getsockname()[1]}" for each in listeners]
    context.addresses = bases
    session = aiohttp.ClientSession(auto_decompress=False)
    try:
        yield World(
            f"http://{bases[0]}",
            f"http://{bases[1]}",
            door,
            origins,
            context,
            session,
            folder,
            services.page,
            f"http://{bases[2]}",
        )
    finally:
        await session.close()
        await services.page.close()
        for each in listeners:
            each.close()
        for server in context.servers:
            server.abort_all()
        await context.close()
        await door.stop()
        door.store.close()
        await asyncio.sleep(0)
