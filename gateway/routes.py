"""What a listener does with a request, on one screen: refuse, choose the upstream, hand over.

One handler instead of aiohttp's router: paths are taken still %-encoded and parsed by `passel.oci`,
which decodes them once. Nothing is sent to any origin for a request that is wrong in itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from passel.errors import InputError, OriginRefused, PasselError
from passel.gateway.api import PREFIX, Api
from passel.gateway.blobs import Blobs
from passel.gateway.connection import Connection
from passel.gateway.exchange import Exchange, Target, parse_target
from passel.gateway.grants import CHECK_S
from passel.gateway.listings import Listings
from passel.gateway.manifests import Manifests
from passel.gateway.page import Page
from passel.gateway.replies import Failure, Refusal, failure_of
from passel.ids import BlobRef
from passel.oci.media import CANONICAL_ACCEPT
from passel.oci.upstream import Selectors, resolve
from passel.telemetry.metrics import exposition

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest
    from aiohttp.web_response import StreamResponse

    from passel.gateway.context import Context
    from passel.gateway.manifestcache import ManifestCache
    from passel.oci.names import V2Request

log = logging.getLogger(__name__)

_USE_HTTP = (
    "this proxy does not tunnel: CONNECT would hide what is asked for."
    " Tell the client to speak plain HTTP to it (nydusd: `use_http: true`)"
)
_PUSH = (
    "this is a read-only mirror: push to the registry itself,"
    " under the name that the image has there"
)
_UNKNOWN = {
    "blob": "BLOB_UNKNOWN",
    "manifest": "MANIFEST_UNKNOWN",
    "referrers": "MANIFEST_UNKNOWN",
    "tags": "NAME_UNKNOWN",
}


class Services:
    """The handlers behind all listeners."""

    def __init__(self, context: Context, cache: ManifestCache) -> None:
        self.context = context
        self.blobs = Blobs(context)
        self.manifests = Manifests(context, cache)
        self.listings = Listings(context)
        self.page = Page(context)


class Routes:
    """The handler of one listener; `dedicated` is the upstream that it is bound to, if any.

    `shows_page`: `/ui` is the page, and no path of a registry. `api` answers what begins with
    ``/api/v1``, where the listener has that.
    """

    def __init__(
        self,
        services: Services,
        dedicated: str | None,
        *,
        api: Api | None = None,
        shows_page: bool = False,
    ) -> None:
        self._services = services
        self._api = api
        self._shows_page = shows_page
        self._context = services.context
        self._dedicated = dedicated

    async def __call__(self, request: BaseRequest) -> StreamResponse:
        """Answer one request completely; the result only says whether the connection stays."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.begin()
        exchange = Exchange(request, connection, Target(None, "/", ""))
        exchange.keep = exchange.keep and not connection.is_used_up
        try:
            await self._answer(exchange)
        except PasselError as error:
            await exchange.fail(self._explain(exchange, error))
        except Refusal as refusal:
            await exchange.fail(refusal.failure)
        finally:
            status = f"{exchange.status // 100}xx" if exchange.status else "none"
            self._context.metrics.requests.labels(exchange.kind, status).inc()
        log.debug("request kind=%s status=%d", exchange.kind, exchange.status)
        return connection.finish(request, exchange.keep)

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.method == "CONNECT":
            raise Refusal(_not_allowed(_USE_HTTP))
        if self._is_loop(exchange):
            raise Refusal(
                Failure(508, "UNSUPPORTED", "the request came back here by way of an upstream")
            )
        if self._api is not None and request.raw_path.startswith(f"{PREFIX}/"):
            exchange.target = parse_target(request.raw_path)
            await self._api.serve(exchange)
            return
        if request.method not in ("GET", "HEAD"):
            raise Refusal(_not_allowed(_PUSH))
        if request.body_exists:
            raise Refusal(Failure(400, "UNSUPPORTED", "GET and HEAD have no body", close=True))
        exchange.target = parse_target(request.raw_path)
        if exchange.target.authority is not None or not await self._service(exchange):
            await self._registry(exchange)

    def _is_loop(self, exchange: Exchange) -> bool:
        own = f"1.1 {self._context.cluster}".lower()
        hops = ",".join(exchange.lines("Via")).lower().split(",")
        return own in (" ".join(hop.split()) for hop in hops)

    async def _service(self, exchange: Exchange) -> bool:
        """Health and metrics, on every listener. No origin, no peer, no disk is touched.

        And the page, on those for health.
        """
        path = exchange.target.path
        if self._shows_page and await self._services.page.serve(exchange):
            return True
        if path not in ("/server/ping", "/healthy", "/metrics"):
            return False
        if path == "/metrics":
            exchange.kind = "metrics"
            self._context.refresh_metrics()
            media_type, body = exposition(self._context.registry)
            await exchange.reply(200, (), body, media_type)
            return True
        exchange.kind = "health"
        await exchange.reply(200, (), b"OK\n", "text/plain; charset=utf-8")
        return True

    async def _registry(self, exchange: Exchange) -> None:
        request = exchange.request
        context = self._context
        selectors = Selectors(
            exchange.target.path,
            dedicated=self._dedicated,
            absolute=exchange.target.authority,
            headers=list(request.headers.items()),
            ns=exchange.query("ns"),
            host=request.headers.get("Host") if exchange.target.authority is None else None,
            default=context.config.default_upstream,
        )
        choice, asked = resolve(
            selectors,
            context.config.upstream_for,
            own=context.is_own,
            learned=context.learned_upstream,
        )
        exchange.kind = asked.kind
        if asked.kind == "ping":
            if self._dedicated is not None:
                await self._services.listings.challenge(self._dedicated, exchange.authorization)
            await exchange.reply(200, (), b"{}", "application/json")
        elif asked.kind == "catalog" or choice.upstream is None:
            raise InputError(404, "UNSUPPORTED", "what is cached here is not listed")
        else:
            await self._with_rights(exchange, choice.upstream, asked)

    async def _with_rights(self, exchange: Exchange, upstream: str, asked: V2Request) -> None:
        """Hand over, with no more of the client's credentials than the content needs."""
        assert asked.repository is not None
        grants, given = self._context.grants, exchange.authorization

        async def probe() -> None:
            headers = {"Accept": CANONICAL_ACCEPT}
            async with self._context.origin(upstream).open(
                "HEAD", asked.path, headers=headers, authorization=None, deadline_s=CHECK_S
            ):
                return

        is_known = asked.digest is not None and grants.local(
            BlobRef(upstream, asked.repository, asked.digest), given
        )
        if asked.kind in ("manifest", "blob") and not is_known:
            exchange.authorization = await grants.needed(upstream, asked.repository, given, probe)
        try:
            try:
                await self._content(exchange, upstream, asked)
            except OriginRefused:
                if exchange.authorization == given or exchange.connection.started:
                    raise
                # Public until a moment ago, or this part of it never was.
                grants.found_private(upstream, asked.repository)
                exchange.authorization = given
                await self._content(exchange, upstream, asked)
        except OriginRefused as error:
            if error.status == 401 and exchange.authorization is None:
                grants.heard_challenge(upstream, asked.repository, error)
            raise

    async def _content(self, exchange: Exchange, upstream: str, asked: V2Request) -> None:
        if asked.kind == "blob":
            assert asked.repository is not None
            assert asked.digest is not None
            ref = BlobRef(upstream, asked.repository, asked.digest)
            await self._services.blobs.serve(exchange, ref)
        elif asked.kind == "manifest":
            await self._services.manifests.serve(exchange, upstream, asked)
        else:
            await self._services.listings.serve(exchange, upstream, asked)

    def _explain(self, exchange: Exchange, error: PasselError) -> Failure:
        failure = failure_of(error, unknown=_UNKNOWN.get(exchange.kind, "NAME_UNKNOWN"))
        if isinstance(error, OriginRefused | InputError):
            log.debug("refused kind=%s status=%d", exchange.kind, failure.status)
        else:
            log.warning(
                "failed kind=%s status=%d error=%s",
                exchange.kind,
                failure.status,
                type(error).__name__,
            )
        if exchange.connection.started:
            self._context.metrics.aborted.inc()
        return failure


def _not_allowed(message: str) -> Failure:
    # The body of a push is not read: 'Connection: close' tells the client to stop sending it.
    return Failure(405, "UNSUPPORTED", message, headers=(("Allow", "GET, HEAD"),), close=True)
