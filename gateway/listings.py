"""Tags, referrers and the ping of one upstream: asked of the origin each time, nothing kept.

The whole answer is read before the first byte goes out, within a limit, so that an origin that
breaks
off becomes an error and not a list that looks complete.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from passel.errors import OriginRefused, PasselError
from passel.gateway.manifests import read_all
from passel.gateway.replies import Failure, Refusal, failure_of, passed_on

if TYPE_CHECKING:
    from passel.gateway.context import Context
    from passel.gateway.exchange import Exchange
    from passel.oci.names import V2Request

TAGS_BYTES_MAX = 32 * 1024 * 1024
REFERRERS_BYTES_MAX = 4 * 1024 * 1024
#: Lists in memory at once.
AT_ONCE = 8
ORIGIN_S = 20.0
#: How long an upstream's answer to a ping is believed, and how long it may take.
PING_TTL_S = 60.0
PING_S = 3.0
_NEXT = re.compile(r'<([^<>]{1,4096})>[^,]*;[ \t]*rel="?next"?', re.IGNORECASE)
_REFERRERS_TYPE = "application/vnd.oci.image.index.v1+json"


class Listings:
    """Answers requests for lists."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._pings: dict[str, tuple[float, Failure | None]] = {}

    async def serve(self, exchange: Exchange, upstream: str, request: V2Request) -> None:
        """Answer a GET or a HEAD for tags or referrers with what the origin says."""
        is_tags = request.kind == "tags"
        limit = TAGS_BYTES_MAX if is_tags else REFERRERS_BYTES_MAX
        query = _query(exchange.target.query)
        path = f"{request.path}?{urlencode(query)}" if query else request.path
        accept = "application/json" if is_tags else f"{_REFERRERS_TYPE}, application/json"
        async with (
            self._slots,
            self._context.origin(upstream).open(
                "GET",
                path,
                headers={"Accept": accept},
                authorization=self._context.grants.credential(upstream, exchange.authorization),
                deadline_s=ORIGIN_S,
            ) as answer,
        ):
            body = await read_all(answer, limit)
            headers = [each for each in passed_on(answer.headers.items()) if each[0] != "Link"]
            link = _next_page(answer.headers.get("Link"), exchange)
            default = "application/json" if is_tags else _REFERRERS_TYPE
            media_type = answer.headers.get("Content-Type", default)
        if link is not None:
            headers.append(("Link", link))
        headers.append(("OCI-Namespace", upstream))
        headers.append(("X-Passel-Source", "origin"))
        await exchange.reply(200, headers, body, media_type)

    async def challenge(self, upstream: str, authorization: str | None) -> None:
        """Raise Refusal with the upstream's challenge if it wants credentials even for its ping.

        An upstream that cannot be asked wants none: its clients must not leave the mirror for that.
        """
        now = asyncio.get_running_loop().time()
        ends, failure = self._pings.get(upstream, (0.0, None))
        if authorization is not None or ends < now:
            failure = await self._ping(upstream, authorization)
            if authorization is None:
                self._pings[upstream] = (now + PING_TTL_S, failure)
        if failure is not None:
            raise Refusal(failure)

    async def _ping(self, upstream: str, authorization: str | None) -> Failure | None:
        credential = self._context.grants.credential(upstream, authorization)
        try:
            await self._context.origin(upstream).ping(credential, PING_S)
            return None
        except OriginRefused as error:
            return failure_of(error) if error.status == 401 else None
        except PasselError:
            # Down: what it wanted the last time. A client that is asked for nothing now would not
            # show the credentials that its grants are under.
            return self._pings.get(upstream, (0.0, None))[1] if authorization is None else None


def _query(text: str) -> list[tuple[str, str]]:
    """The parameters that are the origin's business."""
    return [(key, value) for key, value in parse_qsl(text, max_num_fields=32) if key != "ns"]


def _next_page(link: str | None, exchange: Exchange) -> str | None:
    """The origin's next page as a path of ours.

    crane takes a link to another host for an attack, and the client's own prefix must stay.
    """
    match = _NEXT.search(link) if link is not None else None
    if match is None:
        return None
    try:
        query = _query(match[1].partition("?")[2])
    except ValueError:
        return None
    query += [("ns", value) for value in exchange.query("ns")[:1]]
    return f'<{exchange.target.path}?{urlencode(query)}>; rel="next"'
