"""What all requests of one gateway share: the store, the door, the origins, what was learned."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter, OrderedDict
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passel.config import host_port
from passel.errors import OriginUnavailable, PeerBusy
from passel.gateway.door import Door
from passel.gateway.grants import CHECK_S, Grants
from passel.gateway.outages import Outages
from passel.oci.media import CANONICAL_ACCEPT
from passel.store import StoreReader
from passel.telemetry.metrics import gateway_metrics
from passel.telemetry.recording import Recording

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from prometheus_client import CollectorRegistry

    from passel.config import Config
    from passel.gateway.connection import Server
    from passel.gateway.grants import Checked
    from passel.ids import BlobRef
    from passel.oci.manifests import Descriptor
    from passel.oci.names import V2Request
    from passel.transport.origin import OriginClient

log = logging.getLogger(__name__)

#: An image has some ten to a hundred descriptors, so this is the memory of a thousand images.
LEARNED_MAX = 100_000
#: Repositories in which one digest was seen; base layers are in many.
PLACES_MAX = 4


@dataclass(frozen=True, slots=True)
class Said:
    """What an origin said about a manifest."""

    size: int | None
    anonymous: bool


class Learned:
    """Descriptors of manifests that went by: where a digest is at home, and its size.

    Clients that can name no upstream (nydusd behind a host rewrite) ask for a digest that some
    manifest has named a moment ago. A hint only: reading still needs a grant.
    """

    def __init__(self) -> None:
        self._places: OrderedDict[str, dict[tuple[str, str], int]] = OrderedDict()

    def note(self, upstream: str, repository: str, descriptors: Iterable[Descriptor]) -> None:
        """Remember what a manifest of that repository names."""
        for descriptor in descriptors:
            places = self._places.setdefault(str(descriptor.digest), {})
            self._places.move_to_end(str(descriptor.digest))
            places.pop((upstream, repository), None)
            places[upstream, repository] = descriptor.size
            if len(places) > PLACES_MAX:
                places.pop(next(iter(places)))
        while len(self._places) > LEARNED_MAX:
            self._places.popitem(last=False)

    def upstream(self, request: V2Request) -> str | None:
        """Where the digest of a request is at home; the same repository first, then the latest."""
        if request.digest is None:
            return None
        places = self._places.get(str(request.digest), {})
        names = {request.repository, f"library/{request.repository}"}
        same = [upstream for upstream, repository in places if repository in names]
        return same[-1] if same else next((upstream for upstream, _ in reversed(places)), None)

    def size(self, ref: BlobRef) -> int | None:
        """The size that a manifest of this very repository gave for a digest."""
        return self._places.get(str(ref.digest), {}).get((ref.upstream, ref.repository))


class Context:
    """Made once per gateway; everything in it lives as long as the process."""

    def __init__(
        self,
        config: Config,
        registry: CollectorRegistry,
        make_origin: Callable[[str], OriginClient],
        *,
        cluster: str,
        node: str = "",
    ) -> None:
        self.config = config
        self.registry = registry
        self.cluster = cluster
        self.metrics = gateway_metrics(registry)
        self.reader = StoreReader(config.store.path)
        self.node = node
        self.recording = Recording(config.trace, config.store.path, f"gateway-{node or 'node'}")
        limits = config.gateway.limits
        self.door = Door(config.store.path / "peer.sock", limits.peer_wait.total_seconds())
        self.outages = Outages(self.metrics.origin_up)
        self.grants = Grants(config, self.door, self._check, self.outages, self.metrics)
        self.learned = Learned()
        self._misses: Counter[str] = Counter()
        self._direct = asyncio.Semaphore(limits.direct)
        self._direct_at: dict[str, asyncio.Semaphore] = {}
        self._make_origin = make_origin
        self._origins: dict[str, OriginClient] = {}
        #: Clients of former configurations; few, each change is an operator's.
        self._retired: list[OriginClient] = []
        #: ``host:port`` of the listeners, once they listen; IPv6 in brackets.
        self.addresses: list[str] = []
        self.servers: list[Server] = []

    def adopt(self, config: Config) -> None:
        """Another configuration counts from now on. What runs with an old client ends with it."""
        before, self.config = self.config, config
        for upstream in before.upstreams:
            if before.upstreams[upstream] != config.upstreams.get(upstream):
                client = self._origins.pop(upstream, None)
                if client is not None:
                    self._retired.append(client)
                self._direct_at.pop(upstream, None)
                self.grants.forget(upstream)
        self.grants.adopt(config)
        for server in self.servers:
            server.templates.clear()

    def learned_upstream(self, request: V2Request) -> str | None:
        """Where the digest of a request is at home, if that is an upstream still."""
        upstream = self.learned.upstream(request)
        return upstream if upstream in self.config.upstreams else None

    def origin(self, upstream: str) -> OriginClient:
        """The client for an upstream; one each, with its pool of connections."""
        client = self._origins.get(upstream)
        if client is None and upstream not in self.config.upstreams:
            raise OriginUnavailable(f"{upstream} is no upstream any more")
        if client is None:
            client = self._origins[upstream] = self._make_origin(upstream)
        return client

    @asynccontextmanager
    async def direct_slot(self, upstream: str, timeout_s: float) -> AsyncIterator[None]:
        """One of the few reads that may go to an origin past the peer. Raises PeerBusy."""
        here = self._direct_at.get(upstream)
        if here is None:
            # Some of the upstream's connections stay free for short questions: checks and tags.
            bound = max(1, self.config.upstreams[upstream].connections * 3 // 4)
            here = self._direct_at[upstream] = asyncio.Semaphore(bound)
        async with AsyncExitStack() as stack:
            for slots in (here, self._direct):
                try:
                    await asyncio.wait_for(slots.acquire(), timeout_s)
                except asyncio.TimeoutError:
                    text = "too many reads go to the origin directly"
                    raise PeerBusy(text, 1.0) from None
                stack.callback(slots.release)
            yield

    @contextmanager
    def miss_slot(self, client: str) -> Iterator[None]:
        """One read of what is not here, of the few that each client address may have.

        Raises PeerBusy.
        """
        if self._misses[client] >= self.config.gateway.limits.client_misses:
            raise PeerBusy("this client waits for too many blobs already", 1.0)
        self._misses[client] += 1
        try:
            yield
        finally:
            self._misses[client] -= 1
            if not self._misses[client]:
                del self._misses[client]

    async def _check(self, ref: BlobRef, authorization: str | None, kind: str) -> Checked:
        origin = self.origin(ref.upstream)
        if kind == "blobs":
            return await origin.stat_blob(ref, authorization=authorization)
        path = f"/v2/{ref.repository}/manifests/{ref.digest}"
        async with origin.open(
            "HEAD",
            path,
            headers={"Accept": CANONICAL_ACCEPT},
            authorization=authorization,
            deadline_s=CHECK_S,
        ) as answer:
            length = answer.headers.get("Content-Length", "")
            return Said(int(length) if length.isdecimal() else None, answer.anonymous)

    def is_own(self, authority: str) -> bool:
        """Whether ``host[:port]`` is one of our listeners, and so names no upstream."""
        host, port = _split(authority)
        for address in self.addresses:
            bound, bound_port = host_port(address)
            if port != bound_port:
                continue
            if host in (bound, "localhost"):
                return True
            if bound in ("0.0.0.0", "::") and _is_ip(host):
                return True
        return False

    def n_connections(self) -> int:
        """Clients connected to any listener."""
        return sum(server.n_connections for server in self.servers)

    def refresh_metrics(self) -> None:
        """Bring in what the connections counted for themselves."""
        for server in self.servers:
            blobs, n_bytes, manifests = server.take_counts()
            self.metrics.requests.labels("blob", "2xx").inc(blobs)
            self.metrics.requests.labels("manifest", "2xx").inc(manifests)
            self.metrics.bytes.labels("local").inc(n_bytes)
        self.metrics.connections.set(self.n_connections())
        self.metrics.peer_up.set(self.door.is_up)

    async def close(self) -> None:
        """Close connections and files."""
        await self.door.close()
        for client in (*self._origins.values(), *self._retired):
            await client.close()
        self.reader.close()


def _split(authority: str) -> tuple[str, int]:
    host, separator, port = authority.rpartition(":")
    if not separator or not port.isdigit():
        return authority.strip("[]"), 80
    return host.strip("[]"), int(port)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
