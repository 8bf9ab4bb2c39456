"""The peer's door: HTTP over a Unix socket, for the gateway of the same node.

``POST /v1/ensure`` turns a read into events of the machine and the machine's answers into lines of
JSON; bytes never pass here, the gateway reads them from the store.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from passel.core.messages import (
    PeerCommand,
    ReadDone,
    ReadFailed,
    ReadPassthrough,
    ReadProgress,
    ReadReady,
    ReadWaiting,
    Refusal,
)
from passel.core.versions import HEADER, SAID
from passel.errors import ConfigError, InputError, PeerUnavailable
from passel.ids import BlobRef, Digest
from passel.oci.errors import CONTENT_TYPE, error_body

log = logging.getLogger(__name__)

READS_MAX = 1024
#: A job of 5000 blobs.
BODY_BYTES_MAX = 2 * 1024 * 1024
#: sockaddr_un.sun_path holds 108 bytes with the final NUL, unix(7).
SOCKET_PATH_MAX = 107

ReadAnswer = ReadReady | ReadProgress | ReadWaiting | ReadDone | ReadFailed | ReadPassthrough


class Reader:
    """The answers for one read: only the newest progress is kept, so the queue is bounded."""

    def __init__(self) -> None:
        self._answers: list[ReadAnswer] = []
        self._wake = asyncio.Event()

    def put(self, answer: ReadAnswer) -> None:
        last = self._answers[-1] if self._answers else None
        if isinstance(answer, ReadProgress | ReadWaiting) and type(last) is type(answer):
            self._answers[-1] = answer
        else:
            self._answers.append(answer)
        self._wake.set()

    async def get(self) -> list[ReadAnswer]:
        await self._wake.wait()
        self._wake.clear()
        answers, self._answers = self._answers, []
        return answers


class Host(Protocol):
    """What the door needs of the peer."""

    def begin_read(
        self, ref: BlobRef, start: int, stop: int | None, authorization: str | None
    ) -> tuple[int, Reader]: ...

    def end_read(self, read: int) -> None: ...

    async def stat(self, ref: BlobRef) -> tuple[int | None, float]: ...

    def seen_public(self, ref: BlobRef, ttl_s: float) -> None: ...

    def health(self) -> dict[str, Any]: ...

    async def cluster_status(self) -> dict[str, Any]: ...

    async def watch(self) -> bytes: ...

    async def admin(self, verb: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]: ...

    async def verify(self, digest: Digest) -> bool: ...


class Door:
    """Listens on one Unix socket until `close`."""

    def __init__(self, host: Host, path: Path) -> None:
        self._host = host
        self._path = path
        self._runner: web.AppRunner | None = None
        self.n_reads = 0

    async def open(self) -> None:
        if len(str(self._path).encode()) > SOCKET_PATH_MAX:
            raise ConfigError(
                f"store.path: {self._path} is longer than the {SOCKET_PATH_MAX} bytes that the name"
                " of a Unix socket may have; choose a shorter folder"
            )
        # Left over from an earlier life: this process holds the store's lock, so nobody listens.
        self._path.unlink(missing_ok=True)
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.on_response_prepare.append(_say_version)
        app.router.add_post("/v1/ensure", self._ensure)
        app.router.add_get("/v1/stat", _guarded(self._stat))
        app.router.add_post("/v1/public", _guarded(self._public))
        app.router.add_get("/v1/health", _guarded(self._health))
        app.router.add_get("/v1/status", _guarded(self._status))
        app.router.add_get("/v1/watch", _guarded(self._watch))
        app.router.add_post("/v1/admin/{verb}", _guarded(self._admin))
        app.router.add_post("/v1/verify", _guarded(self._verify))
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.UnixSite(self._runner, str(self._path), backlog=1024)
        await site.start()
        self._path.chmod(0o600)

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._path.unlink(missing_ok=True)

    # --- handlers -------------------------------------------------------------------------------

    async def _ensure(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
            ref = _ref(body)
            start, stop = _range(body)
            authorization = body.get("authorization")
            if authorization is not None and not isinstance(authorization, str):
                raise InputError(400, "UNKNOWN", "authorization must be a string or null")
        except (ValueError, TypeError, InputError) as error:
            return _error(400, str(error))
        if self.n_reads >= READS_MAX:
            return _error(503, f"more than {READS_MAX} reads are waiting on this node")
        answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await answer.prepare(request)
        number, reader = self._host.begin_read(ref, start, stop, authorization)
        self.n_reads += 1
        try:
            is_over = False
            while not is_over:
                lines = await reader.get()
                is_over = any(isinstance(x, ReadDone | ReadFailed | ReadPassthrough) for x in lines)
                await answer.write(b"".join(_line(line) for line in lines))
        except ConnectionError:
            log.debug("reader_left read=%d", number)
        finally:
            self.n_reads -= 1
            self._host.end_read(number)
        return answer

    async def _stat(self, request: web.Request) -> web.Response:
        size, public_s = await self._host.stat(_ref(request.query))
        return web.json_response({"size": size, "public": public_s > 0, "ttl": public_s})

    async def _public(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._host.seen_public(_ref(body), min(float(body["ttl"]), 86400.0))
        return web.json_response({})

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response(self._host.health())

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(await self._host.cluster_status())

    async def _watch(self, request: web.Request) -> web.Response:
        """The controller's view for the page; packed there, and not touched here."""
        headers = {"Content-Encoding": "deflate"}
        packed = await self._host.watch()
        return web.Response(body=packed, content_type="application/json", headers=headers)

    async def _admin(self, request: web.Request) -> web.Response:
        """What the controller answers to an operator, errors in the registry API's shape."""
        fields = await request.json()
        if not isinstance(fields, dict):
            raise InputError(400, "UNSUPPORTED", "expected a JSON object")
        status, facts = await self._host.admin(request.match_info["verb"], fields)
        return web.json_response(facts, status=status)

    async def _verify(self, request: web.Request) -> web.Response:
        digest = Digest.parse(str((await request.json())["digest"]))
        return web.json_response({"right": await self._host.verify(digest)})


