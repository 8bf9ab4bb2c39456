"""``/v2/<name>/manifests/<reference>``: by digest from the cache, tags as fresh as promised.

A manifest is bytes under a digest, kept as they came and hashed at every way in. A tag is a pointer
with an age: believed for `tag_ttl`, then checked with one HEAD, then served stale with a warning
for
as long as the origin cannot be asked. Reading needs the same grant as a blob.
Source: reference oci.md §4.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passel.errors import (
    InputError,
    OriginNonsense,
    OriginRefused,
    OriginTimeout,
    OriginUnavailable,
    PasselError,
)
from passel.gateway.manifestcache import checked
from passel.gateway.outages import WARNING
from passel.gateway.replies import ALWAYS, Failure, Refusal, blob_headers
from passel.ids import BlobRef, Digest
from passel.oci.manifests import MANIFEST_BYTES_MAX, compute_digest
from passel.oci.media import CANONICAL_ACCEPT, accepts, bare_media_type
from passel.oci.ranges import (
    content_range,
    content_range_unsatisfied,
    etag,
    none_match,
    parse_range,
    range_applies,
)

if TYPE_CHECKING:
    from passel.gateway.context import Context
    from passel.gateway.exchange import Exchange
    from passel.gateway.grants import Grant
    from passel.gateway.manifestcache import Kept, ManifestCache
    from passel.gateway.replies import Header
    from passel.oci.names import V2Request
    from passel.transport.origin import OriginAnswer

log = logging.getLogger(__name__)

TAGS_MAX = 4096
#: The sum of all that asking the origin for a manifest may take; containerd hangs up at 30 s.
ORIGIN_S = 20.0
#: The same while there is an older answer to fall back on.
REVALIDATE_S = 4.0
#: For how long repeats of a request are answered without looking at grants and tags again.
REPEAT_S = 5.0
#: How old a tag may be that is served because the origin cannot be asked.
STALE_MAX_S = 24 * 3600.0
#: Their digest is not that of their bytes: handed through, never kept.
_SCHEMA1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)


@dataclass(frozen=True, slots=True)
class Tag:
    """What a tag meant when somebody last asked the origin."""

    digest: Digest
    checked_at: float


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest to answer with, and the permission."""

    kept: Kept
    grant: Grant
    is_stale: bool = False


