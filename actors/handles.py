"""Every call to an actor, and every look-up of one. Nobody else says `.remote(` or `ray.get`.

Two guarantees to callers: a call that returns was carried out; one that raises `PeerUnavailable`
may or may not have been. All methods of our actors are idempotent, so saying it again is always
right.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.experimental import internal_kv

from passel.actors.words import NAMESPACE, Reply, controller_name, peer_name, shard_name
from passel.config.live import Applied
from passel.core.handover import Remaining
from passel.core.inventory import BlobEntry
from passel.core.jobs import Held
from passel.core.messages import ReportItem, ShardMessage
from passel.core.overview import Overview
from passel.core.pins import Pinned
from passel.core.rotation import Ring
from passel.errors import PeerUnavailable
from passel.ids import BlobRef, Digest, PeerId
from passel.telemetry.scene import Glance

_T = TypeVar("_T")


async def _answer(
    what: str, ref: ray.ObjectRef[_T], timeout_s: float, unless: asyncio.Future[None] | None
) -> _T:
    call: asyncio.Future[_T] = asyncio.wrap_future(ref.future())
    both: set[asyncio.Future[Any]] = {call} if unless is None else {call, unless}
    try:
        await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if call.done():
            return call.result()
    except RayError as error:
        raise PeerUnavailable(f"{what} does not answer: {type(error).__name__}") from error
    finally:
        call.cancel()
    raise PeerUnavailable(f"{what} does not answer")


async def _look_up(name: str) -> Any:
    """The actor of this name. A look-up is a blocking call to Ray's control store."""
    try:
        return await asyncio.wait_for(
            asyncio.to_thread(ray.get_actor, name, namespace=NAMESPACE), 5.0
        )
    except (ValueError, RayError, asyncio.TimeoutError) as error:
        raise PeerUnavailable(f"there is no actor {name}") from error


class _Handle:
    """An actor by name; the handle outlives restarts of the actor, not its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._actor: Any = None

    async def actor(self) -> Any:
        if self._actor is None:
            self._actor = await _look_up(self.name)
        return self._actor

    async def ask(
        self,
        method: str,
        *args: object,
        timeout_s: float,
        unless: asyncio.Future[None] | None = None,
    ) -> Any:
        """The answer. Raises PeerUnavailable after `timeout_s`, or when `unless` is done."""
        actor = await self.actor()
        call = getattr(actor, method, None)
        if call is None:
            # One that was started by an older passel, in the middle of an upgrade; its next life
            # may know it.
            self._actor = None
            raise PeerUnavailable(f"{self.name} is of another version: it knows no {method}")
        try:
            ref = call.remote(*args)
            return await _answer(self.name, ref, timeout_s, unless)
        except PeerUnavailable:
            self._actor = None
            raise


class ShardHandle(_Handle):
    """One scheduler shard, as peers and the controller see it."""

    def __init__(self, shard: int) -> None:
        super().__init__(shard_name(shard))

    async def report(
        self,
        peer: PeerId,
        incarnation: int,
        items: tuple[ReportItem, ...],
        timeout_s: float,
        unless: asyncio.Future[None],
    ) -> Reply:
        reply: Reply = await self.ask(
            "report", peer, incarnation, items, timeout_s=timeout_s, unless=unless
        )
        return reply

    async def stat(self, ref: BlobRef, timeout_s: float) -> tuple[int | None, float]:
        """(size or None, seconds for which the blob counts as public)."""
        answer: tuple[int | None, float] = await self.ask("stat", ref, timeout_s=timeout_s)
        return answer

    async def peer_gone(self, peer: PeerId, timeout_s: float) -> None:
        await self.ask("peer_gone", peer, timeout_s=timeout_s)

    async def blobs(self, limit: int, timeout_s: float) -> tuple[list[BlobEntry], int]:
        """The first blobs that the shard knows of, and how many there are."""
        answer: tuple[list[BlobEntry], int] = await self.ask("blobs", limit, timeout_s=timeout_s)
        return answer

    async def drain(
        self,
        peers: frozenset[PeerId],
        watched: tuple[Digest, ...],
        limit: int,
        timeout_s: float,
    ) -> Remaining:
        """The nodes of these peers, and of no others, are to go away; what only they have.

        Of the `watched` blobs, also which ones others have by now.
        """
        answer: Remaining = await self.ask("drain", peers, watched, limit, timeout_s=timeout_s)
        return answer

    async def overview(self, limit: int, timeout_s: float) -> Overview:
        """What moves now, and up to so many blobs."""
        answer: Overview = await self.ask("overview", limit, timeout_s=timeout_s)
        return answer

    async def status(self, timeout_s: float) -> dict[str, Any]:
        answer: dict[str, Any] = await self.ask("status", timeout_s=timeout_s)
        return answer


class PeerHandle(_Handle):
    """One peer, as shards and the controller see it."""

    def __init__(self, peer: PeerId) -> None:
        super().__init__(peer_name(peer))

    async def deliver(
        self, shard: int, incarnation: int, messages: tuple[ShardMessage, ...], timeout_s: float
    ) -> None:
        await self.ask("deliver", shard, incarnation, messages, timeout_s=timeout_s)

    async def hold(self, refs: tuple[BlobRef, ...], timeout_s: float) -> tuple[Held, ...]:
        """See to it that the peer is getting these blobs; how much of each it has."""
        answer: tuple[Held, ...] = await self.ask("hold", refs, timeout_s=timeout_s)
        return answer

    async def take_over(
        self, blobs: tuple[tuple[BlobRef, int], ...], timeout_s: float
    ) -> tuple[Held, ...]:
        """The peer gets blobs of these sizes if it has room for them; how much of each it has."""
        answer: tuple[Held, ...] = await self.ask("take_over", blobs, timeout_s=timeout_s)
        return answer

    async def upstreams(
        self, digests: tuple[Digest, ...], timeout_s: float
    ) -> tuple[str | None, ...]:
        """Which upstream each of the peer's complete blobs came from, if that is known."""
        answer: tuple[str | None, ...] = await self.ask("upstreams", digests, timeout_s=timeout_s)
        return answer

    async def take_ring(self, ring: Ring, timeout_s: float) -> None:
        """The peer signs and verifies with these secrets from now on."""
        await self.ask("take_ring", ring, timeout_s=timeout_s)

    async def take_pins(self, pinned: Pinned, timeout_s: float) -> None:
        """The peer keeps these blobs from now on."""
        await self.ask("take_pins", pinned, timeout_s=timeout_s)

    async def check_config(self, text: str, timeout_s: float) -> list[str]:
        """What hinders the peer from taking up this configuration; nothing, if it can."""
        answer: list[str] = await self.ask("check_config", text, timeout_s=timeout_s)
        return answer

    async def take_config(self, applied: Applied, timeout_s: float) -> None:
        """The peer and its gateway go by this configuration from now on."""
        await self.ask("take_config", applied, timeout_s=timeout_s)

    async def remove(self, digest: str, timeout_s: float) -> bool:
        """The peer has no complete blob of this digest any more; whether it had one."""
        answer: bool = await self.ask("remove", digest, timeout_s=timeout_s)
        return answer

    async def glance(self, timeout_s: float) -> Glance:
        """What moves through the peer, in a few numbers."""
        answer: Glance = await self.ask("glance", timeout_s=timeout_s)
        return answer

    async def status(self, timeout_s: float) -> dict[str, Any]:
        answer: dict[str, Any] = await self.ask("status", timeout_s=timeout_s)
        return answer