async def _say_version(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[HEADER] = SAID


_Handler = Callable[[web.Request], Awaitable[web.Response]]


def _guarded(handler: _Handler) -> _Handler:
    async def guarded(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except PeerUnavailable as error:
            return _error(503, str(error))
        except (ValueError, TypeError, KeyError, InputError) as error:
            return _error(400, str(error))

    return guarded


def _error(status: int, message: str) -> web.Response:
    code = "UNAVAILABLE" if status == 503 else "UNSUPPORTED"
    body = error_body(code, message)
    return web.Response(body=body, status=status, content_type=CONTENT_TYPE)


def _ref(fields: Any) -> BlobRef:
    return BlobRef(
        str(fields["upstream"]), str(fields["repository"]), Digest.parse(str(fields["digest"]))
    )


def _range(body: Any) -> tuple[int, int | None]:
    start, stop = body.get("start", 0), body.get("stop")
    if not isinstance(start, int) or start < 0:
        raise InputError(400, "UNKNOWN", "start must be a number of bytes")
    if stop is not None and (not isinstance(stop, int) or stop < start):
        raise InputError(400, "UNKNOWN", "stop must be null or a number of bytes >= start")
    return start, stop


def _line(answer: ReadAnswer | PeerCommand) -> bytes:
    fields: dict[str, Any]
    match answer:
        case ReadReady(_, size, piece_size, source, public, upto):
            fields = {
                "event": "ready",
                "size": size,
                "piece_size": piece_size,
                "source": source,
                "public": public,
                "upto": upto,
            }
        case ReadProgress(_, upto):
            fields = {"event": "progress", "upto": upto}
        case ReadWaiting(_, on):
            fields = {"event": "waiting", "on": on}
        case ReadDone():
            fields = {"event": "done"}
        case ReadFailed(_, refusal):
            fields = {"event": "error", **_refusal(refusal)}
        case ReadPassthrough(_, reason):
            fields = {"event": "passthrough", "reason": reason}
        case _:
            raise TypeError(f"{type(answer).__name__} is no answer to a reader")
    return json.dumps(fields).encode() + b"\n"


def _refusal(refusal: Refusal) -> dict[str, Any]:
    return {
        "status": refusal.status,
        "code": refusal.code,
        "message": refusal.message,
        "headers": dict(refusal.headers),
        "body": refusal.body.decode("utf-8", "replace"),
    }
