"""The node's peer, behind its Unix socket: asking it to make bytes available.

The peer writes the bytes into the store, and the gateway reads them there; over the socket go only
offsets, as one JSON object per line. Everything that is wrong with the peer itself (no socket, no
answer, a connection that breaks, a full disk) is `PeerUnavailable`: the caller then goes elsewhere.
What the origin said through the peer is `OriginRefused` and its kin.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from passel.core.versions import HEADER, WIRE, said, understood
from passel.errors import (
    InputError,
    OriginNonsense,
    OriginRefused,
    OriginTimeout,
    PasselError,
    PeerUnavailable,
)
from passel.ids import BlobRef

log = logging.getLogger(__name__)

#: As many reads as the peer takes at once.
CONNECTIONS_MAX = 1024
CONNECT_S = 0.5
#: A peer whose loop turns answers its health question in far less.
PROBE_S = 0.3
#: How often a socket that went away, or a peer that is mute, is looked for.
RETRY_S = 0.05
#: The peer waits 25 s for the controller, which may wait 20 s for a registry.
ADMIN_S = 30.0
STATUS_S = 10.0
REVIVE_S = 0.5
_LOST = (aiohttp.ClientError, OSError, asyncio.TimeoutError)


class PeerPassesThrough(PeerUnavailable):
    """The peer is well and cannot keep this blob (its disk is full): the origin must be asked."""


class PeerStalled(PeerUnavailable):
    """The peer answers, and the bytes do not come."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the cluster knows about a blob; `ttl_s` is for how long `public` may be believed."""

    size: int | None
    public: bool
    ttl_s: float


@dataclass(slots=True)
class Heard:
    """What the peer says while it has nothing: whom it waits for (shard, peer or origin)."""

    waits_on: str | None = None


