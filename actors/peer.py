"""The actor of a node: events into the `PeerMachine`, its commands carried out. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typing_extensions import assert_never

from passel._version import __version__
from passel.actors.certifying import contexts
from passel.actors.door import Door, ReadAnswer, Reader
from passel.actors.duties import BUG, Duties
from passel.actors.fetching import Fetching, read_piece
from passel.actors.handles import ControllerHandle, own_address
from passel.actors.keeper import GatewayKeeper, read_announcement
from passel.actors.links import ShardLink
from passel.actors.metrics import GatewayMetrics, Publisher
from passel.actors.pinning import read_pins
from passel.actors.preheating import Preheating
from passel.actors.recording import PeerRecording
from passel.actors.rotating import read_ring
from passel.actors.scrubbing import Scrubbing
from passel.actors.serving import Serving
from passel.actors.standing import Standing
from passel.actors.words import PeerSpec, peer_limits
from passel.config.live import Applied
from passel.config.load import load
from passel.config.sections import Config
from passel.config.units import host_port
from passel.core import rendezvous
from passel.core.copies import Rank
from passel.core.jobs import Held
from passel.core.messages import (
    BlobFound,
    BlobLost,
    CancelAttempt,
    Confirm,
    DropPartial,
    FetchPiece,
    FetchSpan,
    HashPiece,
    OpenPartial,
    PeerCommand,
    PeerEvent,
    PeerInfo,
    PieceHashed,
    PieceUnsaid,
    Promote,
    Promoted,
    PromotionFailed,
    ReadDone,
    ReadEnded,
    ReadFailed,
    ReadPassthrough,
    ReadProgress,
    ReadReady,
    ReadStarted,
    ReadWaiting,
    SeenPublic,
    ShardMessage,
    ShardSaid,
    StoreFull,
    StoreRecovered,
    Tell,
)
from passel.core.peer import PeerMachine
from passel.core.pins import Pinned
from passel.core.rotation import Ring
from passel.core.versions import WIRE
from passel.errors import (
    ContentError,
    NoSpace,
    OriginUnavailable,
    PasselError,
    StoreError,
    StoreLocked,
)
from passel.ids import BlobId, BlobRef, Digest
from passel.store.partial import PartialBlob
from passel.store.store import Store
from passel.telemetry import logs
from passel.telemetry.recording import Recording
from passel.telemetry.scene import Glance
from passel.telemetry.series import Measure, gateway_measures, local_bytes, peer_measures
from passel.transport.auth import ClusterAuth
from passel.transport.origin import OriginClient
from passel.transport.piece_client import PieceClient
from passel.transport.piece_server import PieceServer
from passel.transport.wire import format_address

log = logging.getLogger(__name__)

#: A predecessor that is being ended still holds the store's lock for a moment.
LOCK_PATIENCE_S = 10.0
START_AGAIN_S = 1.0
STAT_TIMEOUT_S = 1.0
STATUS_TIMEOUT_S = 5.0
#: The controller may have to ask a registry what an image is made of.
ADMIN_TIMEOUT_S = 25.0
#: So much is verified and not hashed towards the whole digest: some milliseconds of a thread.
AHEAD_BYTES = 8 * 1024 * 1024


class Peer:
    """The peer of one node. Its disk is the truth: a restarted peer recovers from it.

    All methods are idempotent; a caller that gets no answer may say the same again.
    """

    # Ray awaits the constructor of an async actor.
    async def __init__(self, spec: PeerSpec) -> None:  # type: ignore[misc]
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        path = os.environ.get("PASSEL_CONFIG")
        self._config_path = Path(path) if path else None
        self._standing = Standing(load(self._config_path) if self._config_path else spec.config)
        await self._standing.take_up()
        self._config = self._standing.config
        logs.setup(self._config.logging.level)
        self._duties = Duties(log)
        try:
            self._store = await self._open_store()
        except StoreError as error:
            # Ray buries an actor whose constructor raises; one whose process ends it starts again.
            log.critical("store_unusable path=%s why=%s", self._config.store.path, error)
            await asyncio.sleep(START_AGAIN_S)
            os._exit(BUG)
        self._store.quotas = quotas(self._config)
        self._serving = Serving(self._store)
        self._hashing_ahead: set[BlobId] = set()
        self._pinned = await self._read_pins()
        self._ring = await self._read_ring()
        self._auth = ClusterAuth(*self._ring.secrets)
        config = self._config
        server_tls, client_tls = contexts(spec.certificate, config.store.path)
        # One thread more per download slot than can be busy: long polls must not starve bulk.
        self._pieces = PieceClient(
            self._auth,
            threads=config.peer.download_slots + 4,
            connections_per_peer=config.peer.per_parent,
            tls=client_tls,
        )
        self._origins = Origins(config, spec.cluster)
        self._server = PieceServer(
            self._serving, self._auth, config.peer.upload_slots, tls=server_tls
        )
        info = await self._listen()
        self._machine = PeerMachine(info, peer_limits(config), spec.config.scheduler.shards)
        place = spec.place
        about = {"peer": spec.peer, "node": place.node, "zone": place.zone}
        recording = Recording(config.trace, config.store.path, f"peer-{place.node}", about)
        self._duties.start(recording.run())
        self._fetching = Fetching(
            self._store,
            self._pieces,
            self._origins,
            self._duties,
            self._step,
            PeerRecording(recording, place, self._machine.parents),
        )
        self._links = [
            ShardLink(shard, spec.peer, info.incarnation, self._step)
            for shard in range(spec.config.scheduler.shards)
        ]
        self._readers: dict[int, Reader] = {}
        self._next_read = 1
        self._n_evicted = 0
        self._gateway_metrics = GatewayMetrics()
        self._local_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._controller = ControllerHandle()
        self._preheating = Preheating(self, self._machine, self._duties)
        self._scrubbing = Scrubbing(
            self._store,
            config.store.scrub.total_seconds(),
            random.Random(secrets.randbits(64)),
            lambda: bool(self._readers) or self._fetching.n_running > 0,
            self._forget_blob,
        )
        await self._begin()

    def __repr__(self) -> str:
        # Ray asks once, after the constructor, and shows that for the actor's life: no counts.
        place = self._spec.place
        zone = f" in zone {place.zone}" if place.zone else ""
        return f"{type(self).__name__}({place.node}{zone})"

    # --- start ----------------------------------------------------------------------------------

    async def _open_store(self) -> Store:
        store = self._config.store
        deadline = self._loop.time() + LOCK_PATIENCE_S
        while True:
            try:
                return await asyncio.to_thread(
                    Store.open, store.path, int(store.capacity), int(store.reserve)
                )
            except StoreLocked:
                if self._loop.time() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def _read_ring(self) -> Ring:
        """The secrets that count now; what Ray keeps for restarts would be those of the start."""
        deadline = self._loop.time() + LOCK_PATIENCE_S
        while True:
            ring = await asyncio.to_thread(read_ring)
            if ring is not None:
                return ring
            if self._loop.time() > deadline:
                log.critical("no_secret the cluster has none written down")
                os._exit(BUG)
            await asyncio.sleep(0.1)

    async def _read_pins(self) -> Pinned:
        """What was pinned before this life began. The controller tells what comes later."""
        pins = await asyncio.to_thread(read_pins)
        return Pinned(0, frozenset(digest for pin in pins for digest in pin.digests))

    async def _listen(self) -> PeerInfo:
        host, port = host_port(self._config.peer.listen)
        bound = await self._server.start(host, port)
        if host in ("0.0.0.0", "::"):
            host = own_address()
        spec, place = self._spec, self._spec.place
        return PeerInfo(
            spec.peer,
            place.node,
            place.zone,
            spec.role,
            format_address(host, bound),
            time.time_ns() // 1_000_000,
            self._config.peer.upload_slots,
            self._config.peer.download_slots,
            place.rack,
            place.region,
        )

    async def _begin(self) -> None:
        partials = await asyncio.to_thread(self._store.recover)
        self._perform(self._machine.start())
        for digest in self._store.completes():
            self._say_complete(digest)
        for partial in partials:
            self._serving.know(partial.key)
            digests = b"".join(
                partial.piece_digest(piece) or bytes(32) for piece in range(partial.n_pieces)
            )
            self._step(
                BlobFound(
                    partial.key.digest,
                    partial.key.upstream,
                    partial.size,
                    partial.piece_size,
                    partial.have,
                    digests,
                )
            )
        self._step(StoreRecovered())
        for link in self._links:
            self._duties.start(link.run())
        self._door = Door(self, self._config.store.path / "peer.sock")
        await self._door.open()
        keeper = GatewayKeeper(self._config, self._config_path, self._spec.place.node)
        self._duties.start(keeper.run())
        self._duties.start(self._scrubbing.run())
        place = self._spec.place
        labels = {"node": place.node, "zone": place.zone, "role": self._spec.role.value}
        self._duties.start(Publisher(labels).run(self._measures))
        log.info(
            "peer_started node=%s zone=%s role=%s address=%s complete=%d partial=%d",
            self._spec.place.node,
            self._spec.place.zone,
            self._spec.role.value,
            self._machine.info.address,
            len(self._machine.complete),
            len(partials),
        )

    def _say_complete(self, digest: Digest) -> None:
        blob = self._store.complete(digest)
        if blob is not None:
            have = (1 << blob.n_pieces) - 1
            digests = b"".join(blob.piece_digests)
            self._serving.know_complete(digest, self._config.upstreams)
            self._step(BlobFound(digest, None, blob.size, blob.piece_size, have, digests))

    # --- called by other actors -----------------------------------------------------------------

    async def deliver(
        self, shard: int, incarnation: int, messages: tuple[ShardMessage, ...]
    ) -> None:
        """A shard says something. Idempotent: messages are absolute, or carry attempt tokens."""
        if self._links[shard].heard(incarnation):
            for message in messages:
                self._step(ShardSaid(message))

    async def take_ring(self, ring: Ring) -> None:
        """Sign and verify with these secrets from now on. Idempotent."""
        if ring.generation > self._ring.generation:  # calls may overtake each other
            self._ring = ring
            self._auth.replace(*ring.secrets)

    async def take_pins(self, pinned: Pinned) -> None:
        """Keep these blobs from now on. Idempotent."""
        if pinned.generation > self._pinned.generation:
            self._pinned = pinned

    async def check_config(self, text: str) -> list[str]:
        """What hinders this node from going by a configuration; nothing, if it can."""
        return self._standing.check(text)

    async def take_config(self, applied: Applied) -> None:
        """Go by this configuration from now on, and have the gateway do so. Idempotent."""
        if not self._standing.take(applied):
            return
        config = self._config = self._standing.config
        logs.setup(config.logging.level)
        self._store.capacity_bytes = int(config.store.capacity)
        self._store.reserve_bytes = int(config.store.reserve)
        self._store.quotas = quotas(config)
        self._origins.adopt(config)
        for digest in self._machine.complete:
            self._serving.know_complete(digest, config.upstreams)

    async def status(self) -> dict[str, Any]:
        """Facts for `passel status`."""
        fetching, server = self._fetching, self._server
        announced = read_announcement(self._store.path) or {}
        return {
            **self.health(),
            "gateway": announced.get("gateway"),
            "health": announced.get("health"),
            "gateway_pid": announced.get("pid"),
            "passel": __version__,
            "wire": WIRE,
            "trouble": next((link.refused for link in self._links if link.refused), ""),
            "version": self._standing.version,
            "gateway_version": announced.get("config_version", 0),
            "store": str(self._store.path),
            "bytes": dict(fetching.bytes_from),
            "cross_zone_bytes": fetching.cross_zone_bytes,
            "uploaded_bytes": server.bytes_sent,
            "origin_requests": fetching.n_origin_requests,
            "complete": len(self._machine.complete),
            "blobs": len(self._machine.blobs),
            "used_bytes": self._store.used_bytes(),
            "calls": sum(link.n_calls for link in self._links),
            "capacity_bytes": self._store.capacity_bytes,
            "evicted_blobs": self._n_evicted,
            "origin_errors": fetching.n_origin_errors,
            "scrubbed_bytes": self._scrubbing.read_bytes,
            "damaged_blobs": self._scrubbing.n_damaged,
            "reads": len(self._readers),
            "slots": {
                "upload": self._config.peer.upload_slots,
                "download": self._config.peer.download_slots,
            },
            "slots_used": {"upload": server.n_uploads, "download": fetching.n_running},
            "local_bytes": self._local_bytes,
        }

    async def glance(self) -> Glance:
        """For the page: cheap, and asked of every peer as long as somebody watches."""
        fetching = self._fetching
        came = fetching.bytes_from
        return Glance(
            (self._local_bytes, came["peer"], came["seed"], came["origin"]),
            self._server.bytes_sent,
            fetching.cross_zone_bytes,
            self._store.used_bytes(),
            len(self._machine.complete),
            fetching.flows.recent(time.monotonic()),
        )

    async def _measures(self) -> Iterable[Measure]:
        announced = read_announcement(self._store.path) or {}
        text = await self._gateway_metrics.read(announced.get("health"))
        of_gateway = list(gateway_measures(text))
        if of_gateway:
            self._local_bytes = local_bytes(of_gateway)
        return [*peer_measures(await self.status()), *of_gateway]

    # --- called by the door ---------------------------------------------------------------------

    def begin_read(
        self, ref: BlobRef, start: int, stop: int | None, authorization: str | None
    ) -> tuple[int, Reader]:
        number, reader = self._next_read, Reader()
        self._next_read += 1
        self._readers[number] = reader
        self._serving.know(ref.key)
        if authorization is not None:
            self._serving.keep_credentials(ref.id, authorization)
        self._step(ReadStarted(number, ref, start, stop, authorization is not None))
        return number, reader

    def end_read(self, read: int) -> None:
        if self._readers.pop(read, None) is not None:
            self._step(ReadEnded(read))

    async def stat(self, ref: BlobRef) -> tuple[int | None, float]:
        shard = rendezvous.shard_of(str(ref.digest), len(self._links))
        return await self._links[shard].handle.stat(ref, STAT_TIMEOUT_S)

    def seen_public(self, ref: BlobRef, ttl_s: float) -> None:
        self._step(SeenPublic(ref, ttl_s))

    def health(self) -> dict[str, Any]:
        place = self._spec.place
        return {
            "peer": self._spec.peer,
            "node": place.node,
            "zone": place.zone,
            "role": self._spec.role.value,
            "pid": os.getpid(),
            "raylet": os.getppid(),
            "address": self._machine.info.address,
        }

    async def cluster_status(self) -> dict[str, Any]:
        return await self._controller.status(STATUS_TIMEOUT_S)

    async def watch(self) -> bytes:
        return await self._controller.watch(STATUS_TIMEOUT_S)

    async def verify(self, digest: Digest) -> bool:
        """Whether a complete blob is right; if not, it is in quarantine now."""
        return await self._scrubbing.verify(digest)

    async def admin(self, verb: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return await self._controller.admin(verb, fields, ADMIN_TIMEOUT_S)

    # --- the machine ----------------------------------------------------------------------------

    def _step(self, event: PeerEvent) -> None:
        # Synchronous on purpose: no other code of this actor runs between the event and its
        # commands, so the machine needs no lock.
        self._perform(self._machine.handle(event, self._loop.time()))

    def _on_timer(self) -> None:
        self._timer = None
        self._perform(self._machine.handle_timer(self._loop.time()))

    def _later(self, event: PeerEvent) -> None:
        """An event that came up while commands are being carried out: after them."""
        self._loop.call_soon(self._step, event)

    def _perform(self, commands: list[PeerCommand]) -> None:
        for command in commands:
            self._carry_out(command)
        at = self._machine.next_timer()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer = self._loop.call_at(at, self._on_timer)

    def _carry_out(self, command: PeerCommand) -> None:
        match command:
            case Tell(shard, item, hurry):
                self._links[shard].tell(item, hurry)
            case FetchPiece():
                self._fetching.piece(command)
            case FetchSpan():
                self._fetching.span(command)
            case CancelAttempt(attempt):
                self._fetching.cancel(attempt)
            case Confirm(blob, piece, digest):
                self._confirm(blob, piece, digest)
            case OpenPartial():
                self._open_partial(command)
            case HashPiece(blob, piece):
                self._duties.start(self._hash_piece(blob, piece))
            case Promote(blob):
                self._duties.start(self._promote(blob))
            case DropPartial(blob):
                self._store.discard(blob)
            case (
                ReadReady()
                | ReadProgress()
                | ReadWaiting()
                | ReadDone()
                | ReadFailed()
                | ReadPassthrough()
            ):
                self._answer(command)
            case _:
                assert_never(command)

    def _answer(self, answer: ReadAnswer) -> None:
        reader = self._readers.get(answer.read)
        if reader is not None:
            reader.put(answer)

    def _open_partial(self, command: OpenPartial) -> None:
        self._serving.know(command.key)
        try:
            self._store.create(command.key, command.size, command.piece_size, self._rank)
        except NoSpace as error:
            log.warning("store_full blob=%s why=%s; reads pass through", command.key.digest, error)
            self._later(StoreFull(command.key.id))
        except StoreError as error:
            log.error("store_failed blob=%s why=%s", command.key.digest, error)
            self._later(StoreFull(command.key.id))
        finally:
            # Blobs may have gone in vain: a reader keeps their bytes on the disk.
            self._note_evictions()

    def _rank(self, digest: Digest) -> Rank:
        return self._machine.last_copies.rank(digest, self._pinned.digests)

    def _note_evictions(self) -> None:
        """Making room may have cost complete blobs: other peers must not be sent here for them."""
        for digest in set(self._machine.complete) - set(self._store.completes()):
            log.info("blob_evicted digest=%s", digest)
            self._n_evicted += 1
            self._serving.forget(digest)
            self._later(BlobLost(digest))

    def _confirm(self, blob: BlobId, piece: int, digest: bytes) -> None:
        partial = self._store.partial(blob)
        if partial is None:
            return
        try:
            partial.confirm(piece, digest)
        except PasselError as error:
            log.warning("piece_unsaid blob=%s piece=%d why=%s", blob, piece, error)
            self._later(PieceUnsaid(blob, piece))
            return
        self._serving.arrived(blob, piece)
        if partial.unhashed_bytes >= AHEAD_BYTES and blob not in self._hashing_ahead:
            self._hashing_ahead.add(blob)
            self._duties.start(self._hash_ahead(blob, partial))

    async def _hash_ahead(self, blob: BlobId, partial: PartialBlob) -> None:
        """What is hashed while the rest comes in, nobody waits for at the end."""
        try:
            await asyncio.to_thread(partial.hash_ahead)
        except PasselError as error:
            log.warning("not_hashed_ahead blob=%s why=%s", blob, error)
        finally:
            self._hashing_ahead.discard(blob)

    async def _hash_piece(self, blob: BlobId, piece: int) -> None:
        partial = self._store.partial(blob)
        if partial is not None:
            digest = await asyncio.to_thread(read_piece, partial, piece)
            self._step(PieceHashed(blob, piece, digest))

    async def _promote(self, blob: BlobId) -> None:
        partial = self._store.partial(blob)
        if partial is None:
            self._step(PromotionFailed(blob, corrupt=False))
            return
        try:
            complete = await asyncio.to_thread(partial.promote)
        except ContentError as error:
            log.error("blob_corrupt blob=%s what=%s", blob, error)
            self._step(PromotionFailed(blob, corrupt=True))
            return
        except PasselError as error:
            log.error("blob_not_promoted blob=%s why=%s", blob, error)
            self._step(PromotionFailed(blob, corrupt=False))
            return
        self._serving.drop_credentials(blob)
        self._serving.know_complete(complete.digest, self._config.upstreams)
        log.info("blob_complete digest=%s bytes=%d", complete.digest, complete.size)
        self._step(Promoted(blob, b"".join(complete.piece_digests)))
        self._note_evictions()  # it may have been the one to go before this was known

    async def hold(self, refs: tuple[BlobRef, ...]) -> tuple[Held, ...]:
        """Be getting these blobs, and say how much of each is here. Idempotent."""
        return self._preheating.hold(refs, self._loop.time())

    async def take_over(self, blobs: tuple[tuple[BlobRef, int], ...]) -> tuple[Held, ...]:
        """As `hold`, of blobs that another node is to hand over: only as far as there is room.

        No other blob's last copy and nothing that is pinned goes for them. Idempotent.
        """
        spare_bytes = self._store.spare_bytes(self._rank)
        return self._preheating.take_over(blobs, spare_bytes, self._loop.time())

    async def upstreams(self, digests: tuple[Digest, ...]) -> tuple[str | None, ...]:
        """Which upstream each of these complete blobs came from, if that is known."""
        return tuple(self._store.upstream_of(digest) for digest in digests)

    async def remove(self, digest: str) -> bool:
        """Throw a complete blob away. Idempotent."""
        parsed = Digest.parse(digest)
        is_gone = await asyncio.to_thread(self._store.remove, parsed)
        self._forget_blob(parsed)
        return is_gone

    def _forget_blob(self, digest: Digest) -> None:
        self._serving.forget(digest)
        self._step(BlobLost(digest))


def quotas(config: Config) -> dict[str, int]:
    """Bytes of the store, for the upstreams that may not have all of it."""
    upstreams = config.upstreams.items()
    return {key: int(each.quota) for key, each in upstreams if each.quota is not None}


class Origins:
    """The origin clients of one process, made at first use: the table of upstreams is closed."""

    def __init__(self, config: Config, cluster: str) -> None:
        self._config = config
        self._cluster = cluster
        self._clients: dict[str, OriginClient] = {}
        #: Of former tables; few, each change is an operator's.
        self._retired: list[OriginClient] = []

    def adopt(self, config: Config) -> None:
        """Another table counts from now on; what runs with an old client ends with it."""
        for upstream in list(self._clients):
            if config.upstreams.get(upstream) != self._config.upstreams.get(upstream):
                self._retired.append(self._clients.pop(upstream))
        self._config = config

    def of(self, upstream: str) -> OriginClient:
        """Raises OriginUnavailable for one that is not in the table (any more, or yet)."""
        client = self._clients.get(upstream)
        if client is None:
            section = self._config.upstreams.get(upstream)
            if section is None:
                raise OriginUnavailable(f"{upstream} is no upstream on this node")
            client = OriginClient(upstream, section, cluster=self._cluster)
            self._clients[upstream] = client
        return client