class Manifests:
    """Answers requests for manifests. Runs on the loop's thread."""

    def __init__(self, context: Context, cache: ManifestCache) -> None:
        self._context = context
        self._cache = cache
        self._tags: OrderedDict[tuple[str, str, str], Tag] = OrderedDict()
        self._flights: dict[Hashable, asyncio.Task[Found | None]] = {}

    async def serve(self, exchange: Exchange, upstream: str, request: V2Request) -> None:
        """Answer a GET or a HEAD. Raises the tree's errors before anything was sent."""
        assert request.repository is not None
        if request.digest is not None:
            ref = BlobRef(upstream, request.repository, request.digest)
            found = await self._by_digest(ref, exchange.authorization)
        else:
            found = await self._by_tag(exchange, upstream, request)
        accept = exchange.lines("Accept")
        if found is None or not accepts(accept, found.kept.media_type):
            await self._bypass(exchange, upstream, request)
        else:
            await self._answer(exchange, upstream, request, found)

    async def _by_digest(self, ref: BlobRef, authorization: str | None) -> Found | None:
        kept = await self._cache.get(ref.digest)
        if kept is not None:
            grant = await self._context.grants.require(ref, authorization, "manifests")
            self._context.learned.note(ref.upstream, ref.repository, kept.descriptors)
            return Found(kept, grant)
        who = self._context.grants.identity(ref.upstream, authorization)
        return await self._together(
            (ref, who),
            lambda: self._fetch(
                ref.upstream, ref.repository, ref.digest, str(ref.digest), authorization
            ),
        )

    async def _by_tag(self, exchange: Exchange, upstream: str, request: V2Request) -> Found | None:
        assert request.repository is not None
        assert request.tag is not None
        authorization = exchange.authorization
        key = (upstream, request.repository, request.tag)
        tag = self._tags.get(key)
        if tag is not None and self._is_fresh(tag, upstream, exchange):
            found = await self._by_digest(
                BlobRef(upstream, request.repository, tag.digest), authorization
            )
            if found is not None:
                return found
        who = self._context.grants.identity(upstream, authorization)
        if tag is not None and self._context.outages.is_fresh(upstream):
            error = OriginUnavailable("the origin did not answer a moment ago")
            return await self._stale(key, authorization, error)
        try:
            return await self._together((key, who), lambda: self._ask_tag(key, tag, authorization))
        except OriginRefused as error:
            if error.status == 404:
                self._tags.pop(key, None)
            if error.status != 429:
                raise
            return await self._stale(key, authorization, error)
        except (OriginUnavailable, OriginTimeout, OriginNonsense) as error:
            return await self._stale(key, authorization, error)

    def _is_fresh(self, tag: Tag, upstream: str, exchange: Exchange) -> bool:
        if "no-cache" in (exchange.header("Cache-Control") or "").lower():
            return False
        ttl = self._context.config.upstreams[upstream].tag_ttl.total_seconds()
        return asyncio.get_running_loop().time() - tag.checked_at < ttl

    async def _ask_tag(
        self, key: tuple[str, str, str], tag: Tag | None, authorization: str | None
    ) -> Found | None:
        """Ask the origin what a tag means now: a HEAD, and a GET only if that is news."""
        upstream, repository, name = key
        digest = None
        if tag is not None:
            digest = await self._head_digest(upstream, repository, name, authorization)
        if digest is None:
            found = await self._fetch(upstream, repository, None, name, authorization)
        else:
            found = await self._by_digest(BlobRef(upstream, repository, digest), authorization)
        if found is not None:
            now = asyncio.get_running_loop().time()
            self._tags[key] = Tag(found.kept.digest, now)
            self._tags.move_to_end(key)
            while len(self._tags) > TAGS_MAX:
                self._tags.popitem(last=False)
        return found

    async def _head_digest(
        self, upstream: str, repository: str, tag: str, authorization: str | None
    ) -> Digest | None:
        """The digest in the origin's answer to a HEAD; None: it must be asked with a GET."""
        try:
            async with self._open(
                "HEAD", upstream, repository, tag, authorization, deadline_s=REVALIDATE_S
            ) as answer:
                digest = Digest.parse(answer.headers.get("Docker-Content-Digest", ""))
                # Whom the tag was shown to may read what it means.
                ref = BlobRef(upstream, repository, digest)
                self._context.grants.won(ref, authorization, anonymous=answer.anonymous, size=None)
                return digest
        except InputError:
            return None
        except OriginRefused as error:
            # Stores that a HEAD is redirected to refuse it: the URL was signed for GET.
            if error.status in (403, 405):
                return None
            raise

    async def _fetch(
        self,
        upstream: str,
        repository: str,
        digest: Digest | None,
        reference: str,
        authorization: str | None,
    ) -> Found | None:
        """GET a manifest, check it and keep it; None: of a kind that is only handed through."""
        async with self._open("GET", upstream, repository, reference, authorization) as answer:
            media_type = bare_media_type(answer.headers.get("Content-Type"))
            if media_type in _SCHEMA1:
                return None
            body = await read_all(answer, MANIFEST_BYTES_MAX)
            is_anonymous = answer.anonymous
            announced = answer.headers.get("Docker-Content-Digest")
        if digest is None:
            try:
                digest = Digest.parse(announced or "")
            except InputError:
                digest = compute_digest(body)
        # Parsing 4 MiB of JSON takes long enough to be felt by other clients.
        kept = await asyncio.to_thread(checked, body, media_type, digest)
        self._cache.put(kept)
        self._context.learned.note(upstream, repository, kept.descriptors)
        grant = self._context.grants.won(
            BlobRef(upstream, repository, digest),
            authorization,
            anonymous=is_anonymous,
            size=len(body),
        )
        return Found(kept, grant)

    async def _stale(
        self, key: tuple[str, str, str], authorization: str | None, error: PasselError
    ) -> Found:
        """What the tag meant, while the origin cannot say; the error if we don't know."""
        tag = self._tags.get(key)
        now = asyncio.get_running_loop().time()
        if tag is None or now - tag.checked_at > STALE_MAX_S:
            raise error
        kept = await self._cache.get(tag.digest)
        if kept is None:
            raise error
        ref = BlobRef(key[0], key[1], tag.digest)
        grant = await self._context.grants.require(ref, authorization, "manifests")
        log.warning("tag_stale upstream=%s age_s=%.0f", key[0], now - tag.checked_at)
        return Found(kept, grant, is_stale=True)

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        upstream: str,
        repository: str,
        reference: str,
        authorization: str | None,
        accept: str = CANONICAL_ACCEPT,
        deadline_s: float = ORIGIN_S,
    ) -> AsyncIterator[OriginAnswer]:
        opening = self._context.origin(upstream).open(
            method,
            f"/v2/{repository}/manifests/{reference}",
            headers={"Accept": accept},
            authorization=self._context.grants.credential(upstream, authorization),
            deadline_s=deadline_s,
        )
        async with self._context.outages.asking(upstream), opening as answer:
            yield answer

    async def _together(
        self, key: Hashable, ask: Callable[[], Coroutine[None, None, Found | None]]
    ) -> Found | None:
        """One question to the origin for all who ask the same at once."""
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(ask())
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        # Shielded: the client that began it may hang up, the others wait for it.
        return await asyncio.shield(flight)

    def _landed(self, key: Hashable, flight: asyncio.Task[Found | None]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()

    # Answers.

    async def _answer(
        self, exchange: Exchange, upstream: str, request: V2Request, found: Found
    ) -> None:
        kept = found.kept
        assert request.repository is not None
        ref = BlobRef(upstream, request.repository, kept.digest)
        is_stale = found.is_stale or found.grant.is_stale
        if is_stale:
            self._context.metrics.stale.labels("manifest").inc()
        fields = _fields(ref, kept, found, is_tag=request.tag is not None)
        tag = etag(kept.digest)
        if none_match(exchange.lines("If-None-Match"), tag):
            await exchange.connection.write(exchange.head(304, fields))
            return
        fields.append(("Content-Type", kept.media_type))
        status, body = 200, kept.body
        lines = exchange.lines("Range")
        if not exchange.is_head and len(lines) == 1:
            header = lines[0] if range_applies(exchange.header("If-Range"), tag) else None
            spans = parse_range(header, len(body))
            if spans is not None and not spans:
                raise Refusal(_beyond(len(body)))
            if spans is not None and len(spans) == 1:
                start, stop = spans[0]
                fields.append(("Content-Range", content_range(start, stop, len(body))))
                status, body = 206, body[start:stop]
        fields.append(("Content-Length", str(len(body))))
        lead = exchange.head(status, fields)
        answer = lead if exchange.is_head else lead + body
        await exchange.connection.write(answer)
        if exchange.keep and not is_stale and self._may_repeat(exchange, upstream):
            expires = asyncio.get_running_loop().time() + REPEAT_S
            until = min(expires, found.grant.ends, self._fresh_until(upstream, request))
            exchange.connection.remember_answer(answer, until)

    def _may_repeat(self, exchange: Exchange, upstream: str) -> bool:
        policy = self._context.config.upstreams[upstream].read_policy
        return policy != "always" and exchange.header("Cache-Control") is None

    def _fresh_until(self, upstream: str, request: V2Request) -> float:
        """When what this request means has to be looked up again."""
        if request.tag is None:
            return float("inf")
        assert request.repository is not None
        tag = self._tags.get((upstream, request.repository, request.tag))
        ttl = self._context.config.upstreams[upstream].tag_ttl.total_seconds()
        return 0.0 if tag is None else tag.checked_at + ttl

    async def _bypass(self, exchange: Exchange, upstream: str, request: V2Request) -> None:
        """Ask the origin in the client's own words, and keep nothing of the answer."""
        assert request.repository is not None
        accept = ", ".join(exchange.lines("Accept")) or CANONICAL_ACCEPT
        async with self._open(
            exchange.method,
            upstream,
            request.repository,
            str(request.reference),
            exchange.authorization,
            accept,
        ) as answer:
            body = b"" if exchange.is_head else await read_all(answer, MANIFEST_BYTES_MAX)
            length = answer.headers.get("Content-Length") if exchange.is_head else str(len(body))
            fields: list[Header] = [
                (name, answer.headers[name])
                for name in ("Content-Type", "Docker-Content-Digest")
                if name in answer.headers
            ]
        fields += [*ALWAYS, ("OCI-Namespace", upstream), ("X-Passel-Source", "origin")]
        fields.append(("Cache-Control", "no-cache"))
        if length is not None:
            fields.append(("Content-Length", length))
        await exchange.connection.write(exchange.head(200, fields) + body)


async def read_all(answer: OriginAnswer, limit: int) -> bytes:
    """The body of an origin's answer. Raises OriginNonsense when it is longer than `limit`."""
    parts, total = [], 0
    async for chunk in answer.iter_chunks():
        total += len(chunk)
        if total > limit:
            raise OriginNonsense(f"an answer of more than {limit} bytes")
        parts.append(bytes(chunk))
    return b"".join(parts)


def _fields(ref: BlobRef, kept: Kept, found: Found, *, is_tag: bool) -> list[Header]:
    """Headers without type, length and range."""
    base = blob_headers(
        ref.upstream, ref.id, str(kept.digest), "local", private=not found.grant.public
    )
    own = {"Content-Type", "Cache-Control"} if is_tag else {"Content-Type"}
    fields = [each for each in base if each[0] not in own]
    if is_tag:
        fields.append(("Cache-Control", "no-cache"))
    if found.is_stale or found.grant.is_stale:
        fields.append(("Warning", WARNING))
    return fields


def _beyond(size: int) -> Failure:
    return Failure(
        416,
        "SIZE_INVALID",
        "the range begins beyond the end of the manifest",
        headers=(("Content-Range", content_range_unsatisfied(size)),),
    )
