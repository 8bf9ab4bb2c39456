"""The gateway as a process: listeners up, a note of where they are, down without breaking answers.

It needs nothing but its configuration to start: no peer, no store, no origin. The note
(``gateway.json`` beside the store) names the ports that the kernel chose; a gateway that is started
again tries those first, because clients keep the address that they were configured with.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import json
import logging
import os
import random
import resource
import secrets
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from passel.config import host_port
from passel.config.live import applied_path, read_applied, with_applied
from passel.errors import PasselError
from passel.gateway.api import Api
from passel.gateway.connection import Server
from passel.gateway.context import Context
from passel.gateway.manifestcache import ManifestCache
from passel.gateway.routes import Routes, Services
from passel.store import fileio
from passel.telemetry import logs
from passel.transport.origin import OriginClient

if TYPE_CHECKING:
    from passel.config import Config

log = logging.getLogger(__name__)

#: Longer than clients keep idle connections (Go 30 to 90 s, reqwest 90 s): who closes first loses
#: a race.
IDLE_S = 120.0
#: A client that takes no byte for this long is gone.
STALL_S = 60.0
SWEEP_S = 1.0
#: How long running answers may go on after SIGTERM.
GRACE_S = 5.0
BACKLOG = 1024


class ListenError(PasselError):
    """An address cannot be listened on; the message is one sentence for the user."""


class Gateway:
    """All listeners of one node. `start` it, `stop` it, once each."""

    def __init__(self, config: Config, *, node: str | None = None) -> None:
        self._own = config
        #: Of the file that the peer writes: when it was looked at last, it was this one.
        self._applied_stamp = _stamp(applied_path(config))
        applied = read_applied(applied_path(config))
        config = self._config = with_applied(config, applied)
        self._version = 0 if applied is None else applied.version
        self._node = node
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        cluster = config.cluster or f"passel-{secrets.token_hex(4)}"
        self.context = Context(
            config,
            registry,
            lambda key: self._make_origin(key, cluster),
            cluster=cluster,
            node=node or "",
        )
        cache = ManifestCache(config.store.path.parent / "manifests")
        self._services = Services(self.context, cache)
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._recorder: asyncio.Task[None] | None = None
        self.note: dict[str, Any] = {}
        self._lock: IO[bytes] | None = None

    def _make_origin(self, key: str, cluster: str) -> OriginClient:
        rng = random.Random(secrets.randbits(64))
        return OriginClient(key, self._config.upstreams[key], cluster=cluster, rng=rng)

    @property
    def note_path(self) -> Path:
        """Where the note about the listeners is written."""
        return self._config.store.path.parent / "gateway.json"

    async def start(self) -> None:
        """Listen everywhere and write the note, or listen nowhere and raise ListenError."""
        self._lock = self._take_lock()
        settings = self._config.gateway
        before = self._ports_before()
        wanted: list[tuple[str, str, str | None]] = [
            *(("listen", address, None) for address in settings.listen),
            *(("dedicated", address, upstream) for address, upstream in settings.dedicated.items()),
            *(("health", address, None) for address in settings.health),
        ]
        sockets: list[socket.socket] = []
        try:
            for kind, address, _ in wanted:
                sockets.append(_bind(address, before.get(f"{kind} {address}")))
        except ListenError:
            for each in sockets:
                each.close()
            self._release_lock()
            raise
        bound: dict[str, str] = {}
        for (kind, address, upstream), sock in zip(wanted, sockets, strict=True):
            bound[f"{kind} {address}"] = _address_of(sock)
            await self._listen(sock, upstream, kind)
        self.context.addresses = list(bound.values())
        loop = asyncio.get_running_loop()
        self._sweeper = loop.create_task(self._sweep())
        self._recorder = loop.create_task(self.context.recording.run())
        self._write_note(bound)

    def _take_lock(self) -> IO[bytes] | None:
        """This is the node's only gateway, or ListenError.

        Whoever starts a node and its peer both start a gateway when they find none, and a slow one
        looks like none. A second one would take other ports and tell clients of those.
        """
        path = self.note_path.with_name("gateway.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError as error:
            # A disk that cannot be written must not keep reads from being served.
            log.warning("gateway_not_locked reason=%s", error.strerror)
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ListenError(f"passel gateway: another gateway has {path}") from error
        return file

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _listen(self, sock: socket.socket, upstream: str | None, kind: str) -> None:
        limits = self._config.gateway.limits
        has_api = kind == "health" and self._config.gateway.api.enabled
        server = Server(
            Routes(
                self._services,
                upstream,
                api=Api(self.context) if has_api else None,
                shows_page=kind == "health" and self._config.gateway.ui,
            ),
            header_bytes=int(limits.header_bytes),
            is_full=self._is_full,
            requests_max=limits.requests_per_connection,
        )
        self.context.servers.append(server)
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_server(server, sock=sock, backlog=BACKLOG))

    def _is_full(self) -> bool:
        return self.context.n_connections() > self._config.gateway.limits.connections

    def _look_for_config(self) -> None:
        """Go by what was applied to the cluster, if the node's peer has written something new."""
        stamp = _stamp(applied_path(self._own))
        if stamp == self._applied_stamp:
            return
        self._applied_stamp = stamp
        applied = read_applied(applied_path(self._own))
        config = self._config = with_applied(self._own, applied)
        self._version = 0 if applied is None else applied.version
        logs.setup(config.logging.level)
        self.context.adopt(config)
        _warn_of_open(config)
        for server in self.context.servers:
            server.requests_max = config.gateway.limits.requests_per_connection
        self.note["config_version"] = self._version
        self._publish_note()
        log.info("config_taken version=%d", self._version)

    def _ports_before(self) -> dict[str, int]:
        """The ports of this node's last gateway, where the configuration leaves the choice open."""
        try:
            note = json.loads(fileio.read_small(self.note_path, 64 * 1024))
            return {str(k): host_port(str(v))[1] for k, v in note["bound"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write_note(self, bound: dict[str, str]) -> None:
        def first(kind: str) -> str | None:
            found = [actual for name, actual in bound.items() if name.startswith(f"{kind} ")]
            return f"http://{_reachable(found[0])}" if found else None

        dedicated = {
            f"http://{_reachable(bound[f'dedicated {address}'])}": upstream
            for address, upstream in self._config.gateway.dedicated.items()
        }
        self.note = {
            "pid": os.getpid(),
            "node": self._node,
            "gateway": first("listen"),
            "health": first("health") or first("listen"),
            "dedicated": dedicated,
            "store": str(self._config.store.path),
            "bound": bound,
            "config_version": self._version,
        }
        self._publish_note()

    def _publish_note(self) -> None:
        try:
            self.note_path.parent.mkdir(parents=True, exist_ok=True)
            fileio.publish(self.note_path, json.dumps(self.note, indent=1).encode() + b"\n")
        except OSError as error:
            # A full disk must not keep reads from being served; `status` then asks the ports it
            # knows.
            log.warning("note_not_written reason=%s", error.strerror)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._look_for_config()
            header_s = self._config.gateway.limits.header_timeout.total_seconds()
            for server in self.context.servers:
                server.sweep(IDLE_S, header_s, STALL_S)
            self.context.reader.sweep()

    async def stop(self) -> None:
        """Take no more connections, let running answers finish for `GRACE_S`, close everything."""
        for listener in self._listeners:
            listener.close()
        # From here on the next gateway may start: it finds the ports free, and this note.
        self.note["pid"] = None
        self._publish_note()
        self._release_lock()
        await self._services.page.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GRACE_S
        while sum(server.retire() for server in self.context.servers):
            if loop.time() > deadline:
                break
            await asyncio.sleep(0.02)
        for task in (self._sweeper, self._recorder):
            if task is not None:
                task.cancel()
        for server in self.context.servers:
            server.abort_all()
        await self.context.close()


async def run(config: Config, *, node: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises ListenError."""
    _prepare_process()
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    gateway = Gateway(config, node=node)
    try:
        await gateway.start()
    except ListenError:
        await gateway.context.close()
        raise
    _warn_of_open(gateway.context.config)
    log.info("gateway_listens addresses=%s", ",".join(gateway.context.addresses))
    # What exists now lives as long as the process: not worth looking at in each collection.
    gc.collect()
    gc.freeze()
    await stopped.wait()
    log.info("gateway_stops")
    await gateway.stop()


def _prepare_process() -> None:
    """As many open files as allowed, and no core dump: credentials live in this memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _warn_of_open(config: Config) -> None:
    for key, upstream in config.upstreams.items():
        if upstream.read_policy == "open" or upstream.auth == "static":
            log.warning("upstream_open_to_all_clients upstream=%s", key)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Another one for each content of a file that is replaced as a whole."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _bind(address: str, port_before: int | None) -> socket.socket:
    """A bound socket. Port 0: the port of the last time if it is free, else any."""
    host, port = host_port(address)
    ports = [port_before, 0] if port == 0 and port_before else [port]
    error: OSError | None = None
    for each in ports:
        try:
            return _bind_to(host, each or 0)
        except OSError as problem:
            error = problem
    assert error is not None
    if error.errno == errno.EADDRINUSE:
        reason = "another program listens there already"
    else:
        reason = (error.strerror or str(error)).lower()
    raise ListenError(f"passel gateway: cannot listen on {address}: {reason}") from error


def _bind_to(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, where = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        # Here already: two programs may bind the same port, the second one fails at listen.
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reachable(address: str) -> str:
    """An address that a client on this node can use."""
    host, _, port = address.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"