class Ensure:
    """One question to the peer, under way. Closing it takes the question back."""

    def __init__(self, response: aiohttp.ClientResponse, heard: Heard) -> None:
        self._response = response
        self._heard = heard
        self.size = 0
        self.source = "peer"
        self.public = False
        #: Bytes from the start of the question up to here are in the store and verified.
        self.upto = 0
        self.done = False
        self._next: asyncio.Task[dict[str, Any]] | None = None

    async def ready(self) -> None:
        """Wait for the first verified bytes. Raises what the module says."""
        event = await self._event()
        if event.get("event") == "done":
            raise PeerUnavailable("the peer ended a read before it began")
        try:
            self.size = _offset(event, "size")
            self.public = event.get("public") is True
        except (KeyError, TypeError, ValueError) as error:
            raise PeerUnavailable("the peer's first word makes no sense") from error
        source = event.get("source")
        self.source = source if source in ("local", "peer", "seed", "origin") else "peer"

    async def more(self, timeout_s: float) -> bool:
        """Wait for the next event (`upto` has grown, or `done` is set); False: none in time."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._event())
        # Not cancelled at the end of the time: half a line would be lost with it.
        finished, _ = await asyncio.wait({self._next}, timeout=timeout_s)
        if not finished:
            return False
        event = self._next.result()
        self._next = None
        if event.get("event") == "done":
            self.done = True
        return True

    async def _event(self) -> dict[str, Any]:
        """The next event that says something; raises for errors and for the end."""
        while True:
            try:
                line = await self._response.content.readline()
                event = json.loads(line) if line.endswith(b"\n") else None
            except (*_LOST, ValueError) as error:
                raise PeerUnavailable("the peer went away") from error
            if not isinstance(event, dict):
                raise PeerUnavailable("the peer went away")
            kind = event.get("event")
            if kind == "error":
                raise _error_of(event)
            if kind == "waiting":
                self._heard.waits_on = str(event.get("on"))
            if kind == "passthrough":
                raise PeerPassesThrough("the peer cannot keep it")
            if kind in ("ready", "progress"):
                try:
                    self.upto = _offset(event, "upto")
                except (KeyError, TypeError, ValueError) as error:
                    raise PeerUnavailable("the peer's word makes no sense") from error
            if kind in ("ready", "progress", "done"):
                return event

    def close(self) -> None:
        """Hang up: the peer stops working for this read alone."""
        if self._next is not None and not self._next.cancel() and not self._next.cancelled():
            self._next.exception()
        self._response.close()


class Door:
    """The peer's socket. It may be absent at any time, and another peer may own it later."""

    def __init__(self, socket: Path, wait_s: float) -> None:
        self._socket = socket
        self._wait_s = wait_s
        self._session: aiohttp.ClientSession | None = None
        #: When connecting first failed; None while it works. Nobody waits for a peer that has been
        #: away for longer than `wait_s` already.
        self._gone_since: float | None = None
        #: It takes connections and says nothing (stopped, or out of its mind).
        self._mute = False
        self._reviver: asyncio.Task[None] | None = None
        #: The wire version of a peer that cannot be talked to.
        self._stranger: int | None = None

    @property
    def is_up(self) -> bool:
        """Whether the peer answered when it was last asked."""
        return self._gone_since is None and not self._mute

    async def ensure(
        self,
        ref: BlobRef,
        start: int,
        stop: int | None,
        *,
        authorization: str | None,
        priority: str = "on-demand",
        patience_s: float,
    ) -> Ensure:
        """Ask for a range; returns when its first bytes are there.

        Raises PeerUnavailable `wait_s` from now, or `patience_s` if that is sooner or the peer
        shows that it is alive.
        """
        if self._mute:
            raise PeerUnavailable("the peer does not answer")
        question = {
            "upstream": ref.upstream,
            "repository": ref.repository,
            "digest": str(ref.digest),
            "start": start,
            "stop": stop,
            "priority": priority,
            "authorization": authorization,
        }
        loop = asyncio.get_running_loop()
        began = loop.time()
        wait_s = min(self._wait_s, patience_s)
        deadline = began + wait_s
        heard = Heard()
        task = loop.create_task(self._ask(question, deadline, heard))
        try:
            done, _ = await asyncio.wait({task}, timeout=wait_s)
            if done or heard.waits_on == "shard":
                # Without its shard the peer is as good as away.
                pass
            elif heard.waits_on is not None or await self.is_alive():
                rest = began + patience_s - loop.time()
                done, _ = await asyncio.wait({task}, timeout=max(0.0, rest))
            else:
                self._went_mute()
        except asyncio.CancelledError:
            if not task.cancel() and not task.exception():
                task.result().close()
            raise
        if not done:
            task.cancel()
            raise PeerStalled("the peer had no first byte in time")
        return task.result()

    async def _ask(self, question: dict[str, Any], deadline: float, heard: Heard) -> Ensure:
        loop = asyncio.get_running_loop()
        while True:
            ensure = None
            try:
                ensure = Ensure(await self._post("/v1/ensure", question), heard)
                self._gone_since = None
                await ensure.ready()
            except PeerPassesThrough:
                raise
            except PeerUnavailable:
                # No socket, or the peer died in between: it is restarted, and asked again.
                now = loop.time()
                if self._gone_since is None:
                    self._gone_since = now
                if now + RETRY_S > min(deadline, self._gone_since + self._wait_s):
                    raise
            except BaseException:
                if ensure is not None:
                    ensure.close()
                raise
            else:
                return ensure
            if ensure is not None:
                ensure.close()
            await asyncio.sleep(RETRY_S)

    async def _post(self, path: str, question: dict[str, Any]) -> aiohttp.ClientResponse:
        try:
            response = await self._client().post(f"http://peer{path}", json=question)
        except _LOST as error:
            raise PeerUnavailable("the peer's socket does not answer") from error
        self._check_version(response)
        if response.status != 200:
            response.close()
            raise PeerUnavailable(f"the peer answered {response.status}")
        return response

    def _check_version(self, response: aiohttp.ClientResponse) -> None:
        """Raises PeerUnavailable: then reads go to the origin until both are of one version."""
        wire, oldest = said(response.headers.get(HEADER))
        if understood(wire, oldest):
            self._stranger = None
            return
        if self._stranger != wire:
            self._stranger = wire
            text = "peer_of_another_version it speaks wire version %d, this gateway %d: %s"
            log.error(text, wire, WIRE, "restart both with the same passel")
        response.close()
        raise PeerUnavailable("this node's peer is of another version than its gateway")

    async def stat(self, ref: BlobRef, timeout_s: float) -> Known | None:
        """What the cluster knows, without asking the origin; None: it cannot be asked."""
        if not self.is_up and self._gone_since is None:
            return None
        query = {"upstream": ref.upstream, "repository": ref.repository, "digest": str(ref.digest)}
        try:
            answer = await asyncio.wait_for(self._get_json("/v1/stat", query), timeout_s)
            size = answer.get("size")
            if size is not None:
                size = _offset(answer, "size")
            return Known(size, answer.get("public") is True, float(answer.get("ttl") or 0.0))
        except (*_LOST, PeerUnavailable, KeyError, TypeError, ValueError):
            return None

    async def note_public(self, ref: BlobRef, ttl_s: float) -> None:
        """Tell the cluster that the origin serves a blob without credentials. Best effort."""
        body = {
            "upstream": ref.upstream,
            "repository": ref.repository,
            "digest": str(ref.digest),
            "ttl": ttl_s,
        }
        try:
            response = await asyncio.wait_for(self._post("/v1/public", body), PROBE_S)
            response.close()
        except (*_LOST, PeerUnavailable):
            log.debug("public_not_told upstream=%s", ref.upstream)

    async def watch(self, timeout_s: float) -> dict[str, Any]:
        """The cluster as the controller sees it, in the shape of `passel.telemetry.scene`.

        Raises PeerUnavailable with a sentence for people.
        """
        try:
            return await asyncio.wait_for(self._view(), timeout_s)
        except (*_LOST, ValueError) as error:
            raise PeerUnavailable("the peer of this node does not answer") from error

    async def _view(self) -> dict[str, Any]:
        async with self._client().get("http://peer/v1/watch") as response:
            if response.status == 503:
                raise PeerUnavailable("the controller does not answer")
            if response.status != 200:
                raise PeerUnavailable("the peer of this node is of another version")
            view = await response.json(content_type=None)
        if not isinstance(view, dict):
            raise PeerUnavailable("the peer's word makes no sense")
        return view

    async def _get_json(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        async with self._client().get(f"http://peer{path}", params=query) as response:
            self._check_version(response)
            if response.status != 200:
                raise PeerUnavailable(f"the peer answered {response.status}")
            answer = await response.json(content_type=None)
        if not isinstance(answer, dict):
            raise PeerUnavailable("the peer's word makes no sense")
        self._gone_since = None
        return answer

    async def admin(self, verb: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """What the cluster's controller answers: an HTTP status, and facts or errors.

        Raises PeerUnavailable.
        """
        try:
            async with self._client().post(
                f"http://peer/v1/admin/{verb}",
                json=fields,
                timeout=aiohttp.ClientTimeout(total=ADMIN_S, sock_connect=CONNECT_S),
            ) as response:
                self._check_version(response)
                answer = await response.json(content_type=None)
        except (*_LOST, ValueError) as error:
            raise PeerUnavailable("this node's peer does not answer") from error
        if not isinstance(answer, dict) or (response.status >= 400 and "errors" not in answer):
            raise PeerUnavailable("the cluster's controller does not answer")
        return response.status, answer

    async def cluster_status(self) -> dict[str, Any]:
        """The whole cluster as its controller sees it. Raises PeerUnavailable."""
        try:
            return await asyncio.wait_for(self._get_json("/v1/status"), STATUS_S)
        except (*_LOST, ValueError) as error:
            raise PeerUnavailable("this node's peer does not answer") from error

    async def is_alive(self) -> bool:
        """Whether the peer answers now."""
        try:
            await asyncio.wait_for(self._get_json("/v1/health"), PROBE_S)
        except (*_LOST, PeerUnavailable, ValueError):
            return False
        return True

    def _went_mute(self) -> None:
        if not self._mute:
            log.warning("peer_mute")
            self._mute = True
            self._reviver = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        # Nobody could set an event for us: the other side is another process.
        while not await self.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(REVIVE_S)
        self._mute = False
        log.info("peer_answers_again")

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self._socket), limit=CONNECTIONS_MAX),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def close(self) -> None:
        """Let go of all connections."""
        if self._reviver is not None:
            self._reviver.cancel()
        if self._session is not None:
            await self._session.close()


def _offset(event: dict[str, Any], name: str) -> int:
    value = event[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(name)
    return value


def _error_of(event: dict[str, Any]) -> PasselError:
    """An ``error`` event as the exception that it reports: the table in `replies`, reversed."""
    status, headers = event.get("status"), event.get("headers")
    if not isinstance(headers, dict):
        headers = {}
    text = str(event.get("message") or "")
    code = str(event.get("code") or "")
    if status == 416:
        return InputError(416, "SIZE_INVALID", "the range begins beyond the end of the blob")
    if isinstance(status, int) and 400 <= status < 500:
        clean = {str(k): str(v) for k, v in headers.items()}
        body = event.get("body")
        return OriginRefused(status, clean, body.encode() if isinstance(body, str) else b"")
    if status == 502:
        return OriginNonsense(text or code)
    if status == 504:
        return OriginTimeout(text or code)
    return PeerUnavailable("the peer cannot serve it")
