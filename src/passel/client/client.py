"""`Client`: get, open and status over a node's gateway; `AsyncClient`: without blocking."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from passel.client import admin, download, image
from passel.client.download import Got, Progress
from passel.client.exchange import READ_TIMEOUT_S, Exchange, to_gateway
from passel.client.image import GotImage
from passel.client.reading import RemoteFile
from passel.client.state import StateFolder, default_state, read_json
from passel.client.status import cluster_status, peer_status
from passel.client.targets import Target, parse_target
from passel.config import load
from passel.errors import InputError, LengthMismatch, PasselError
from passel.ids import Digest
from passel.oci.media import CANONICAL_ACCEPT

DEFAULT_GATEWAY = "http://127.0.0.1:65001"
BUFFER = 1024 * 1024
_PROBE_S = 2.0
_T = TypeVar("_T")


def _silent(done: int, total: int | None) -> None:
    """Nobody wants to see the progress."""


class Client:
    """Reads through one gateway.

    `config` is this host's configuration as a node of a Ray cluster; without one, `state` is the
    folder of a cluster that `passel up` started here. `gateway` is a base URL; left out, it is that
    of the node, or of the first one in the folder, else ``http://127.0.0.1:65001``. `timeout_s` is
    the longest time without a byte. Any thread may use a client, several at once too: each request
    has its own connection.
    """

    def __init__(
        self,
        gateway: str | None = None,
        *,
        state: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._state = StateFolder(Path(state).absolute() if state else default_state())
        self._store = load(config).store.path if config is not None else None
        self._is_chosen = gateway is not None
        self.gateway = (gateway or self._first_gateway() or DEFAULT_GATEWAY).rstrip("/")
        if not self.gateway.startswith(("http://", "https://")):
            raise InputError(400, "NAME_INVALID", "the gateway must be a URL: http://host:port")
        self._timeout_s = timeout_s

    def _first_gateway(self) -> str | None:
        notes = [folder.gateway_note for folder in self._state.nodes()]
        if self._store is not None:
            notes = [self._store.parent / "gateway.json"]
        for note in notes:
            found = read_json(note).get("gateway")
            if isinstance(found, str):
                return found
        return None

    def get(
        self,
        what: str | Target,
        output: str | os.PathLike[str] | BinaryIO,
        *,
        digest: str | Digest | None = None,
        resume: bool = True,
        progress: Progress | None = None,
    ) -> Got:
        """`output` (a path or a binary stream) holds the blob that `what` names, verified.

        `digest` is what it must have if `what` does not say it. An interrupted download is taken up
        where it broke off, now and by the next call. A path that is a pipe or a device is written
        into, like a stream. Raises DigestMismatch, RequestRefused,
        PeerUnavailable, StoreError, InputError.
        """
        target = parse_target(what) if isinstance(what, str) else what
        if target.is_image:
            text = "this names an image; expected one blob: <upstream>/<repository>@sha256:<digest>"
            raise InputError(400, "NAME_INVALID", text)
        expected = Digest.parse(digest) if isinstance(digest, str) else digest
        if expected is None:
            expected = target.digest
        ask = self._asker(target)
        shown = progress or _silent
        if isinstance(output, str | os.PathLike):
            path = Path(output)
            if download.is_special(path):
                return download.to_special(ask, path, expected, shown)
            return download.to_file(ask, path, expected, resume=resume, progress=shown)
        return download.to_stream(ask, output, expected, shown)

    def get_image(
        self, what: str | Target, folder: str | os.PathLike[str], progress: Progress | None = None
    ) -> GotImage:
        """`folder` is an OCI image layout that holds everything that the tag names, verified."""
        target = parse_target(what) if isinstance(what, str) else what
        return image.get_image(self, target, Path(folder), progress or _silent)

    def open(self, what: str | Target) -> io.BufferedReader:
        """A file-like object that reads ranges of the blob as they are asked for."""
        target = parse_target(what) if isinstance(what, str) else what
        with self._send("HEAD", target, {}) as exchange:
            length = exchange.answer.headers.get("Content-Length", "")
        if not length.isdigit():
            raise LengthMismatch("the gateway does not say how long the blob is")

        def ask(start: int, stop: int) -> Exchange:
            return self._send("GET", target, {"Range": f"bytes={start}-{stop - 1}"})

        return io.BufferedReader(RemoteFile(ask, int(length)), BUFFER)

    def manifest(self, target: Target, limit: int) -> tuple[bytes, str | None, str | None]:
        """A manifest's bytes, its media type, and the digest that the gateway announces."""
        with self._send("GET", target, {"Accept": CANONICAL_ACCEPT}) as exchange:
            headers = exchange.answer.headers
            body = exchange.read(limit)
        return body, headers.get("Content-Type"), headers.get("Docker-Content-Digest")

    def headers(self, target: Target) -> dict[str, str]:
        """The headers that the gateway answers HEAD with, names in lower case."""
        with self._send("HEAD", target, {"Accept": CANONICAL_ACCEPT}) as exchange:
            return {name.lower(): value for name, value in exchange.answer.headers.items()}

    def status(self) -> dict[str, Any]:
        """The cluster, in the shape of `passel status --json`."""
        return cluster_status(self._state) if self._store is None else peer_status(self._store)

    def preheat(
        self, what: str, *, to: str = "all", platform: str = "all", ttl_s: float | None = None
    ) -> dict[str, Any]:
        """A job brings an image or a blob to nodes; the job, as it is now.

        `to` is all, seeds, ``zone=<zone>`` or ``node=<node>``; `platform` picks one of an image:
        ``linux/amd64``. For `ttl_s` seconds it is pinned too. The same call again gives the same
        job. Raises InputError for what cannot be, RequestRefused, PeerUnavailable.
        """
        blobs = admin.blobs_of(self, parse_target(what), platform)
        return self.ask("submit", what=what, to=to, blobs=blobs, ttl_s=ttl_s)

    def schedule(
        self,
        what: str,
        *,
        every_s: float | None = None,
        at: str | None = None,
        to: str = "all",
        platform: str = "all",
        ttl_s: float | None = None,
    ) -> dict[str, Any]:
        """A preheat that comes again: every so many seconds from now on, or each day at ``HH:MM``.

        What a tag stands for is asked anew each time. Times are UTC. Raises as `preheat` does.
        """
        parse_target(what)
        rule = {"every_s": every_s, "at": at}
        return self.ask("schedule", what=what, to=to, platform=platform, ttl_s=ttl_s, **rule)

    def pin(
        self, what: str, *, platform: str = "all", ttl_s: float | None = None
    ) -> dict[str, Any]:
        """Eviction leaves an image or a blob alone for `ttl_s` seconds; None: until `unpin`.

        Nothing is fetched. Raises as `preheat` does.
        """
        if what.startswith("sha256:"):
            return self.ask("pin", what=what, ttl_s=ttl_s)
        blobs = admin.blobs_of(self, parse_target(what), platform)
        return self.ask("pin", what=what, blobs=blobs, ttl_s=ttl_s)

    def unpin(self, what: str) -> dict[str, Any]:
        """The pins of this name (what was pinned, the id of a pin, a digest) are gone."""
        return self.ask("unpin", what=what)

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        """What the controller answers to one of the verbs of `passel.actors.admin`."""
        doors = [folder.door for folder in self._state.nodes()]
        if self._store is not None:
            doors = [self._store / "peer.sock"]
        return admin.ask(doors, verb, fields)

    def _asker(self, target: Target) -> Callable[[int], Exchange]:
        def ask(start: int) -> Exchange:
            return self._send("GET", target, {"Range": f"bytes={start}-"} if start else {})

        return ask

    def _send(self, method: str, target: Target, headers: dict[str, str]) -> Exchange:
        base = self.gateway
        if target.base is not None and self._is_gateway(target.base):
            base = target.base
        elif target.base is not None or target.upstream is not None:
            headers = {**headers, "X-Passel-Registry": target.base or target.upstream or ""}
        exchange = to_gateway(base, self._timeout_s)
        try:
            exchange.send(method, target.path, headers)
        except PasselError:
            exchange.close()
            raise
        return exchange

    def _is_gateway(self, base: str) -> bool:
        """Whether the host of a URL is a gateway itself, and no registry behind one."""
        if base == self.gateway:
            return True
        if self._is_chosen or base.startswith("https://"):
            return False
        try:
            with to_gateway(base, _PROBE_S) as exchange:
                exchange.send("GET", "/server/ping", {})
                return "passel" in exchange.answer.headers.get("Via", "")
        except PasselError:
            return False