class ControllerHandle(_Handle):
    """The controller, as peers and shards see it."""

    def __init__(self) -> None:
        super().__init__(controller_name())

    async def admin(
        self, verb: str, fields: dict[str, Any], timeout_s: float
    ) -> tuple[int, dict[str, Any]]:
        """What an operator asks for: an HTTP status, and the facts or what was wrong."""
        answer: tuple[int, dict[str, Any]] = await self.ask(
            "admin", verb, fields, timeout_s=timeout_s
        )
        return answer

    async def peers(self, timeout_s: float) -> tuple[PeerId, ...]:
        """The peers of all live nodes."""
        answer: tuple[PeerId, ...] = await self.ask("peers", timeout_s=timeout_s)
        return answer

    async def watch(self, timeout_s: float) -> bytes:
        """The cluster as it is now: the JSON of `Scene.view`, packed with zlib."""
        answer: bytes = await self.ask("watch", timeout_s=timeout_s)
        return answer

    async def status(self, timeout_s: float) -> dict[str, Any]:
        answer: dict[str, Any] = await self.ask("status", timeout_s=timeout_s)
        return answer


def write_down(key: str, value: bytes) -> None:
    """Keep a value in Ray's control store: it outlives every actor. A blocking call."""
    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=NAMESPACE)  # noqa: SLF001


def strike_out(key: str) -> None:
    """Forget a value that was written down. A blocking call."""
    internal_kv._internal_kv_del(key, namespace=NAMESPACE)  # noqa: SLF001


def written_down(prefix: str) -> list[bytes]:
    """The values of all keys that begin with `prefix`. A blocking call."""
    keys = internal_kv._internal_kv_list(prefix, namespace=NAMESPACE)  # noqa: SLF001
    values = [internal_kv._internal_kv_get(key, namespace=NAMESPACE) for key in keys]  # noqa: SLF001
    return [value for value in values if value is not None]


def live_nodes() -> list[dict[str, Any]]:
    """Ray's nodes that are alive: NodeID, NodeManagerAddress, Labels. A blocking call."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def own_address() -> str:
    """The address of this node, as Ray's other nodes reach it."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def own_node() -> str:
    """The Ray node id that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def is_second_life() -> bool:
    """Whether Ray restarted this actor."""
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def end_actor(name: str) -> None:
    """End a detached actor for good; nothing happens when there is none. A blocking call."""
    try:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    except (ValueError, RayError, GetTimeoutError):
        return
