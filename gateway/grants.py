"""May this client read this? Nobody gets cached bytes whom the origin would not give them.

A grant is (upstream, repository, digest, identity) with an end. The identity is ``anon``, or a MAC
of
the credential under a key that lives as long as this process: no credential is kept. Public content
is found out once and needs no credentials afterwards, whatever a client sends. Bytes are shared by
digest, grants never: knowing a digest, or having rights in another repository, is not enough.

Source: DESIGN §8.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from passel.errors import (
    OriginNonsense,
    OriginRefused,
    OriginTimeout,
    OriginUnavailable,
    PasselError,
)

if TYPE_CHECKING:
    from passel.config import Config, UpstreamConfig
    from passel.gateway.door import Door
    from passel.gateway.outages import Outages
    from passel.ids import BlobRef
    from passel.telemetry.metrics import GatewayMetrics

GRANTS_MAX = 65536
CHALLENGES_MAX = 4096
REPOSITORIES_MAX = 4096
#: How long the origin's no is believed: a user who was just let in must not wait.
REFUSED_S = 15.0
#: While the origin is down, a grant that has run out counts for this long (when_origin_down:
#: granted).
GRACE_S = 24 * 3600.0
#: The check is worth no more time than a client has until its first byte.
CHECK_S = 4.0
STAT_S = 0.3

ANONYMOUS = "anon"
#: Everybody reads with the gateway's own credential (auth: static), or nobody's (open).
EVERYBODY = "all"


class Checked(Protocol):
    """What an origin says about content."""

    @property
    def size(self) -> int | None: ...
    @property
    def anonymous(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to read. `size` is what the origin said, if it was asked."""

    public: bool
    ends: float
    size: int | None = None
    #: Given without the origin, which cannot be asked.
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class _Refused:
    error: OriginRefused
    ends: float


Key = tuple[str, str, str, str]