class AsyncClient:
    """`Client` for asyncio: every call runs in a thread, cancelling it ends it at the next byte."""

    def __init__(
        self,
        gateway: str | None = None,
        *,
        state: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._client = Client(gateway, state=state, config=config, timeout_s=timeout_s)

    @property
    def gateway(self) -> str:
        """The base URL of the gateway."""
        return self._client.gateway

    async def get(
        self,
        what: str | Target,
        output: str | os.PathLike[str] | BinaryIO,
        *,
        digest: str | Digest | None = None,
        resume: bool = True,
        progress: Progress | None = None,
    ) -> Got:
        """See `Client.get`. `progress` is called in another thread."""

        def work(shown: Progress) -> Got:
            return self._client.get(what, output, digest=digest, resume=resume, progress=shown)

        return await _cancellable(work, progress)

    async def get_image(
        self, what: str | Target, folder: str | os.PathLike[str], progress: Progress | None = None
    ) -> GotImage:
        """See `Client.get_image`. `progress` is called in another thread."""
        return await _cancellable(
            lambda shown: self._client.get_image(what, folder, shown), progress
        )

    async def open(self, what: str | Target) -> io.BufferedReader:
        """See `Client.open`; the object blocks, so read it in a thread."""
        return await asyncio.to_thread(self._client.open, what)

    async def preheat(
        self, what: str, *, to: str = "all", platform: str = "all", ttl_s: float | None = None
    ) -> dict[str, Any]:
        """See `Client.preheat`."""
        return await asyncio.to_thread(
            self._client.preheat, what, to=to, platform=platform, ttl_s=ttl_s
        )

    async def status(self) -> dict[str, Any]:
        """See `Client.status`."""
        return await asyncio.to_thread(self._client.status)


class _Cancelled(PasselError):
    """Whoever waited for the transfer is gone."""


async def _cancellable(work: Callable[[Progress], _T], progress: Progress | None) -> _T:
    is_over = False

    def shown(done: int, total: int | None) -> None:
        if is_over:
            raise _Cancelled("the download was cancelled")
        if progress is not None:
            progress(done, total)

    try:
        return await asyncio.to_thread(work, shown)
    finally:
        is_over = True