class Grants:
    """The grants of one gateway. Runs on the loop's thread only; bounded, least recently used."""

    def __init__(
        self,
        config: Config,
        door: Door,
        check: Check,
        outages: Outages,
        metrics: GatewayMetrics,
    ) -> None:
        self._config = config
        self._door = door
        self._check = check
        self._outages = outages
        self._metrics = metrics
        self._mac_key = os.urandom(32)
        self._grants: OrderedDict[Key, Grant] = OrderedDict()
        self._refused: OrderedDict[Key, _Refused] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[Grant]] = {}
        #: (upstream, repository) -> whether everybody may read it, and until when that is believed.
        self._is_public: OrderedDict[tuple[str, str], tuple[bool, float]] = OrderedDict()
        self._probing: dict[tuple[str, str], asyncio.Task[None]] = {}
        #: (upstream, repository) -> what the origin answered to somebody without credentials.
        self._challenges: OrderedDict[tuple[str, str], OriginRefused] = OrderedDict()
        #: Things to tell the cluster; kept so that they are not collected half-way.
        self._tasks: set[asyncio.Task[None]] = set()

    def adopt(self, config: Config) -> None:
        """Another configuration counts from now on."""
        self._config = config

    def forget(self, upstream: str) -> None:
        """What this upstream said counts no more: it may be another registry now."""
        tables: list[OrderedDict[Any, Any]] = [self._grants, self._refused]
        tables += [self._is_public, self._challenges]
        for table in tables:
            for key in [key for key in table if key[0] == upstream]:
                del table[key]

    def identity(self, upstream: str, authorization: str | None) -> str:
        """Who a client is to an upstream: a name that gives nothing away."""
        mode = self._config.upstreams[upstream].auth
        if mode == "static":
            return EVERYBODY
        if authorization is None or mode == "anonymous":
            return ANONYMOUS
        return hmac.digest(
            self._mac_key, authorization.encode("utf-8", "surrogateescape"), "sha256"
        ).hex()

    def credential(self, upstream: str, authorization: str | None) -> str | None:
        """What of a client's credentials may go to that origin."""
        return authorization if self._config.upstreams[upstream].auth == "passthrough" else None

    async def needed(
        self, upstream: str, repository: str, authorization: str | None, probe: Probe
    ) -> str | None:
        """The credentials to go on with: none for a repository that everybody may read.

        docker and podman bring a new token to each pull, of public images too. Under its own name
        each would have to be asked about again, and none would be known while the origin is down.
        `probe` asks the origin for what the client wants, without credentials.
        """
        if authorization is None or self._config.upstreams[upstream].auth != "passthrough":
            return authorization
        key = upstream, repository
        is_public, until = self._is_public.get(key, (False, 0.0))
        if until <= asyncio.get_running_loop().time() and not self._outages.is_fresh(upstream):
            flight = self._probing.get(key)
            if flight is None:
                flight = asyncio.get_running_loop().create_task(self._probe(key, probe))
                self._probing[key] = flight
                flight.add_done_callback(lambda _: self._probing.pop(key, None))
            await asyncio.shield(flight)
            is_public, _ = self._is_public.get(key, (False, 0.0))
        return None if is_public else authorization

    async def _probe(self, key: tuple[str, str], probe: Probe) -> None:
        try:
            async with self._outages.asking(key[0]):
                await asyncio.wait_for(probe(), CHECK_S)
        except OriginRefused as error:
            if error.status not in (401, 403, 404):
                return
            self.found_private(*key)
        except (PasselError, asyncio.TimeoutError):
            # What was known stays; while the origin is away nobody else is asked.
            return
        else:
            self._note_repository(key, is_public=True)

    def found_private(self, upstream: str, repository: str) -> None:
        """The origin wants credentials for (some of) this repository."""
        self._note_repository((upstream, repository), is_public=False)

    def _note_repository(self, key: tuple[str, str], *, is_public: bool) -> None:
        ttl = self._config.upstreams[key[0]].grant_ttl.total_seconds()
        self._is_public[key] = is_public, asyncio.get_running_loop().time() + ttl
        self._is_public.move_to_end(key)
        while len(self._is_public) > REPOSITORIES_MAX:
            self._is_public.popitem(last=False)

    def local(self, ref: BlobRef, authorization: str | None) -> Grant | None:
        """A grant that needs nobody to be asked, or None."""
        policy = self._config.upstreams[ref.upstream].read_policy
        if policy == "open":
            return Grant(False, float("inf"))
        if policy == "always":
            return None
        now = asyncio.get_running_loop().time()
        for identity in (ANONYMOUS, self.identity(ref.upstream, authorization)):
            key = _key(ref, identity)
            grant = self._grants.get(key)
            if grant is not None and grant.ends > now:
                self._grants.move_to_end(key)
                return grant
        return None

    def won(
        self, ref: BlobRef, authorization: str | None, *, anonymous: bool, size: int | None
    ) -> Grant:
        """The origin has just served it to this client, or (`anonymous`) to anybody."""
        loop = asyncio.get_running_loop()
        ttl = self._config.upstreams[ref.upstream].grant_ttl.total_seconds()
        if anonymous:
            task = loop.create_task(self._door.note_public(ref, ttl))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return self.found_public(ref, ttl, size)
        grant = Grant(False, loop.time() + ttl, size)
        self._keep(_key(ref, self.identity(ref.upstream, authorization)), grant)
        return grant

    def found_public(self, ref: BlobRef, ttl_s: float | None, size: int | None) -> Grant:
        """The cluster knows that the origin serves it without credentials, for `ttl_s` more."""
        ttl = self._config.upstreams[ref.upstream].grant_ttl.total_seconds()
        if ttl_s is not None:
            ttl = min(max(ttl_s, 0.0), ttl)
        ends = asyncio.get_running_loop().time() + ttl
        grant = Grant(True, ends, size)
        self._keep(_key(ref, ANONYMOUS), grant)
        self._note_repository((ref.upstream, ref.repository), is_public=True)
        return grant

    async def require(self, ref: BlobRef, authorization: str | None, kind: str = "blobs") -> Grant:
        """A grant; else the origin's word is raised, or that it cannot be asked.

        `kind` is how the origin names the content: blobs or manifests.
        """
        grant = self.local(ref, authorization)
        if grant is not None:
            self._count("known")
            return grant
        upstream = self._config.upstreams[ref.upstream]
        if upstream.read_policy == "grant":
            known = await self._door.stat(ref, STAT_S)
            if known is not None and known.public and known.ttl_s > 0:
                self._count("cluster")
                return self.found_public(ref, known.ttl_s, known.size)
        return await self._from_origin(ref, authorization, upstream, kind)

    async def _from_origin(
        self, ref: BlobRef, authorization: str | None, upstream: UpstreamConfig, kind: str
    ) -> Grant:
        key = _key(ref, self.identity(ref.upstream, authorization))
        now = asyncio.get_running_loop().time()
        refused = self._refused.get(key)
        if refused is not None and refused.ends > now and upstream.read_policy != "always":
            self._count("refused")
            raise OriginRefused(*refused.error.args)
        if self._outages.is_fresh(ref.upstream):
            grant = self._outliving(key, upstream)
            if grant is not None:
                return grant
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._ask(ref, authorization, kind))
            self._asking[key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        try:
            # Shielded: the client that began the check may hang up, others wait for it.
            grant = await asyncio.shield(asking)
        except (OriginUnavailable, OriginTimeout, OriginNonsense) as error:
            return self._while_down(key, upstream, authorization, error)
        except OriginRefused as error:
            if error.status == 429 or error.status >= 500:
                return self._while_down(key, upstream, authorization, error)
            self._count("refused")
            self._refuse(key, error, now)
            raise
        self._count("origin")
        return grant

    async def _ask(self, ref: BlobRef, authorization: str | None, kind: str) -> Grant:
        credential = self.credential(ref.upstream, authorization)
        async with self._outages.asking(ref.upstream):
            try:
                found = await asyncio.wait_for(self._check(ref, credential, kind), CHECK_S)
            except asyncio.TimeoutError as error:
                raise OriginTimeout("the origin did not answer a check in time") from error
        return self.won(ref, authorization, anonymous=found.anonymous, size=found.size)

    def heard_challenge(self, upstream: str, repository: str, error: OriginRefused) -> None:
        """The origin wants credentials for this repository, and says which."""
        # Without its body, which may be large.
        self._challenges[upstream, repository] = OriginRefused(error.status, error.headers)
        self._challenges.move_to_end((upstream, repository))
        while len(self._challenges) > CHALLENGES_MAX:
            self._challenges.popitem(last=False)

    def _while_down(
        self,
        key: Key,
        upstream: UpstreamConfig,
        authorization: str | None,
        error: PasselError,
    ) -> Grant:
        """The origin cannot say: what the configuration says then."""
        grant = self._outliving(key, upstream)
        if grant is not None:
            return grant
        self._count("unknown")
        challenge = self._challenges.get(key[:2])
        if authorization is None and challenge is not None:
            # Clients show their credentials only when they are asked for them, and these may have
            # a grant.
            raise OriginRefused(*challenge.args)
        raise error

    def _outliving(self, key: Key, upstream: UpstreamConfig) -> Grant | None:
        """The permission that holds without the origin, if the configuration gives one."""
        now = asyncio.get_running_loop().time()
        grant = None
        if upstream.when_origin_down == "serve":
            grant = Grant(False, now)
        elif upstream.when_origin_down == "granted":
            known = (self._grants.get(each) for each in (key, (*key[:3], ANONYMOUS)))
            grant = next((each for each in known if each and each.ends + GRACE_S > now), None)
        if grant is None:
            return None
        self._count("origin_down")
        return replace(grant, is_stale=True)

    def _refuse(self, key: Key, error: OriginRefused, now: float) -> None:
        self._grants.pop(key, None)
        self._refused[key] = _Refused(error, now + REFUSED_S)
        self._refused.move_to_end(key)
        while len(self._refused) > GRANTS_MAX // 16:
            self._refused.popitem(last=False)

    def _keep(self, key: Key, grant: Grant) -> None:
        self._refused.pop(key, None)
        self._grants[key] = grant
        self._grants.move_to_end(key)
        while len(self._grants) > GRANTS_MAX:
            self._grants.popitem(last=False)

    def _count(self, outcome: str) -> None:
        self._metrics.grants.labels(outcome).inc()


class Check(Protocol):
    """Ask an origin whether it would serve content to these credentials: one HEAD."""

    async def __call__(self, ref: BlobRef, authorization: str | None, kind: str) -> Checked: ...


class Probe(Protocol):
    """Ask an origin for something without credentials. Raises what `OriginClient.open` raises."""

    async def __call__(self) -> None: ...


def _key(ref: BlobRef, identity: str) -> Key:
    return ref.upstream, ref.repository, str(ref.digest), identity
